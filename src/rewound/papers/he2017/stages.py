"""Which groups of units can be pruned by reconstruction, in the order in which they are read, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewound.allocation import Budget, allocate, asked_for, by_density
from rewound.compaction.units import Certificate, Group, Structure
from rewound.papers.he2017.samples import readable
from rewound.parameters import named_modules
from rewound.patterns.units import EachUnit
from rewound.sites import Site, find_sites
from rewound.untouched import as_found, call_of


@dataclass(frozen=True)
class Stage:
    """A group of units, and columns [units, k] of the weight (as a matrix [n, columns]) of each layer that reads them."""

    group: Group
    readers: dict[str, Tensor]


def find_stages(model: nn.Module, structure: Structure, given: Any) -> tuple[list[Stage], dict[str, str]]:
    """Return the groups that can be pruned, in the order in which they are read, and why the others cannot."""
    called = _calls(model, given)
    modules = dict(named_modules(model))
    stages: list[tuple[int, Stage]] = []
    skipped = {}
    for group in structure:
        try:
            sites = find_sites(model, structure.restricted([group]))
        except ValueError:
            sites = []
        why = _why_not(group, sites, modules, called)
        if why:
            skipped[group.name] = why
            continue
        readers = {site.module: _columns(modules[site.module], site.positions) for site in sites}
        stages.append((called[sites[0].module][0], Stage(group, readers)))
    return [stage for _, stage in sorted(stages, key=lambda pair: pair[0])], skipped


def _why_not(
    group: Group, sites: list[Site], modules: Mapping[str, nn.Module], called: Mapping[str, list[int]]
) -> str | None:
    if group.kind in ("head dim", "width"):
        return f"units of kind {group.kind!r} are not input channels of one layer"
    if group.certificate > Certificate.EXACT_AFTER_FOLD:
        return f"its removal is {str(group.certificate).lower()}"
    reads = [part for part in group.slices if part.role == "reads"]
    if (
        not reads
        or len(sites) != len(reads)
        or not all(s.reads and readable(modules[s.module]) for s in sites)
    ):
        names = ", ".join(repr(part.tensor) for part in reads) or "nothing"
        return f"read by {names}: linear layers and convolutions that are not grouped can be fitted"
    writers = [part.tensor.rpartition(".")[0] for part in group.writers]
    for name in [*writers, *(site.module for site in sites)]:
        if len(called.get(name, ())) != 1:
            return f"{name!r} runs {len(called.get(name, ()))} times in a forward pass, not once"
    first = min(called[site.module][0] for site in sites)
    late = [name for name in writers if called[name][0] > first]
    if late:
        return f"{late[0]!r} writes them too, after they are first read (a sum, or a gate)"
    return None


def _calls(model: nn.Module, given: Any) -> dict[str, list[int]]:
    """Return module name -> when it is called in a forward pass."""
    called: dict[str, list[int]] = {}
    clock = iter(range(1 << 62))
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: called.setdefault(name, []).append(next(clock))
        )
        for name, module in named_modules(model)
    ]
    args, kwargs = call_of(given)
    try:
        with as_found(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _columns(module: nn.Module, positions: Tensor) -> Tensor:
    """From input channels [units, k] to columns of the weight seen as a matrix."""
    each = module.weight[0, 0].numel()
    return (positions.cpu()[..., None] * each + torch.arange(each)).reshape(len(positions), -1)


def counts_of(
    structure: Structure,
    stages: list[Stage],
    skipped: Mapping[str, str],
    density: float | Mapping[str, float],
) -> dict[str, int]:
    """Return group -> how many of its units stay, for the groups that lose some."""
    if not stages:
        whys = "; ".join(f"{name!r}: {why}" for name, why in skipped.items()) or "it has no units"
        raise ValueError(f"he2017 can prune nothing of this model: {whys}")
    everything = EachUnit(structure, ())
    able = structure.restricted(stage.group for stage in stages)
    sizes = {group.name: group.size for group in able}
    if not isinstance(density, Mapping):
        wanted = dict.fromkeys(sizes, density)
    else:
        wanted = dict(density)
        for pattern, share in wanted.items():
            meant = list(asked_for({pattern: share}, everything.shapes, everything.aliases)[0])
            if meant and not any(name in sizes for name in meant):
                raise ValueError(f"he2017 cannot prune {meant[0]!r}: {skipped[meant[0]]}")
    units = EachUnit(able, ())
    groups = allocate(by_density(wanted), Budget(None, units.shapes, sizes, {}, aliases=units.aliases))
    asked, _ = asked_for(wanted, sizes, units.aliases)
    counts = {group.names[0]: max(1, group.kept) for group in groups if group.names[0] in asked}
    counts = {name: count for name, count in counts.items() if count < sizes[name]}
    if not counts:
        raise ValueError(f"density {density!r} leaves every unit")
    return counts
