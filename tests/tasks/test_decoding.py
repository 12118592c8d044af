"""Greedy decoding and beam search against all sentences there are."""

from itertools import product

import pytest
import torch

from rewound.tasks.decoding import beam_search, greedy
from rewound.tasks.models.gnmt import Gnmt, Memory
from rewound.tasks.vocabulary import BEGIN, END

WORDS = 5


class Table:
    """A "model" whose scores follow from the last word and the sentence's own number: every sum can be checked."""

    def __init__(self, seed, batch):
        generator = torch.Generator().manual_seed(seed)
        self.scores = 2 * torch.randn(batch, WORDS, WORDS, generator=generator, dtype=torch.float64)

    def encode(self, source, lengths):
        own = source.double()
        return Memory(own, own, own)

    def decode(self, words, memory, states=None):
        rows = self.scores[memory.values[:, 0].long(), words[:, -1]]
        steps = torch.zeros(1, len(rows), 1) if states is None else states[0][0] + 1
        return rows.unsqueeze(1), ((steps, steps),)


def all_sentences(scores, limit):
    """Yield (sentence, its log-likelihood) for each that ends with END, or with the limit."""
    steps = scores.log_softmax(1)
    for length in range(1, limit + 1):
        for words in product(range(WORDS), repeat=length):
            inner, last = words[:-1], words[-1]
            if END in inner or (last != END and length < limit):
                continue
            yield words, sum(float(steps[a, b]) for a, b in zip((BEGIN, *inner), words))


def cut(words):
    words = list(words)
    return words[: words.index(END)] if END in words else words


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("power", [0.0, 0.6, 1.5])
def test_a_wide_beam_finds_the_best_sentence_there_is(seed, power):
    batch, limit = 3, torch.tensor([4, 2, 3])
    table, source = Table(seed, batch), torch.arange(batch).unsqueeze(1)
    found = beam_search(
        table, source, torch.ones(batch).long(), limit, beam=WORDS**4, length_penalty=power
    ).tolist()
    for i in range(batch):
        best = max(
            all_sentences(table.scores[i], int(limit[i])), key=lambda s: s[1] / ((5 + len(s[0])) / 6) ** power
        )
        assert cut(found[i]) == cut(best[0])


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(seed):
    torch.manual_seed(seed)
    model = Gnmt(30, units=16, layers=3).double().eval()
    for parameter in model.parameters():
        parameter.data *= 8  # livelier than fresh weights: sentences of different length
    source, lengths = torch.randint(3, 30, (12, 6)), torch.randint(1, 7, (12,))
    with torch.no_grad():
        words = greedy(model, source, lengths, 2 * lengths)
        assert [cut(w) for w in words.tolist()] == [
            cut(w) for w in beam_search(model, source, lengths, 2 * lengths, beam=1).tolist()
        ]
        for i in range(12):  # alone as in the batch
            one = (source[i : i + 1, : lengths[i]], lengths[i : i + 1], 2 * lengths[i : i + 1])
            assert cut(greedy(model, *one)[0].tolist()) == cut(words[i].tolist())
            several = beam_search(model, source, lengths, 2 * lengths, beam=3)
            assert cut(beam_search(model, *one, beam=3)[0].tolist()) == cut(several[i].tolist())


def test_greedy_takes_the_best_word_at_every_step():
    table, source = Table(0, 8), torch.arange(8).unsqueeze(1)
    limit = torch.arange(8)
    found = greedy(table, source, torch.ones(8).long(), limit).tolist()
    for i in range(8):
        word, sentence = BEGIN, []
        while len(sentence) < i and word != END:
            word = int(table.scores[i, word].argmax())
            sentence.append(word)
        assert cut(found[i]) == cut(sentence)


def test_no_beam_is_refused():
    with pytest.raises(ValueError, match="'beam' must be at least 1"):
        beam_search(Table(0, 1), torch.zeros(1, 1).long(), torch.ones(1).long(), torch.ones(1).long(), beam=0)
