"""From what the user calls a pattern to the units of his model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rewound.compaction.units import Certificate, Structure
from rewound.parameters import parameters_by_name, unwrap_model
from rewound.patterns import Pattern, as_pattern
from rewound.patterns.blocks import Blocks
from rewound.patterns.layout import input_first
from rewound.patterns.n_of_m import NofM
from rewound.patterns.structures import Kinds, candidates
from rewound.patterns.units import EachBlock, EachUnit, EachWeight, Units
from rewound.scope import Scope


def find_pattern(model: nn.Module, pattern: Any, example: Any = None) -> Pattern:
    """Return the pattern; that of units with the structure of ``model``, found by running it once on ``example``.

    ValueError for an unknown pattern, and for units without an example.
    """
    if isinstance(pattern, str) and example is not None:
        try:
            how = as_pattern(pattern)
        except ValueError:  # the name of a group, or of nothing at all: the structure tells
            structure = _find_units(model, example)
            how = as_pattern(pattern, [group.name for group in structure])
            return Kinds(how.asked, structure) if isinstance(how, Kinds) else how
    else:
        how = as_pattern(pattern)
    if not isinstance(how, Kinds) or how.structure is not None:
        return how
    if example is None:
        raise ValueError(
            f"pattern '{how}' must run the model once, to see which weights leave together: pass example=one input (a tensor, "
            "a tuple of positional or a dict of keyword arguments)"
        )
    return Kinds(how.asked, _find_units(model, example))


def bind(
    model: nn.Module,
    pattern: Pattern,
    scope: Scope,
    allow: str | Certificate = Certificate.EXACT_AFTER_FOLD,
    only: Iterable[str] | None = None,
) -> Units:
    """Return the units of ``model`` that ``pattern``, with its structure found, may prune in ``scope``.

    n:m counts single weights: those of ``narrowed(pattern, scope, model)``. only: where any of these groups is a candidate,
    no other is. ValueError where there are none.
    """
    shapes = {name: p.shape for name, p in parameters_by_name(model).items()}
    if isinstance(pattern, Kinds):
        assert pattern.structure is not None
        _require_fitting(pattern.structure, shapes)
        wanted = {group.name for group in pattern.structure if pattern.wants(group)}
        limited = wanted.intersection(only or ()) or None
        return EachUnit(candidates(pattern.structure, pattern, scope, allow, limited), shapes)
    scoped = {name: shapes[name] for name in shapes if name in narrowed(pattern, scope, model).sizes}
    if isinstance(pattern, Blocks):
        return EachBlock(pattern, scoped, input_first(model) & scoped.keys())
    return EachWeight(scoped)


def narrowed(pattern: Pattern, scope: Scope, model: nn.Module) -> Scope:
    """Return the part of the scope that the pattern fits, with reasons for the rest."""
    return pattern.fitting(scope, model) if isinstance(pattern, NofM) else scope


def warn_of_misfits(pattern: Pattern, asked: Scope, fitting: Scope) -> None:
    """Say which weights in scope stay as they are because the pattern does not fit them."""
    left = [name for name in asked.names if name not in fitting.sizes]
    if left:
        more = f", and so do {len(left) - 1} more" if len(left) > 1 else ""
        warnings.warn(
            f"{left[0]!r} stays as it is under pattern '{pattern}': {fitting.reasons[left[0]]}{more}; leave it out of the scope "
            "to hear no more of it",
            stacklevel=4,
        )


def _find_units(model: nn.Module, example: Any) -> Structure:
    # torch.export is slow to import, and most prune weights
    from rewound.compaction.coupling import find_units

    return find_units(unwrap_model(model), example)


def _require_fitting(structure: Structure, shapes: Mapping[str, torch.Size]) -> None:
    for name in structure.shapes:
        if name in structure.parameters and shapes.get(name) != structure.shapes[name]:
            found = "no such parameter" if name not in shapes else f"{tuple(shapes[name])}"
            raise ValueError(
                f"the structure has {name!r} of shape {tuple(structure.shapes[name])}, the model {found}: find the units of "
                "this model"
            )
