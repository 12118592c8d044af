"""n of every m consecutive weights along the input axis: the sparsity that hardware multiplies fast (2:4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewound.patterns.layout import input_first
from rewound.scope import Scope

_PIECE = 1 << 16  # groups of m decided at once, so that the indices of a large layer never exist together


@dataclass(frozen=True)
class NofM:
    """Exactly ``n`` of every ``m`` weights along the input axis are kept.

    A linear weight [out, in] is grouped along ``in``; a convolution's [out, in, ...] along ``in`` for each kernel position
    by itself, as hardware and NVIDIA's ASP have it; a weight stored [in, out, ...] (a transposed convolution, Hugging Face's
    Conv1D) along its first axis.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"n:m keeps n of every m weights, with 0 < n < m (got '{self}')")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """n / m."""
        return self.n / self.m

    def check_density(self, density: float | None, what: str = "density") -> None:
        """ValueError unless ``density`` is None or n / m."""
        if density is not None and abs(density - self.density) > 1e-9:
            raise ValueError(
                f"pattern '{self}' keeps {self.n} of every {self.m} weights, so {what!r} can only be "
                f"{self.density:g} or None (got {density!r})"
            )

    def fitting(self, scope: Scope, model: nn.Module) -> Scope:
        """Return the part of the scope whose input axes divide into groups of m, with a reason for what does not.

        ValueError where nothing does.
        """
        first = input_first(model)
        whys = {name: self._why_not(scope.shapes[name], name in first) for name in scope.names}
        names = tuple(name for name, why in whys.items() if why is None)
        reasons = {name: why for name, why in whys.items() if why is not None}
        if not names:
            listed = "; ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:3])
            raise ValueError(f"no weight in scope can be pruned {self}: {listed}")
        sizes = {name: scope.sizes[name] for name in names}
        return Scope(names, sizes, {**scope.reasons, **reasons}, scope.aliases, scope.shapes)

    def _why_not(self, shape: tuple[int, ...], turned: bool) -> str | None:
        axis = _input_axis(turned)
        if shape[axis] % self.m == 0:
            return None
        return f"its input axis has {shape[axis]} entries, which is no multiple of {self.m}"

    def best(self, scores: Tensor, turned: bool = False, among: Tensor | None = None) -> Tensor:
        """Return the mask that keeps the n highest scores of every m, ties to the earlier.

        among: bool; only what is True there can be kept, so a group that has fewer than n keeps those.
        """
        if bool(scores.isnan().any()):
            raise ValueError(f"{int(scores.isnan().sum()):,} of {scores.numel():,} scores are NaN")
        moved = scores.detach().movedim(_input_axis(turned), -1)
        able = None if among is None else among.to(scores.device).movedim(_input_axis(turned), -1)
        rows = moved.reshape(-1, self.m)
        able_rows = None if able is None else able.reshape(-1, self.m)
        kept = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
        for start in range(0, len(rows), _PIECE):
            piece = slice(start, start + _PIECE)
            order = rows[piece].sort(dim=1, descending=True, stable=True).indices
            if able_rows is not None:  # those that may be kept come first, each kind in its order
                there = able_rows[piece].gather(1, order).to(torch.int8)
                order = order.gather(1, there.sort(dim=1, descending=True, stable=True).indices)
            kept[piece].scatter_(1, order[:, : self.n], True)
        if able_rows is not None:
            kept &= able_rows
        return kept.reshape(moved.shape).movedim(-1, _input_axis(turned))


def check_n_m(mask: Mapping[str, Tensor], pattern: str | NofM, model: nn.Module | None = None) -> None:
    """Raise ValueError, naming the place, where a mask keeps more than n of some m weights along the input axis.

    model: to know which weights are stored [in, out, ...]; without it none is.

    >>> check_n_m({"weight": torch.tensor([[True, False, False, True]])}, "2:4")
    >>> check_n_m({"weight": torch.tensor([[True, False, True, True]])}, "2:4")
    Traceback (most recent call last):
    ValueError: 'weight' is not 2:4: it keeps 3 of the 4 weights 0 to 3 along the input axis (row 0)
    """
    if isinstance(pattern, str):
        n, m = (int(part) for part in pattern.split(":"))
        pattern = NofM(n, m)
    for name, groups in _groups(mask, pattern.m, frozenset() if model is None else input_first(model)):
        over = (groups.sum(-1) > pattern.n).nonzero()
        if len(over):
            row, group = over[0].tolist()
            first = group * pattern.m
            raise ValueError(
                f"{name!r} is not {pattern}: it keeps {int(groups[row, group].sum())} of the {pattern.m} weights {first} to "
                f"{first + pattern.m - 1} along the input axis (row {row})"
            )


def _groups(mask: Mapping[str, Tensor], m: int, first: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield name, [rows, groups, m]."""
    for name, kept in mask.items():
        axis = _input_axis(name in first)
        if kept.shape[axis] % m:
            raise ValueError(
                f"{name!r} has {kept.shape[axis]} entries along its input axis: no multiple of {m}"
            )
        moved = kept.movedim(axis, -1)
        yield name, moved.reshape(-1, kept.shape[axis] // m, m)


def _input_axis(turned: bool) -> int:
    return 0 if turned else 1
