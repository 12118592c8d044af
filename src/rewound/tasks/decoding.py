"""From a model's scores to sentences: the best word at every step, or the best of several sentences (beam search).

A model offers ``encode(source, lengths)`` and ``decode(words, memory, states)`` as :class:`rewound.tasks.models.gnmt.Gnmt`
does. Both functions end a sentence at END, or at its ``limit``: so what comes out does not depend on the batch that a
sentence is in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewound.tasks.vocabulary import BEGIN, END


def greedy(model: Any, source: Tensor, lengths: Tensor, limit: Tensor) -> Tensor:
    """Return the words of each sentence: int64 [batch, T], after the last one END.

    ``source`` int64 [batch, S] and ``lengths`` [batch] as in the model; ``limit`` int64 [batch]: the most words each
    may have.
    """
    memory, states = model.encode(source, lengths), None
    word = torch.full_like(lengths, BEGIN)
    finished = limit < 1
    found = [word.new_full((len(word), 0), END)]
    for step in range(1, int(limit.max()) + 1):
        scores, states = model.decode(word.unsqueeze(1), memory, states)
        word = scores[:, -1].argmax(1).masked_fill(finished, END)
        found.append(word.unsqueeze(1))
        finished = finished | (word == END) | (limit <= step)
        if finished.all():
            break
    return torch.cat(found, 1)


def beam_search(
    model: Any, source: Tensor, lengths: Tensor, limit: Tensor, beam: int = 5, length_penalty: float = 0.6
) -> Tensor:
    """Return the best sentence found with ``beam`` candidates at every step; arguments and result as in :func:`greedy`.

    Candidates are compared by log-likelihood / ((5 + words) / 6) ** ``length_penalty`` (Wu et al. 2016, equation 14),
    END counted as a word. A sentence ends when no unfinished candidate can overtake its best finished one.
    """
    if beam < 1:
        raise ValueError(f"'beam' must be at least 1 (got {beam})")
    batch, device = len(source), source.device
    first = (
        torch.arange(batch, device=device).unsqueeze(1) * beam
    )  # the row of each sentence's first candidate
    memory, states = (
        model.encode(source, lengths).select(first.flatten().repeat_interleave(beam) // beam),
        None,
    )
    total = torch.full((batch, beam), float("-inf"), device=device)
    total[:, 0] = 0.0  # all candidates are the same at first
    words = source.new_full((batch * beam, 1), BEGIN)
    length = torch.zeros(batch, beam, dtype=torch.long, device=device)
    finished = (limit < 1).unsqueeze(1).expand(batch, beam)
    for step in range(1, int(limit.max()) + 1):
        scores, states = model.decode(words[:, -1:], memory, states)
        gain = scores[:, -1].log_softmax(1).view(batch, beam, -1)
        ended = torch.full_like(gain[0, 0], float("-inf"))
        ended[END] = 0.0  # a finished candidate goes on as it is
        sums = total.unsqueeze(2) + torch.where(finished.unsqueeze(2), ended, gain)
        length = length + (~finished).long()
        worth = sums / _penalty(length, length_penalty).unsqueeze(2)
        best = worth.flatten(1).topk(beam).indices
        origin, word = best // gain.shape[2], best % gain.shape[2]
        total = sums.flatten(1).gather(1, best)
        length = length.gather(1, origin)
        finished = finished.gather(1, origin) | (word == END) | (limit <= step).unsqueeze(1)
        rows = (first + origin).flatten()
        words = torch.cat((words.index_select(0, rows), word.view(-1, 1)), 1)
        states = tuple((h.index_select(1, rows), c.index_select(1, rows)) for h, c in states)
        reached = (total / _penalty(length, length_penalty)).masked_fill(~finished, float("-inf")).amax(1)
        hoped = (
            (total / _penalty(limit.unsqueeze(1), length_penalty))
            .masked_fill(finished, float("-inf"))
            .amax(1)
        )
        if (reached >= hoped).all():
            break
    worth = (total / _penalty(length.clamp(min=1), length_penalty)).masked_fill(~finished, float("-inf"))
    return words[(first.squeeze(1) + worth.argmax(1)), 1:]


def _penalty(length: Tensor, power: float) -> Tensor:
    return ((5.0 + length) / 6.0) ** power
