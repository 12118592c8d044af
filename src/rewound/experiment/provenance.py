"""What results were found with: the fingerprints of the data, the versions of the packages that compute."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from rewound.experiment.arms import task_key
from rewound.experiment.recipe import Recipe, task_name

_PACKAGES = ("rewound", "torch", "numpy")


def fingerprints(recipes: Iterable[Recipe], tasks: Callable[[Recipe], Any]) -> dict[str, str]:
    """Return task -> fingerprint of its data (see :mod:`rewound.tasks.fingerprint`), without the tasks that tell none.

    ``tasks`` makes a recipe's task. Where the data of one task are not the same under all its options, each stands with its own.

    >>> from rewound.experiment.arms import task_keeper
    >>> [*fingerprints([Recipe(task="digits"), Recipe(task="digits", task_options={"lr": 0.2})], task_keeper())]
    ['digits']
    """
    from rewound.tasks.fingerprint import fingerprint_of

    told: dict[str, dict[str, str]] = {}
    for recipe in {task_key(recipe): recipe for recipe in recipes}.values():
        if (found := fingerprint_of(tasks(recipe))) is not None:
            options = json.dumps(recipe.task_options, sort_keys=True)
            told.setdefault(task_name(recipe.task), {})[options] = found
    return {
        name if len({*by_options.values()}) == 1 else f"{name} {options}": found
        for name, by_options in told.items()
        for options, found in by_options.items()
    }


def versions() -> dict[str, str]:
    """Return the versions of rewound, of what it computes with, and of Python."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {**found, "python": platform.python_version()}
