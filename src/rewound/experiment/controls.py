"""Controls: the runs that a comparison is worth nothing without, each made from the run that it is a control of.

    random-mask        the same, pruned at random: is the criterion worth anything?
    layerwise-random   at random, every tensor to the same density: is it more than how many weights each layer keeps?
    reinitialization   fresh weights under each mask, retrained for as long: is it more than the mask?
    dense              nothing pruned, one training of as many epochs in all: is it more than longer training?
    cyclic             nothing pruned, the schedule repeated round by round: is it more than a cyclic learning rate?
    budgeted           BIMP with as many epochs in all, the dense phase included: is it more than its budget?

(Blalock et al. 2020, section 7, asks for random pruning; Renda et al. 2020 re-initialise; Gadhikar et al. 2024 show that
training of equal length explains much of what rewinding gains at moderate sparsity; Zimmer et al. 2023 budget.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewound.experiment.recipe import ONE_SHOT, Recipe
from rewound.spelling import unknown

CONTROLS = ("random-mask", "layerwise-random", "reinitialization", "dense", "cyclic", "budgeted")
_OF_ROUNDS = ("reinitialization", "cyclic", "budgeted")  # gradual pruning has no rounds to repeat
_MANY = 10**6  # weights: how many rounds it takes to a density hardly depends on it
# What a run that prunes nothing says nothing about: the same control serves every criterion, pattern and allocation.
_OF_PRUNING = {"criterion": "magnitude", "pattern": "weight", "allocation": "global"}


def control(name: str, cell: Mapping[str, Any], *, epochs: int, rounds: int) -> dict[str, Any]:
    """Return the cell of the control ``name`` for the run of ``cell``, the keys of a recipe in which runs differ.

    epochs: T of that run. rounds: how many times it prunes, one for one-shot. The seed and all else stay as they are.
    Raises ``ValueError`` for an unknown name, or a control of gradual pruning that has no rounds to repeat.

    >>> cell = {"technique": "lr-rewinding", "rate": 0.2, "until": 0.05, "seed": 0}
    >>> control("dense", cell, epochs=20, rounds=14)["epochs"], control("dense", cell, epochs=20, rounds=14)["until"]
    (300, '0 rounds')
    """
    from rewound.techniques import parse_technique

    if name not in CONTROLS:
        raise ValueError(unknown("control", name, CONTROLS))
    technique = parse_technique(cell["technique"])
    t = 0 if technique.goes_on else technique.length(epochs)
    if name == "random-mask":
        return {**cell, "criterion": "random"}
    if name == "layerwise-random":
        return {**cell, "criterion": "random", "allocation": "uniform"}
    if name == "dense":
        total = epochs + rounds * t
        nothing = {"rate": 0.0, "until": "0 rounds", "technique": "lr-rewinding"}
        return {**cell, **_plain(cell), **nothing, "epochs": total}
    if name == "budgeted":
        from rewound.papers.zimmer2023 import budgeted
        from rewound.plan import parse_until

        density = parse_until(cell["until"]).density
        if density is None:
            raise ValueError(
                f"'budgeted' goes to a density, and this run ends at {cell['until']!r}; give it 'until' a density"
            )
        found = budgeted(epochs + rounds * t, density, rounds=rounds)
        return {**cell, **found, "technique": str(found["technique"])}
    if technique.goes_on:
        raise ValueError(
            f"{technique} is one training, of which there is no {name!r} control; its controls are 'random-mask', "
            "'layerwise-random' and 'dense'"
        )
    if name == "reinitialization":
        return {**cell, "technique": f"reinitialization:{t}ep"}
    return {
        **cell,
        **_plain(cell),
        "rate": 0.0,
        "until": f"{rounds} rounds",
        "technique": f"lr-rewinding:{t}ep",
    }


def controls_of(recipe: Recipe, names: Sequence[str]) -> list[Recipe]:
    """Return the controls of a recipe with one technique and one seed; none for one that prunes nothing.

    Of gradual pruning, those that it has. Raises ``ValueError`` where the number of epochs is not known beforehand: a recipe
    without ``epochs``, or rounds that a metric ends.
    """
    from rewound.plan import kept_by_round, parse_until
    from rewound.techniques import parse_technique

    if not names or recipe.rate == 0:
        return []
    until = None if recipe.target is None else parse_until(recipe.target)
    if recipe.epochs is None or until is None or until.metric is not None:
        raise ValueError(
            "controls train for as many epochs: give 'epochs', and 'until' as a density or a number of rounds"
        )
    (text,) = recipe.techniques
    goes_on, one_shot = parse_technique(text).goes_on, recipe.rate == ONE_SHOT
    rounds = 1 if one_shot or goes_on else len(kept_by_round(_MANY, float(recipe.rate), until))
    cell = {
        "technique": text, "epochs": recipe.epochs, "rate": recipe.rate, "until": recipe.target,
        "criterion": recipe.criterion, "pattern": recipe.pattern, "allocation": recipe.allocation,
    }  # fmt: skip
    found = []
    for name in names:
        if goes_on and name in _OF_ROUNDS:
            continue
        changed = control(name, cell, epochs=recipe.epochs, rounds=rounds)
        techniques = (changed.pop("technique"),)
        found.append(recipe.model_copy(update={"techniques": techniques, **changed}))
    return found


def _plain(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _OF_PRUNING.items() if key in cell}
