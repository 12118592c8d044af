"""Networks of linear layers: perceptrons, gates, mixers, experts, graphs, points, recommendation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.compaction.zoo_layers import Steps
from torch import Tensor, nn


class MixerBlock(nn.Module):
    """MLP-Mixer: one perceptron over the patches, one over the features."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 14), nn.GELU(), nn.Linear(14, patches))
        self.features = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 12, 4, 4), nn.Sequential(MixerBlock(9, 12), MixerBlock(9, 12))
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.fc(self.norm(self.blocks(x)).mean(1))


class GatedMixer(nn.Module):
    """gMLP: half of the hidden features, normalised and mixed over the tokens, gates the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(10), nn.Linear(10, 24), nn.Linear(12, 10)
        self.gate_norm, self.spatial = nn.LayerNorm(12), nn.Conv1d(7, 7, 1)
        self.fc = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        x = x + self.down(u * self.spatial(self.gate_norm(v)))
        return self.fc(x.mean(1))


class Highway(nn.Module):
    """Carry or transform, by a sigmoid gate: y = g * f(x) + (1 - g) * x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate(x))
        return g * torch.relu(self.transform(x)) + (1 - g) * x


class Experts(nn.Module):
    """A dense mixture: every expert runs, a softmax of the router weighs them; expert weights in one tensor."""

    def __init__(self, width: int = 8, hidden: int = 12, experts: int = 3) -> None:
        super().__init__()
        self.inlet, self.router = nn.Linear(6, width), nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.zeros(experts, width, hidden))
        self.down = nn.Parameter(torch.zeros(experts, hidden, width))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inlet(x))
        weights = self.router(x).softmax(-1)  # [N, experts]
        hidden = F.silu(torch.einsum("nd,edh->neh", x, self.up))
        y = torch.einsum("neh,ehd->ned", hidden, self.down)
        return self.out(x + (weights[..., None] * y).sum(1))


class ListedExperts(nn.Module):
    """The same with a ModuleList of experts and a sum in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        sizes = (8, 10, 12)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 5)) for n in sizes
        )
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        y = sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return self.out(torch.relu(y))


class Residual(nn.Module):
    """Linear residual blocks with batch norm, weights bare (F.linear)."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.norm, self.out = nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3)
        self.up, self.up_bias = nn.Parameter(torch.zeros(14, 10)), nn.Parameter(torch.zeros(14))
        self.down = nn.Parameter(torch.zeros(14, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        hidden = F.gelu(F.linear(F.relu(self.norm(x)), self.up, self.up_bias), approximate="tanh")
        return self.out(x + hidden @ self.down)


class GraphNet(nn.Module):
    """Message passing on a list of edges (gather, then add at the target) and a mean over the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own, self.norm = nn.Linear(6, 12), nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.second, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        message = self.message(nodes)[source]
        x = F.relu(self.norm(self.own(nodes).index_add(0, target, message)))
        x = torch.zeros_like(x).index_add(0, target, x[source]) + x
        return self.out(F.relu(self.second(x)).mean(0))


class PointNet(nn.Module):
    """A set of points: shared perceptron, maximum over the set, a predicted transform of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1, self.second = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.Conv1d(6, 14, 1)
        self.transform = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.matrix, self.fc = nn.Linear(8, 9), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(x)).view(-1, 3, 3)
        x = torch.bmm(matrix, x)
        x = F.relu(self.second(F.relu(self.norm1(self.first(x)))))
        return self.fc(torch.max(x, 2)[0])


class Recommender(nn.Module):
    """DLRM: embeddings and dense features, their dot products pair by pair, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 8) for n in (11, 7, 5))
        self.bottom = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 10), nn.ReLU(), nn.Linear(10, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = [self.bottom(dense)] + [table(ids[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.stack(vectors, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        i, j = torch.tril_indices(4, 4, offset=-1)
        return torch.sigmoid(self.top(torch.cat([vectors[0], products[:, i, j]], dim=1)))


class Coupling(nn.Module):
    """Affine coupling of a normalising flow: half of the features scales and shifts the other half, which
    carries the input itself, so that only the hidden layers may shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for net in self.nets:
            a, b = x.chunk(2, dim=1)
            scale, shift = net(a).chunk(2, dim=1)
            x, total = torch.cat([b * scale.tanh().exp() + shift, a], dim=1), total + scale.tanh().sum(1)
        return x, total


class Variational(nn.Module):
    """Encoder to mean and log variance; in eval the mean is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_variance = nn.Linear(9, 14), nn.Linear(14, 6), nn.Linear(14, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 12), nn.Softplus(), nn.Linear(12, 9), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        penalty = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1)
        return self.decoder(mean), penalty


def _two_towers(m: Steps, user: Tensor, item: Tensor) -> Tensor:
    """Retrieval: the last features of two towers are contracted with each other, so they may leave in pairs."""
    return (m.user(user) * m.item(item)).sum(-1) + m.user(user) @ m.item(item).T


def _deep_sets(m: Steps, x: Tensor) -> Tensor:
    """A perceptron on every element, sum over the set, a perceptron on the sum."""
    return m.rho(m.phi(x).sum(dim=1))


MODELS = {
    "mlp": lambda: (
        nn.Sequential(
            nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 14), nn.Tanh(), nn.Linear(14, 5)
        ),
        torch.randn(2, 3, 4),
    ),
    "mlp_batch_norm": lambda: (
        nn.Sequential(
            nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 14), nn.GELU(), nn.Linear(14, 5)
        ),
        torch.randn(2, 6),
    ),
    "mlp_layer_norm": lambda: (
        nn.Sequential(
            nn.Linear(6, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 14), nn.SiLU(), nn.Linear(14, 5)
        ),
        torch.randn(2, 6),
    ),
    "mixer": lambda: (Mixer(), torch.randn(2, 3, 12, 12)),
    "gated_mixer": lambda: (GatedMixer(), torch.randn(2, 7, 10)),
    "highway": lambda: (
        nn.Sequential(nn.Linear(6, 10), Highway(10), Highway(10), nn.Linear(10, 3)),
        torch.randn(2, 6),
    ),
    "experts": lambda: (Experts(), torch.randn(2, 6)),
    "experts_listed": lambda: (ListedExperts(), torch.randn(2, 6)),
    "functional_residual": lambda: (Residual(), torch.randn(2, 6)),
    "bilinear": lambda: (
        Steps(
            lambda m, x, y: m.out(F.relu(m.both(F.relu(m.a(x)), m.b(y)))),
            a=nn.Linear(5, 8),
            b=nn.Linear(4, 7),
            both=nn.Bilinear(8, 7, 9),
            out=nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)),
        ),
        (torch.randn(2, 5), torch.randn(2, 4)),
    ),
    "graph": lambda: (
        GraphNet(),
        (torch.randn(5, 6), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 0, 4, 3, 3]])),
    ),
    "point_net": lambda: (PointNet(), torch.randn(2, 3, 11)),
    "recommender": lambda: (Recommender(), (torch.randn(2, 4), torch.tensor([[3, 2, 1], [4, 0, 4]]))),
    "embedding_bag": lambda: (
        nn.Sequential(nn.EmbeddingBag(20, 10, mode="sum"), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3)),
        torch.randint(0, 20, (2, 5)),
    ),
    "coupling_flow": lambda: (Coupling(), torch.randn(2, 8)),
    "variational": lambda: (Variational(), torch.randn(2, 9)),
    "two_towers": lambda: (
        Steps(
            _two_towers,
            user=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)),
            item=nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6)),
        ),
        (torch.randn(2, 5), torch.randn(2, 4)),
    ),
    "deep_sets": lambda: (
        Steps(
            _deep_sets,
            phi=nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 8)),
            rho=nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 2)),
        ),
        torch.randn(2, 6, 3),
    ),
}
