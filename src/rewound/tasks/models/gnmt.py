"""GNMT (Wu et al. 2016): an LSTM encoder-decoder with attention, in the form that trains without a loop over time.

The attention asks with the bottom decoder layer's output and goes into every layer above it, not into the bottom layer
itself (in the paper it does, and asks with the output of the step before). So each layer runs once over a whole
sentence, as in MLPerf's PyTorch version, and ``torch.export`` captures the forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

States = tuple[
    tuple[Tensor, Tensor], ...
]  # (h, c) of each decoder layer, bottom first; each [1, batch, units]


class Memory(NamedTuple):
    """What the decoder may look at: the encoder's outputs [batch, S, units], their keys, and which are no padding."""

    values: Tensor
    keys: Tensor
    inside: Tensor

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of some sentences, each as often as it stands in ``rows``."""
        return Memory(*(part.index_select(0, rows) for part in self))


class Attention(nn.Module):
    """Additive attention (Bahdanau et al. 2015): the score of a query and a key is v . tanh(W q + U k + b)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.query = nn.Linear(units, units, bias=False)
        self.key = nn.Linear(units, units)
        self.score = nn.Linear(units, 1, bias=False)

    def forward(self, query: Tensor, memory: Memory) -> Tensor:
        """Return, for queries [batch, T, units], what they see of the memory: [batch, T, units]."""
        both = torch.tanh(self.query(query).unsqueeze(2) + memory.keys.unsqueeze(1))  # [batch, T, S, units]
        scores = self.score(both).squeeze(3).masked_fill(~memory.inside.unsqueeze(1), float("-inf"))
        return scores.softmax(2) @ memory.values


class Gnmt(nn.Module):
    """Encoder: one layer in both directions, then ``layers - 1`` upwards. Decoder: ``layers``, attention, softmax.

    A layer above the second adds its input to its output. Dropout stands before every LSTM. With ``tied`` the softmax has
    the target embedding's weights (Press and Wolf 2017). The LSTMs' recurrent weights are drawn orthogonal (Saxe et al.
    2014), their others after Glorot and Bengio 2010, and the forget gates begin open: the paper's uniform [-.1, .1] suits
    1024 units, but 64 learn to attend several times slower from it.

    >>> model = Gnmt(20, units=8)
    >>> source, lengths = torch.randint(20, (3, 5)), torch.tensor([5, 2, 4])
    >>> model(source, lengths, torch.randint(20, (3, 7))).shape
    torch.Size([3, 7, 20])
    """

    def __init__(
        self, vocabulary: int, units: int = 128, layers: int = 2, dropout: float = 0.2, tied: bool = False
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(
                f"'layers' must be at least 2: the attention goes from the first to the others (got {layers})"
            )
        self.dropout = nn.Dropout(dropout)
        self.source_embedding = nn.Embedding(vocabulary, units)
        self.forwards = nn.LSTM(units, units, batch_first=True)
        self.backwards = nn.LSTM(units, units, batch_first=True)
        self.encoder = nn.ModuleList(
            nn.LSTM(2 * units if i == 0 else units, units, batch_first=True) for i in range(layers - 1)
        )
        self.target_embedding = nn.Embedding(vocabulary, units)
        self.bottom = nn.LSTM(units, units, batch_first=True)
        self.attention = Attention(units)
        self.decoder = nn.ModuleList(nn.LSTM(2 * units, units, batch_first=True) for _ in range(layers - 1))
        self.softmax = nn.Linear(units, vocabulary)
        if tied:
            self.softmax.weight = self.target_embedding.weight
        for module in self.modules():
            if isinstance(module, nn.LSTM):
                _draw(module)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Return scores [batch, T, vocabulary] of the word that follows each of ``target`` [batch, T].

        ``source``: int64 [batch, S], padded at the end; ``lengths``: int64 [batch], at least 1, without the padding.
        """
        return self.decode(target, self.encode(source, lengths))[0]

    def encode(self, source: Tensor, lengths: Tensor) -> Memory:
        """Read the ``source`` once; padding changes nothing of what is kept."""
        steps = torch.arange(source.shape[1], device=source.device)
        inside = steps < lengths.unsqueeze(1)
        # a sentence turned round within its own length: packed sequences would do it too, but cannot be captured
        turned = torch.where(inside, lengths.unsqueeze(1) - 1 - steps, steps)
        rows = torch.arange(source.shape[0], device=source.device).unsqueeze(1)
        x = self.dropout(self.source_embedding(source))
        there, back = self.forwards(x)[0], self.backwards(x[rows, turned])[0][rows, turned]
        x = torch.cat((there, back), 2)
        for i, layer in enumerate(self.encoder):
            y = layer(self.dropout(x))[0]
            x = y if i == 0 else x + y
        return Memory(x, self.attention.key(x), inside)

    def decode(self, target: Tensor, memory: Memory, states: States | None = None) -> tuple[Tensor, States]:
        """Return (scores [batch, T, vocabulary], states to go on from); ``states`` None: at the beginning."""
        before = states or (None,) * (1 + len(self.decoder))
        x, state = self.bottom(self.dropout(self.target_embedding(target)), before[0])
        after, context = [state], self.attention(x, memory)
        for i, layer in enumerate(self.decoder):
            y, state = layer(self.dropout(torch.cat((x, context), 2)), before[i + 1])
            after.append(state)
            x = y if i == 0 else x + y
        return self.softmax(x), tuple(after)


def _draw(lstm: nn.LSTM) -> None:
    """Draw the weights of one layer, each gate's for itself; the gates are input, forget, cell and output."""
    for gate in lstm.weight_ih_l0.detach().chunk(4):
        nn.init.xavier_uniform_(gate)
    for gate in lstm.weight_hh_l0.detach().chunk(4):
        nn.init.orthogonal_(gate)
    for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0):
        nn.init.zeros_(bias)
    nn.init.ones_(lstm.bias_ih_l0.detach().chunk(4)[1])
