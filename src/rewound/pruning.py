"""Decide what is pruned: scope . criterion . pattern . allocation -> Mask. The model is only read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rewound.allocation import Allocation, Budget, Group, allocate, as_allocation
from rewound.compaction.units import Certificate, Structure
from rewound.criteria import Criterion, as_criterion
from rewound.evidence import Evidence
from rewound.mask import Mask
from rewound.measure.cost import multiply_adds_each
from rewound.parameters import local, parameters_by_name, unwrap_model, whole
from rewound.patterns.binding import bind, find_pattern, narrowed, warn_of_misfits
from rewound.patterns.layout import input_first
from rewound.patterns.n_of_m import NofM
from rewound.patterns.structures import Kinds
from rewound.patterns.units import EachUnit, EachWeight, Units
from rewound.patterns.widths import floors, to_multiples
from rewound.scope import Scope, ScopeLike, as_scope, find_scope
from rewound.selection import select_best
from rewound.widths.goals import read_goal

SPARSE_FLOOR = 0.01  # of every tensor's weights, where they are weighed against their cost: else costly layers are emptied
FLOOR = 0.05  # of the units of every group, where all compete: a global ranking of units likes to empty whole layers


def prune(
    model: nn.Module,
    density: float | None,
    *,
    criterion: str | Criterion = "magnitude",
    pattern: str | tuple[str, ...] | Structure = "weight",
    allocation: str | Mapping[str, float] | Allocation = "global",
    scope: ScopeLike = None,
    mask: Mask | None = None,
    evidence: Evidence | None = None,
    example: Any = None,
    multiple: int = 1,
    floor: float | None = None,
    allow: str | Certificate = "exact after fold",
) -> Mask:
    """Return the mask that keeps exactly round(density * size) of the ``size`` weights (blocks, units) that may be
    pruned. ``model`` is not changed.

    Args:
        density: kept / total over the whole scope, in (0, 1]; None with a mapping as allocation: what it does not name
            stays. It counts what the pattern decides about: units for "channel" (half the channels is about a quarter of
            their weights; the mask tells both), blocks for "4x1". None or n/m for "n:m".
        criterion: "magnitude", "random", "gradient", "movement", or a function of Evidence. A unit's score is the mean over
            the weights that write it, a block's the mean over its weights; criteria marked by ``evidence.of_units`` score
            units themselves.
        pattern: "weight"; blocks of rows x columns ("2x1", "4x1", "1x4") of each weight as a matrix [out, everything else];
            "n:m" ("2:4") along the input axis; "channel", "filter" (channels that one convolution alone writes), "hidden
            unit", "head", "unit" (all of these), a tuple of those and of names of groups, or a ``Structure``: all its units.
        allocation: "global", "uniform", "erk", "lamp", "cost", a mapping name or glob -> density, or a function of a Budget.
            "cost" weighs each weight against the multiply-adds it causes. For units, names are those of the groups or of the
            weights that write them; "erk" and "cost" are for weights and blocks. ``for_multiply_adds(0.1)``,
            ``for_speedup(4.0)`` and ``for_parameters(0.3)`` ask for a result, and ``density`` is None; of weights and blocks
            ``for_multiply_adds`` takes a density as well, and meets both.
        scope: see ``as_scope``; by default that of ``mask`` or ``evidence`` if given, else ``find_scope(model)``. Units are
            candidates if all weights that write them are in scope; by default only those that ``mask`` counts, if any.
        mask: what is pruned already and stays so; the result is nested in it.
        evidence: what the criterion needs.
        example: one input (a tensor, a tuple of positional or a dict of keyword arguments): the model is run once to see
            which weights leave together, or how many multiply-adds each causes. Only for patterns of units, and for what counts
            multiply-adds.
        multiple: of units that every group keeps (or all of it), such as 8.
        floor: share of its units (or blocks, weights) that every group keeps at least; by default 0.05 for units that compete
            (allocation "global", for_speedup and its like); 0.01, and at most a quarter of ``density``, for weights and blocks
            that are weighed against their cost ("cost", for_multiply_adds, for_speedup); else 0. A group of units never loses
            its last one.
        allow: the least exact removal admitted: "exact", "exact after fold", "exact after rescale", "approximate".

    The mask of units covers all parameters they touch: weights that write them and that read them, biases, norms.

    Among equal scores the earlier position is kept (order of the scope, then index in the flattened
    tensor). A weight that happens to be zero is not pruned for that: it competes like any other. Where floors or multiples
    make the exact number of units impossible, the nearest is taken, and the mask tells the true density.

    Raises ValueError if more is to be kept than ``mask`` has left, if a score is NaN, if nothing can be
    pruned (with the reasons), or if an argument is unknown or does not fit the model.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> mask = prune(model, density=0.2)
    >>> mask
    Mask(density 0.200, 2 tensors, 24 of 120 kept)
    >>> prune(model, density=0.1, mask=mask) <= mask
    True
    >>> prune(model, density=0.5, pattern="2x1")
    Mask(density 0.500, 2 tensors, 60 of 120 kept; 0.500 of units, 30 of 60)
    """
    if density is not None and (
        isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1
    ):
        raise ValueError(f"'density' must be in (0, 1] (got {density!r})")
    scoring, how = as_criterion(criterion), find_pattern(model, pattern, example)
    allocation = read_goal(allocation)
    as_allocation(allocation)  # an unknown name is refused now
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(
            f"'mask' must be a Mask (got {type(mask).__name__}): make it with Mask({{name: bool tensor}})"
        )
    # A mask of units covers biases and norms too, so that its names are no scope.
    chosen = _scope(model, scope, None if isinstance(how, Kinds) else mask, evidence)
    if evidence is None:
        evidence = Evidence(model, chosen, example=example)
    if isinstance(how, NofM):
        if (allocation, multiple, floor) != ("global", 1, None):
            raise ValueError(
                f"pattern '{how}' says itself how much of every weight is kept: leave out allocation, multiple and floor"
            )
        how.check_density(density)
        return _n_of_m(model, how, scoring, chosen, mask, evidence)
    only = mask.units if mask is not None and scope is None else None
    units = bind(model, how, chosen, allow, only)
    cap = _cap(units, allocation, multiple, floor, density)
    _require_fitting(mask, model)
    among = None if mask is None else units.alive(mask)
    sizes = {name: shape.numel() for name, shape in units.shapes.items()}
    survivors = sizes if among is None else _survivors(among)
    kept = _kept(density, sum(sizes.values()), sum(survivors.values()), units.what)
    least = None if cap is None else floors(sizes, survivors, cap)
    if kept is not None and least is not None:
        kept = max(kept, sum(least.values()))
    scores = _unit_scores(scoring, evidence, chosen, units, mask)
    budget = Budget(
        kept, units.shapes, survivors, scores, among, units.what, least, units.tensors, units.aliases,
        None if example is None else lambda: multiply_adds_each(model, example),
    )  # fmt: skip
    if getattr(allocation, "plans_network", False):
        answer = allocation.plan(  # type: ignore[union-attr]
            budget, model=model, units=units, mask=mask, example=example, multiple=multiple
        )
        groups = allocate(lambda _: answer, budget)
    else:
        groups = allocate(as_allocation(allocation), budget)
    if least is not None:
        counts = to_multiples(_capped(groups, budget), sizes, survivors, least, multiple)
        groups = [Group((name,), count) for name, count in counts.items()]
    decided = _select(groups, scores, among)
    if isinstance(units, EachWeight):
        return Mask(_in_order(model, units.masks(decided, mask), units.shapes))
    staying = dict(decided)
    told = {name: (int(staying[name].count_nonzero()), size) for name, size in sizes.items()}
    covered = {*units.covers, *(mask or ())}
    return Mask(_in_order(model, units.masks(staying.items(), mask), covered), units=told)


def _n_of_m(
    model: nn.Module,
    pattern: NofM,
    scoring: Criterion,
    asked: Scope,
    mask: Mask | None,
    evidence: Evidence,
) -> Mask:
    """Keep the best n of every m; a weight whose input axis does not divide is left out, or as ``mask`` has it."""
    fitting, turned = narrowed(pattern, asked, model), input_first(model)
    warn_of_misfits(pattern, asked, fitting)
    _require_fitting(mask, model)
    scores = _weight_scores(scoring, evidence, asked)

    def decided() -> Iterator[tuple[str, Tensor]]:
        for name in asked.names:
            before = None if mask is None else mask[name]
            if name in fitting.sizes:
                try:
                    yield name, pattern.best(scores[name], name in turned, before)
                except ValueError as error:
                    raise ValueError(f"{name!r}: {error}") from None
            elif before is not None:
                yield name, before

    return Mask(_in_order(model, decided(), fitting.sizes if mask is None else mask))


def _survivors(among: Mapping[str, Tensor]) -> dict[str, int]:
    if isinstance(among, Mask):  # it may have counted already
        return among.counts
    return {name: int(units.count_nonzero()) for name, units in among.items()}


def _kept(density: float | None, size: int, left: int, what: str) -> int | None:
    kept = None if density is None else round(density * size)
    if kept is not None and kept > left:
        raise ValueError(
            f"density {density} asks to keep {kept:,} of {size:,} {what}, and the mask has only "
            f"{left:,} left (density {left / size:.6g}): pruned stays pruned, so ask for at most that"
        )
    return kept


def _cap(
    units: Units, allocation: Any, multiple: int, floor: float | None, density: float | None
) -> float | None:
    """Return the share that every group keeps at least; None where one may lose everything."""
    if type(multiple) is not int or multiple < 1:
        raise ValueError(f"'multiple' must be a whole number from 1 (got {multiple!r})")
    if floor is not None and (
        isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1
    ):
        raise ValueError(f"'floor' must be a share in [0, 1], or None (got {floor!r})")
    plans = getattr(allocation, "plans_network", False)
    if isinstance(units, EachUnit):
        compete = plans or allocation == "global"
        return floor if floor is not None else FLOOR if compete else 0.0
    if multiple != 1:
        raise ValueError(
            f"'multiple' is for units such as channels, and this pattern prunes {units.what}: leave it out"
        )
    if floor is None and (plans or allocation == "cost"):
        return SPARSE_FLOOR if density is None else min(SPARSE_FLOOR, density / 4)
    return floor or None


def _capped(groups: list[Group], budget: Budget) -> dict[str, int]:
    """Return how many each name keeps: its least first, the rest by competition."""
    counts: dict[str, int] = {}
    least = budget.least or {}
    for group in groups:
        ranking = budget.scores if group.ranking is None else group.ranking
        rest: dict[str, Tensor] = {}
        for name in group.names:
            _, first = next(iter(select_best(ranking, least[name], among=budget.among, names=(name,))))
            rest[name] = ~first if budget.among is None else budget.among[name].to(first.device) & ~first
        spare = max(0, group.kept - budget.least_of(group.names))
        for name, more in select_best(ranking, spare, among=rest, names=group.names):
            counts[name] = least[name] + int(more.count_nonzero())
    return {name: counts[name] for name in budget.shapes}


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
    model: nn.Module, decided: Iterable[tuple[str, Tensor]], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the masks of ``names`` in the order of the model, whatever order they came in, each on its weight's device."""
    wanted = set(names)
    parameters = {name: p for name, p in parameters_by_name(model).items() if name in wanted}
    waiting: dict[str, Tensor] = {}
    order = iter(parameters)
    following = next(order, None)
    for decided_name, kept in decided:
        waiting[decided_name] = kept
        while following in waiting:
            name = str(following)
            yield name, waiting.pop(name).to(local(parameters[name]).device)
            following = next(order, None)


def _scope(model: nn.Module, scope: ScopeLike, mask: Mask | None, evidence: Evidence | None) -> Scope:
    """Return the scope, and see to it that mask and evidence speak of the same tensors."""
    if evidence is not None and not isinstance(evidence, Evidence):
        raise TypeError(f"'evidence' must be an Evidence (got {type(evidence).__name__})")
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


def _require_fitting(mask: Mask | None, model: nn.Module) -> None:
    shapes = {name: p.shape for name, p in parameters_by_name(model).items()}
    for name, kept in (mask or {}).items():
        if kept.shape != shapes.get(name):
            there = (
                f"the weight {tuple(shapes[name])}" if name in shapes else "the model has no such parameter"
            )
            raise ValueError(
                f"the mask of {name!r} is {tuple(kept.shape)}, {there}: the mask is another model's"
            )


def _unit_scores(
    scoring: Criterion, evidence: Evidence, scope: Scope, units: Units, mask: Mask | None
) -> Mapping[str, Tensor]:
    """Return the scores of the units: the criterion's own, or made of those of the weights."""
    if not isinstance(units, EachUnit):
        return units.scores(_weight_scores(scoring, evidence, scope), mask)
    evidence = evidence.with_structure(units.structure)
    found = scoring(evidence)
    own = isinstance(found, Mapping) and set(units.shapes) <= set(found)
    if own or getattr(scoring, "of_units", False):
        return _checked(found, units.shapes, scoring, "group")
    return units.scores(_checked(found, _shapes(evidence, scope), scoring), mask)


def _weight_scores(scoring: Criterion, evidence: Evidence, scope: Scope) -> Mapping[str, Tensor]:
    if getattr(scoring, "of_units", False):
        raise ValueError(
            f"criterion {_title(scoring)!r} scores units such as channels: give pattern='channel' (or 'unit') and an example"
        )
    return _checked(scoring(evidence), _shapes(evidence, scope), scoring)


def _shapes(evidence: Evidence, scope: Scope) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in parameters_by_name(evidence.model).items() if name in scope.sizes}


def _checked(
    scores: Any, shapes: Mapping[str, torch.Size], criterion: Criterion, what: str = "weight"
) -> Mapping[str, Tensor]:
    """Check what a criterion returned; NaN is looked for where the scores are read."""
    title = _title(criterion)
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"criterion {title!r} must return a mapping name -> scores (got {type(scores).__name__})"
        )
    known = set(scores)  # asking a mapping that computes its tensors would compute them
    missing = [name for name in shapes if name not in known]
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
                f"the {what} {tuple(shape)}"
            )
    if any(hasattr(scores[name], "full_tensor") for name in shapes):
        return {name: whole(scores[name]) for name in shapes}
    return scores


def _title(criterion: Criterion) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)
