"""The units of a network: channels, heads, hidden units; and for each, every entry of every tensor that leaves with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from rewound.compaction.telling import told


class Certificate(IntEnum):
    """What removing a unit does to the function, when everything of the unit is masked (weights that write it, weights
    that read it, biases, norm parameters).

    EXACT: nothing. EXACT_AFTER_FOLD: nothing, once a constant is folded into what reads it (under masks made elsewhere, which
    leave a bias; those of ``prune`` mask the readers too, so its groups are exact). EXACT_AFTER_RESCALE: nothing,
    once a factor is set right (the width of an RMSNorm, the scale of an attention). APPROXIMATE: the masked and the compact
    network differ (the width of a LayerNorm, part of a GroupNorm group).
    """

    EXACT = 0
    EXACT_AFTER_FOLD = 1
    EXACT_AFTER_RESCALE = 2
    APPROXIMATE = 3

    def __str__(self) -> str:
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Slice:
    """What a group's units take from one axis of one tensor.

    tensor: name of a parameter or buffer. axis: which axis. positions: int64 [units, k], where along the axis unit u has
    its k entries (a head has 64 rows, a channel before a flatten 49 columns). role: "writes" (the weight computes the unit:
    a filter, a row), "reads" (the weight's input axis), "affine" (a bias, a norm's scale or shift, any parameter met
    element by element), "buffer" (running statistics).
    """

    tensor: str
    axis: int
    positions: Tensor
    role: str

    def entries(self, tensor: Tensor) -> Tensor:
        """Return what each unit has in ``tensor``: [units, entries], a filter's weights for example.

        >>> weight = torch.arange(6.0).reshape(2, 3)
        >>> Slice("weight", 1, torch.tensor([[0], [2]]), "reads").entries(weight)
        tensor([[0., 3.],
                [2., 5.]])
        """
        where = self.positions.to(tensor.device)
        chosen = tensor.movedim(self.axis, 0)[where.reshape(-1)]
        return chosen.reshape(len(where), -1)


@dataclass(frozen=True)
class Group:
    """Units that are alike: each takes the same number of entries from the same axes of the same tensors.

    name: the layer that computes the units, unique in a Structure. kind: "channel", "hidden unit", "head", "query head",
    "head dim", "group" (of a grouped convolution or group norm), "width" (of a residual stream of features).
    size: number of units. slices: what leaves with a unit. certificate and why: see Certificate.
    """

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    certificate: Certificate = Certificate.EXACT
    why: str = ""

    @property
    def writers(self) -> tuple[Slice, ...]:
        """The weights that compute the units; without any (a free parameter), the affine ones."""
        return tuple(s for s in self.slices if s.role == "writes") or tuple(
            s for s in self.slices if s.role == "affine"
        )


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one operator for one example: ``count`` with nothing removed, in proportion to the kept entries of
    each of ``axes`` (tensor, axis) -- several axes multiply. where: module path."""

    where: str
    count: int
    axes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Structure:
    """All units of a network that can leave, and the reason for every axis that cannot.

    groups: the removable ones. shapes: name -> shape of every parameter and buffer met. fixed: (tensor, axis) -> why
    nothing of this axis can leave. parameters: the names among ``shapes`` that are parameters (masks cover these).
    work: the multiply-adds, operator by operator, of the example.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, torch.Size]
    parameters: frozenset[str]
    fixed: Mapping[tuple[str, int], str] = field(default_factory=dict)
    work: tuple[Work, ...] = ()

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        return told(self)

    def restricted(self, groups: Iterable[Group]) -> Structure:
        """The same network with only these groups as candidates."""
        return Structure(tuple(groups), self.shapes, self.parameters, self.fixed, self.work)


# ---- between units and entries -----------------------------------------------------------------------------------------


def each_mask(structure: Structure, kept: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`masks_of` returns, one tensor after the other: views to copy or to read, not to write to."""
    sizes = {group.name: group.size for group in structure}
    for name, keep in kept.items():
        if name not in sizes:
            raise ValueError(f"there is no group {name!r} of units; there are {', '.join(sizes)}")
        if keep.dtype is not torch.bool or keep.shape != (sizes[name],):
            found = f"{str(keep.dtype).removeprefix('torch.')} {list(keep.shape)}"
            raise ValueError(
                f"what is kept of {name!r} must be a bool tensor of its {sizes[name]} units (got {found})"
            )
    axes: dict[str, dict[int, Tensor]] = {}
    for group in structure:
        dead = None if group.name not in kept else (~kept[group.name]).cpu().nonzero().reshape(-1)
        for s in group.slices:
            if s.tensor in structure.parameters:
                lines = axes.setdefault(s.tensor, {})
                if s.axis not in lines:
                    lines[s.axis] = torch.ones(structure.shapes[s.tensor][s.axis], dtype=torch.bool)
                if dead is not None:
                    lines[s.axis][s.positions[dead].reshape(-1)] = False
    for name, shape in structure.shapes.items():
        if name in axes:
            mask = torch.ones((), dtype=torch.bool)
            for axis, line in axes[name].items():
                mask = mask & line.reshape([-1 if k == axis else 1 for k in range(len(shape))])
            yield name, mask.expand(shape)


def masks_of(structure: Structure, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a bool mask (True = kept) of every parameter that any group touches, in the order of ``structure.shapes``.

    kept: group name -> bool [size], which of its units stay; a group that is not named stays whole. An entry is kept if all
    units that it belongs to are: a filter's weights at the crossing of a kept row and a kept column. ValueError for an
    unknown name, another dtype or another size.

    >>> writes = Slice("0.weight", 0, torch.tensor([[0], [1]]), "writes")
    >>> reads = Slice("1.weight", 1, torch.tensor([[0], [1]]), "reads")
    >>> shapes = {"0.weight": torch.Size([2, 3]), "1.weight": torch.Size([1, 2])}
    >>> structure = Structure((Group("0", "hidden unit", 2, (writes, reads)),), shapes, frozenset(shapes))
    >>> masks_of(structure, {"0": torch.tensor([True, False])})["1.weight"]
    tensor([[ True, False]])
    """
    return {name: mask.contiguous() for name, mask in each_mask(structure, kept)}


def alive(structure: Structure, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return group name -> bool [size]: which units are not wholly masked.

    A tensor that ``mask`` does not have is whole, so that every unit with entries in it is alive. The inverse of
    :func:`masks_of` wherever every unit has an entry of its own.
    """
    lines: dict[tuple[str, int], Tensor] = {}
    found = {}
    for group in structure:
        living = torch.zeros(group.size, dtype=torch.bool)
        for s in group.slices:
            if s.tensor not in structure.parameters:
                continue
            if s.tensor not in mask:
                living.fill_(True)
                break
            if (s.tensor, s.axis) not in lines:
                kept = mask[s.tensor]
                others = _others(kept, s.axis)
                lines[s.tensor, s.axis] = (kept.any(others) if others else kept).cpu()
            living |= lines[s.tensor, s.axis][s.positions].any(1)
        found[group.name] = living
    return found


def mean_over_writers(
    structure: Structure, scores: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return group name -> float64 [size], on the CPU: the mean score of the weights that write a unit.

    scores: name -> tensor of the weight's shape. A writer without scores is left out of the mean, a group without any out of
    the answer. mask: entries that are pruned already count neither above nor below, so that a unit scores the same in the
    masked network and in the smaller one; a unit without any entry left scores 0.

    The mean, not the sum: units of different fan-in can compete.
    """
    lines: dict[tuple[str, int], tuple[Tensor, Tensor | int]] = {}
    found, scored = {}, set(scores)  # asking a mapping that computes its tensors would compute them
    for group in structure:
        total, count = (
            torch.zeros(group.size, dtype=torch.float64),
            torch.zeros(group.size, dtype=torch.float64),
        )
        writers = [s for s in group.writers if s.tensor in scored]
        for s in writers:
            if (s.tensor, s.axis) not in lines:
                lines[s.tensor, s.axis] = _along(scores[s.tensor], s.axis, (mask or {}).get(s.tensor))
            sums, counts = lines[s.tensor, s.axis]
            total += sums[s.positions].sum(1)
            count += counts * s.positions.shape[1] if isinstance(counts, int) else counts[s.positions].sum(1)
        if writers:
            found[group.name] = torch.where(count > 0, total / count.clamp_min(1), 0.0)
    return found


def _along(scores: Tensor, axis: int, mask: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Sum, and number of entries that are not masked, at each position along ``axis``."""
    scores, others = scores.detach(), _others(scores, axis)
    if mask is not None:
        mask = mask.to(scores.device)
        scores = scores.masked_fill(~mask, 0)
    if not others:
        return scores.double().cpu(), 1 if mask is None else mask.double().cpu()
    sums = scores.sum(others, dtype=torch.float64).cpu()
    if mask is None:
        return sums, scores.numel() // scores.shape[axis]
    return sums, mask.sum(others).double().cpu()


def _others(tensor: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(tensor.ndim) if k != axis)
