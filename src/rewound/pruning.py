"""Decide what is pruned: scope . criterion . pattern . allocation -> Mask. The model is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rewound.allocation import Allocation, Budget, Group, allocate, as_allocation
from rewound.criteria import Criterion, as_criterion
from rewound.evidence import Evidence
from rewound.mask import Mask
from rewound.parameters import local, parameters_by_name, unwrap_model, whole
from rewound.patterns import Pattern, as_pattern
from rewound.scope import Scope, ScopeLike, as_scope, find_scope
from rewound.selection import select_best


def prune(
    model: nn.Module,
    density: float | None,
    *,
    criterion: str | Criterion = "magnitude",
    pattern: str = "weight",
    allocation: str | Mapping[str, float] | Allocation = "global",
    scope: ScopeLike = None,
    mask: Mask | None = None,
    evidence: Evidence | None = None,
    example: Any = None,
) -> Mask:
    """Return the mask that keeps exactly round(density * size) of the ``size`` weights in scope.
    ``model`` is not changed.

    density: kept / total over the whole scope, in (0, 1]; None with a mapping as allocation: what it does
    not name stays. criterion: "magnitude", "random", "gradient", "movement", or a function of Evidence.
    pattern: "weight". allocation: "global", "uniform", "erk", "lamp", a mapping name or glob -> density,
    or a function of a Budget. scope: see ``as_scope``; by default that of ``mask`` or ``evidence`` if
    given, else ``find_scope(model)``. mask: what is pruned already and stays so; the result is nested in
    it. evidence: what the criterion needs. example: one input, for patterns that must run the model; the
    pattern "weight" does not.

    Among equal scores the earlier position is kept (order of the scope, then index in the flattened
    tensor). A weight that happens to be zero is not pruned for that: it competes like any other.

    Raises ValueError if more is to be kept than ``mask`` has left, if a score is NaN, if nothing can be
    pruned, or if an argument is unknown or does not fit the model.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> mask = prune(model, density=0.2)
    >>> mask
    Mask(density 0.200, 2 tensors, 24 of 120 kept)
    >>> prune(model, density=0.1, mask=mask) <= mask
    True
    """
    if density is not None and (
        isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1
    ):
        raise ValueError(f"'density' must be in (0, 1] (got {density!r})")
    scoring, sharing, units = as_criterion(criterion), as_allocation(allocation), as_pattern(pattern)
    chosen = _scope(model, scope, mask, evidence)
    if evidence is None:
        evidence = Evidence(model, chosen)
    shapes = {name: p.shape for name, p in parameters_by_name(model).items() if name in chosen.sizes}
    kept = None if density is None else round(density * chosen.size)
    survivors = dict(chosen.sizes) if mask is None else _survivors(mask, shapes)
    if kept is not None and kept > sum(survivors.values()):
        left = sum(survivors.values())
        raise ValueError(
            f"density {density} asks to keep {kept:,} of {chosen.size:,} weights, and the mask has only "
            f"{left:,} left (density {left / chosen.size:.6g}): pruned stays pruned, so ask for at most that"
        )
    scores = units.unit_scores(_checked(scoring(evidence), shapes, scoring))
    among = None if mask is None else units.unit_mask(mask)
    groups = allocate(sharing, Budget(kept, shapes, survivors, scores, among))
    decided = _select(groups, scores, among)
    devices = {name: local(p).device for name, p in parameters_by_name(model).items() if name in shapes}
    return _in_order(decided, units, shapes, devices)


def _select(
    groups: list[Group], scores: Mapping[str, Tensor], among: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    for group in groups:
        if group.ranking is None:
            yield from select_best(scores, group.kept, among=among, names=group.names)
        else:
            ranked = select_best(group.ranking, group.kept, among=among, names=group.names)
            counts = {name: int(kept.count_nonzero()) for name, kept in ranked}
            for name in group.names:
                yield from select_best(scores, counts[name], among=among, names=(name,))


def _in_order(
    decided: Iterator[tuple[str, Tensor]],
    units: Pattern,
    shapes: Mapping[str, torch.Size],
    devices: Mapping[str, torch.device],
) -> Mask:
    """Make the Mask in the order of the scope, whatever order the groups came in."""

    def finished() -> Iterator[tuple[str, Tensor]]:
        waiting: dict[str, Tensor] = {}
        names = iter(shapes)
        wanted = next(names, None)
        for decided_name, kept in decided:
            waiting[decided_name] = kept
            while wanted in waiting:
                name = str(wanted)
                yield name, units.weight_mask(waiting.pop(name), shapes[name]).to(devices[name])
                wanted = next(names, None)

    return Mask(finished())


def _scope(model: nn.Module, scope: ScopeLike, mask: Mask | None, evidence: Evidence | None) -> Scope:
    """Return the scope, and see to it that mask and evidence speak of the same tensors."""
    if evidence is not None and not isinstance(evidence, Evidence):
        raise TypeError(f"'evidence' must be an Evidence (got {type(evidence).__name__})")
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(
            f"'mask' must be a Mask (got {type(mask).__name__}): make it with Mask({{name: bool tensor}})"
        )
    if evidence is not None and evidence.model is not unwrap_model(model):
        raise ValueError("'evidence' was taken from another model: make it with this one")
    if scope is not None:
        chosen = as_scope(model, scope)
    elif evidence is not None:
        chosen = evidence.scope
    elif mask is not None:
        chosen = find_scope(model, include=list(mask))
    else:
        chosen = as_scope(model, None)
    for what, names in (("mask", mask), ("evidence", None if evidence is None else evidence.names)):
        odd = sorted(set(names) ^ set(chosen.names)) if names is not None else []
        if odd:
            where = "the scope" if odd[0] in chosen.sizes else f"'{what}'"
            raise ValueError(
                f"'{what}' and the scope must be of the same tensors; {odd[0]!r} is only in {where} "
                f"({len(odd)} differ{'s' if len(odd) == 1 else ''})"
            )
    return chosen


def _survivors(mask: Mask, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    for name, shape in shapes.items():
        if mask[name].shape != shape:
            raise ValueError(
                f"the mask of {name!r} is {tuple(mask[name].shape)}, the weight {tuple(shape)}: "
                "the mask is another model's"
            )
    return {name: mask.counts[name] for name in shapes}


def _checked(scores: Any, shapes: Mapping[str, torch.Size], criterion: Criterion) -> Mapping[str, Tensor]:
    """Check what a criterion returned; NaN is looked for where the scores are read."""
    title = getattr(criterion, "__name__", type(criterion).__name__)
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"criterion {title!r} must return a mapping name -> scores (got {type(scores).__name__})"
        )
    missing = [name for name in shapes if name not in scores]
    if missing:
        raise ValueError(
            f"criterion {title!r} returned no scores for {missing[0]!r} ({len(missing)} missing)"
        )
    if hasattr(scores, "open"):  # computed in pieces from tensors of the right shape
        return scores
    unknown = [name for name in scores if name not in shapes]
    if unknown:
        raise ValueError(f"criterion {title!r} returned scores for {unknown[0]!r}, which is not in scope")
    for name, shape in shapes.items():
        tensor = scores[name]
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"criterion {title!r}: the scores of {name!r} must be a tensor (got {type(tensor).__name__})"
            )
        if tensor.shape != shape:
            raise ValueError(
                f"criterion {title!r}: the scores of {name!r} are {tuple(tensor.shape)}, "
                f"the weight {tuple(shape)}"
            )
    if any(hasattr(scores[name], "full_tensor") for name in shapes):
        return {name: whole(scores[name]) for name in shapes}
    return scores
