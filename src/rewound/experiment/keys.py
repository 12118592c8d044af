"""The canonical form of a run, and the key that names its folder: one meaning, one form, on every machine and in every year.

The form holds what shapes a run's results and nothing else: not its name, where it lies, or how many run side by side. Keys
that joined later are left out at their defaults, so that old keys stay; ``tests/experiment/test_keys.py`` pins some.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rewound.experiment.recipe import Recipe, ScopeTable, task_name
from rewound.experiment.store import task_file

_LATER = ("multiple", "floor", "allow")
_TRAINING = ("format", "task", "source", "task_options", "data_order", "epochs", "threads", "seed")


def canonical(recipe: Recipe) -> dict[str, Any]:
    """Return the canonical form of a recipe with one technique and one seed, as JSON-able values.

    A technique and ``until`` are spelled in one way, whatever the recipe wrote; of a task's own file its checksum counts, not
    its place. Raises ValueError where they cannot be read.

    >>> one = Recipe(techniques="fine-tuning: 8 epochs", seeds=[1], until="20x")
    >>> canonical(one)["technique"], canonical(one)["until"]
    ('fine-tuning:8ep', {'density': 0.05})
    """
    from rewound.plan import parse_until
    from rewound.techniques import parse_technique

    (technique,), (seed,) = recipe.techniques, recipe.seeds
    plain, source = recipe.model_dump(mode="json"), task_file(recipe)
    until = None if recipe.target is None else asdict(parse_until(recipe.target))
    form: dict[str, Any] = {
        "format": 1,
        "task": task_name(recipe.task),
        "source": hashlib.sha256(source.read_bytes()).hexdigest() if source else None,
        "task_options": plain["task_options"],
        "data_order": recipe.data_order,
        "epochs": recipe.epochs,
        "threads": recipe.threads,
        "seed": seed,
        "technique": str(parse_technique(technique)),
        "rate": recipe.rate,
        "until": None if until is None else {k: v for k, v in until.items() if v is not None},
        "criterion": recipe.criterion,
        "pattern": plain["pattern"],
        "allocation": plain["allocation"],
    }
    form |= {key: plain[key] for key in _LATER if plain[key] != Recipe.model_fields[key].default}
    if recipe.scope != ScopeTable():
        form["scope"] = {key: value for key, value in plain["scope"].items() if value}
    return form


def key_of(form: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the SHA-256 of a canonical form.

    >>> key_of({"seed": 0, "rate": 0.2}) == key_of({"rate": 0.2, "seed": 0})
    True
    """
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def original_key(form: Mapping[str, Any]) -> str | None:
    """Return the key of what a run's original training depends on; runs that agree in it may share one. None where a run
    cannot share: criterion "movement" watches the training itself, and gradual pruning has no original run.

    >>> one = canonical(Recipe(techniques="lr-rewinding", seeds=[0]))
    >>> two = canonical(Recipe(techniques="fine-tuning:3ep", seeds=[0], rate=0.5, pattern="channel"))
    >>> original_key(one) == original_key(two), key_of(one) == key_of(two)
    (True, False)
    """
    from rewound.techniques import parse_technique

    if form["criterion"] == "movement" or parse_technique(form["technique"]).goes_on:
        return None
    return key_of({key: form[key] for key in _TRAINING})


def cell_of(recipe: Recipe) -> dict[str, Any]:
    """Return every key of a recipe that may set runs apart, as JSON-able values, spelled as in its canonical form.

    >>> cell = cell_of(Recipe(techniques="lr-rewinding", seeds=[2], until="20x", task_options={"width": 8}))
    >>> cell["technique"], cell["until"], cell["seed"], cell["task_options"]
    ('lr-rewinding', 0.05, 2, {'width': 8})
    """
    from rewound.plan import parse_until

    form = canonical(recipe)
    until = form.pop("until")
    if until is not None:
        until = until["density"] if [*until] == ["density"] else str(parse_until(recipe.target))
    later = {key: getattr(recipe, key) for key in _LATER}
    scope = {key: value for key, value in recipe.scope.model_dump(mode="json").items() if value}
    del form["format"], form["source"]
    return {**form, **later, "until": until, "scope": scope}
