"""Recurrent networks: classifiers, language models, encoder-decoders with attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.compaction.zoo_layers import Steps
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Translator(nn.Module):
    """Encoder, decoder, dot-product attention, softmax layer: tied to the decoder's embedding or not."""

    def __init__(self, cell: type[nn.RNNBase], *, tied: bool) -> None:
        super().__init__()
        width = 10
        self.source, self.target = nn.Embedding(19, 8), nn.Embedding(17, width)
        self.encoder = cell(8, width, num_layers=2, batch_first=True)
        self.decoder = cell(width, width, num_layers=2, batch_first=True)
        self.mix, self.softmax = nn.Linear(2 * width, width), nn.Linear(width, 17)
        if tied:
            self.softmax.weight = self.target.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target), state)
        weights = torch.softmax(torch.bmm(x, memory.transpose(1, 2)), dim=-1)
        x = torch.tanh(self.mix(torch.cat([x, torch.bmm(weights, memory)], dim=-1)))
        return self.softmax(x)


class StackedResidual(nn.Module):
    """GNMT: a bidirectional first layer, then single layers with residual sums between them, additive
    (Bahdanau) attention over the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 6)
        self.first = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.rest = nn.ModuleList(nn.LSTM(10, 10, batch_first=True) for _ in range(2))
        self.query, self.key, self.score = (
            nn.Linear(10, 7, bias=False),
            nn.Linear(10, 7),
            nn.Linear(7, 1, bias=False),
        )
        self.out = nn.Linear(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.first(self.embed(ids))
        for layer in self.rest:
            x = x + layer(x)[0]
        scores = self.score(torch.tanh(self.query(x[:, -1:]) + self.key(x))).transpose(1, 2)
        context = torch.softmax(scores, dim=-1) @ x
        return self.out(torch.cat([context, x[:, -1:]], dim=-1).squeeze(1))


class LanguageModel(nn.Module):
    """LSTM with the embedding tied to the softmax (Merity's way: the last layer is as wide as the embedding)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(21, 8)
        self.first, self.last = nn.LSTM(8, 12), nn.LSTM(12, 8)
        self.decode = nn.Linear(8, 21)
        self.decode.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.decode(self.last(self.first(self.embed(ids))[0])[0])


class LastPacked(nn.Module):
    """Sequences of unequal length, packed; the last state of each is classified."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.fc = cell(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([6, 4]), batch_first=True)
        output, state = self.rnn(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True)
        return self.fc(state[-1]) + self.fc(padded.sum(1))


class CellLoop(nn.Module):
    """A cell stepped by hand from a learned initial state."""

    def __init__(self, cell: type[nn.LSTMCell] | type[nn.GRUCell]) -> None:
        super().__init__()
        self.cell, self.fc = cell(5, 11), nn.Linear(11, 3)
        self.start = nn.Parameter(torch.zeros(1, 11))

    def forward(self, x: Tensor) -> Tensor:
        h = c = self.start.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            else:
                h = self.cell(x[:, t], h)
        return self.fc(h)


class WrittenOut(nn.Module):
    """A GRU from linear layers and gates, unrolled: the state is a residual stream of hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate, self.fc = nn.Linear(5 + 9, 18), nn.Linear(5 + 9, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 9)
        for step in x.unbind(1):
            update, reset = torch.sigmoid(self.gates(torch.cat([step, h], dim=1))).chunk(2, dim=1)
            new = torch.tanh(self.candidate(torch.cat([step, reset * h], dim=1)))
            h = update * h + (1 - update) * new
        return self.fc(h)


class ConvRecurrent(nn.Module):
    """CRNN for reading text lines: columns of the feature map become time steps, channels x rows features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.rnn, self.fc = nn.GRU(6 * 4, 8, bidirectional=True, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.fc(self.rnn(x)[0]).log_softmax(-1)


class ConvLSTM(nn.Module):
    """Gates by a convolution over input and state together."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Conv2d(2 + 6, 24, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 6, *x.shape[3:])
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], dim=1)).split(6, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


def _both_ends(m: Steps, ids: Tensor) -> Tensor:
    """Two bidirectional layers; the last states of both directions are concatenated."""
    _, (state, _) = m.rnn(m.embed(ids))
    return m.fc(torch.cat([state[-2], state[-1]], dim=-1))


def _mean_of_steps(m: Steps, x: Tensor) -> Tensor:
    return m.fc(m.rnn(m.inlet(x))[0].mean(1))


def _learned_start(m: Steps, x: Tensor) -> Tensor:
    h, c = (z.expand(-1, x.shape[0], -1).contiguous() for z in (m.h0, m.c0))
    return m.fc(m.rnn(x, (h, c))[0][:, -1])


def _ids(vocabulary: int, *shape: int) -> Tensor:
    return torch.randint(0, vocabulary, shape)


def _pair() -> tuple[Tensor, Tensor]:
    return _ids(19, 2, 6), _ids(17, 2, 5)


MODELS = {
    "lstm_seq2seq": lambda: (Translator(nn.LSTM, tied=False), _pair()),
    "lstm_seq2seq_tied": lambda: (Translator(nn.LSTM, tied=True), _pair()),
    "gru_seq2seq": lambda: (Translator(nn.GRU, tied=False), _pair()),
    "gru_seq2seq_tied": lambda: (Translator(nn.GRU, tied=True), _pair()),
    "gnmt_encoder": lambda: (StackedResidual(), _ids(19, 2, 6)),
    "lstm_language_model": lambda: (LanguageModel(), _ids(21, 6, 2)),
    "bilstm_classifier": lambda: (
        Steps(
            _both_ends,
            embed=nn.Embedding(19, 7),
            rnn=nn.LSTM(7, 9, num_layers=2, bidirectional=True, batch_first=True),
            fc=nn.Linear(18, 4),
        ),
        _ids(19, 2, 6),
    ),
    "gru_classifier": lambda: (
        Steps(
            _mean_of_steps,
            inlet=nn.Linear(5, 7),
            rnn=nn.GRU(7, 11, num_layers=2, batch_first=True),
            fc=nn.Linear(11, 4),
        ),
        torch.randn(2, 6, 5),
    ),
    "rnn_packed": lambda: (LastPacked(nn.RNN), torch.randn(2, 6, 5)),
    "lstm_projected": lambda: (
        Steps(
            _mean_of_steps,
            inlet=nn.Linear(5, 7),
            rnn=nn.LSTM(7, 12, proj_size=6, batch_first=True),
            fc=nn.Linear(6, 4),
        ),
        torch.randn(2, 6, 5),
    ),
    "lstm_learned_start": lambda: (
        Steps(
            _learned_start,
            rnn=nn.LSTM(5, 9, batch_first=True, bias=False),
            fc=nn.Linear(9, 4),
            h0=nn.Parameter(torch.zeros(1, 1, 9)),
            c0=nn.Parameter(torch.zeros(1, 1, 9)),
        ),
        torch.randn(2, 6, 5),
    ),
    "lstm_cell": lambda: (CellLoop(nn.LSTMCell), torch.randn(2, 4, 5)),
    "gru_cell": lambda: (CellLoop(nn.GRUCell), torch.randn(2, 4, 5)),
    "gru_written_out": lambda: (WrittenOut(), torch.randn(2, 4, 5)),
    "conv_recurrent": lambda: (ConvRecurrent(), torch.randn(2, 1, 8, 12)),
    "conv_lstm": lambda: (ConvLSTM(), torch.randn(2, 3, 2, 6, 6)),
}
