"""What ``print(find_units(model, example))`` says: which units there are, what goes with each, and why the rest stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rewound.compaction.units import Group, Slice, Structure

_SHOWN = 4  # of a list; then "and 12 more"


def told(structure: Structure) -> str:
    """Return a Structure as text: how many units of which kind, a paragraph for each group (alike ones, such as the layers of a
    transformer, share one), and what cannot leave, by reason."""
    lines = list(_summary(structure))
    for alike in _alike(structure):
        lines += _paragraph(alike)
    reasons = list(reasons_of(structure))
    if reasons:
        lines.append("what stays, and why")
    for why, names in reasons:
        lines += [f"  {why}", f"    {names}"]
    return "\n".join(lines)


def reasons_of(structure: Structure) -> Iterator[tuple[str, str]]:
    """Yield (why, which axes, shortened) for everything that cannot leave; the positions of kernels go without saying."""
    found: dict[str, list[str]] = {}
    full: dict[str, str] = {}
    for (name, axis), why in structure.fixed.items():
        if "positions of a kernel" not in why:
            short = why.partition(" (")[0]  # the same at other lines is the same reason
            full.setdefault(short, why)
            found.setdefault(short, []).append(f"{name}[{axis}]")
    for short, names in found.items():
        yield full[short], _list(names)


def _summary(structure: Structure) -> Iterator[str]:
    whole = sum(structure.shapes[name].numel() for name in structure.parameters)
    if not len(structure):
        yield f"nothing can leave this network of {whole:,} weights"
        return
    yield f"{_count(len(structure), 'group')} of units that can leave; {whole:,} weights in all"
    kinds: dict[str, list[Group]] = {}
    for group in structure:
        kinds.setdefault(group.kind, []).append(group)
    for kind, groups in kinds.items():
        weights = _weights(structure, groups)
        units = sum(group.size for group in groups)
        yield f"  {_of_kind(units, kind)} in {_count(len(groups), 'group')}: {weights:,} weights, {weights / max(1, whole):.1%}"


def _weights(structure: Structure, groups: Iterable[Group]) -> int:
    """How many entries of parameters belong to any unit of the groups."""
    lines: dict[str, dict[int, torch.Tensor]] = {}
    for group in groups:
        for s in group.slices:
            if s.tensor in structure.parameters:
                whole = torch.zeros(structure.shapes[s.tensor][s.axis], dtype=torch.bool)
                lines.setdefault(s.tensor, {}).setdefault(s.axis, whole)[s.positions.reshape(-1)] = True
    total = 0
    for name, axes in lines.items():
        left = structure.shapes[name].numel()
        for axis, line in axes.items():
            left = left // structure.shapes[name][axis] * int((~line).sum())
        total += structure.shapes[name].numel() - left
    return total


def _alike(structure: Structure) -> list[list[Group]]:
    """Put together groups that differ in the numbers of their names only."""
    found: dict[object, list[Group]] = {}
    for group in structure:
        slices = [(re.sub(r"\d+", "*", s.tensor), s.axis, s.role, s.positions.shape[1]) for s in group.slices]
        # the names of one group may have several numbers (a layer and the next): only what repeats as a whole is alike
        key = (group.kind, group.size, group.certificate, re.sub(r"\d+", "*", group.name), *slices)
        found.setdefault(key, []).append(group)
    return list(found.values())


def _paragraph(alike: Sequence[Group]) -> Iterator[str]:
    group = alike[0]
    yield f"{group.name}  {_of_kind(group.size, group.kind)}, {group.certificate}" + (
        f": {group.why}" if group.why else ""
    )
    parts = [("writes", "written by"), ("affine", "with"), ("reads", "read by")]
    said = [f"{word} {_list(_axes(s for s in group.slices if s.role == role))}" for role, word in parts]
    buffers = sum(s.role == "buffer" for s in group.slices)
    if buffers:
        said.append(_count(buffers, "buffer"))
    yield "  " + "; ".join(text for text in said if not text.endswith(" "))
    if len(alike) == 2:
        yield f"  alike: {alike[1].name}"
    elif len(alike) > 2:
        yield f"  alike: {alike[1].name} ... {alike[-1].name} ({len(alike) - 1})"


def _axes(slices: Iterable[Slice]) -> list[str]:
    """An entry of a unit is one row or column of a tensor; "x36": it takes so many."""
    return [
        f"{s.tensor}[{s.axis}]" + (f" x{s.positions.shape[1]}" if s.positions.shape[1] > 1 else "")
        for s in slices
    ]


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN] if more > 1 else names) + (f" and {more} more" if more > 1 else "")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("s" if n != 1 else "")


def _of_kind(n: int, kind: str) -> str:
    return f"{n:,} of width" if kind == "width" else _count(n, kind)
