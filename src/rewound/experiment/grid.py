"""A grid: a recipe with ``[grid]``, whose lists are gone through in every combination; each combination is one run.

    [grid]                                   several tables, [[grid]], are done one after the other
    rate = [0.2, 0.36]
    until = [0.5, "10x"]                     a value that is a list itself stands in a list of lists
    task_options.model = ["mlp", "resnet"]
    techniques = ["lr-rewinding"]            here and above: techniques and seeds are lists by themselves
    t = [5, 10]                              epochs of retraining, given to every technique
    controls = ["dense", "cyclic"]           for every run of the table also these: see rewound.experiment.controls

What a table does not name is as the recipe says above it. A run that two tables ask for is one run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rewound.experiment.controls import CONTROLS, controls_of
from rewound.experiment.keys import canonical, cell_of, key_of
from rewound.experiment.recipe import Recipe, make_recipe, read_data, to_toml, with_overrides
from rewound.experiment.toml_text import key_text, toml_value
from rewound.spelling import nearest

TABLES = ("task_options", "scope")
_OF_GRIDS = ("t", "controls")  # keys that no single run has
WHOLE = ("name", "folder", "workers", "threads")  # of all runs together


@dataclass(frozen=True)
class Grid:
    """``recipe``: what the runs have in common; ``tables``: what is gone through; ``runs``: key -> recipe of one technique
    and one seed, seed by seed, so that a grid cut short has compared everything on some seeds."""

    recipe: Recipe
    tables: tuple[Mapping[str, Any], ...]
    runs: Mapping[str, Recipe]

    @property
    def place(self) -> Path:
        """The grid's folder."""
        return self.recipe.place


def read_grid(path: str | Path, overrides: Iterable[str] = ()) -> Recipe | Grid:
    """Read a recipe's file; a :class:`Grid` where it has ``[grid]``, a :class:`Recipe` where not.

    Raises FileNotFoundError, or ValueError naming every wrong key with its dotted path.
    """
    return make_grid(read_data(path), overrides, origin=str(path), beside=Path(path).parent)


def make_grid(
    data: Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    origin: str = "recipe",
    beside: Path | None = None,
) -> Recipe | Grid:
    """Check a recipe or a grid given as a plain dict; ``origin`` names it in errors.

    >>> grid = make_grid({"task": "digits", "seeds": 2, "grid": {"rate": [0.2, 0.5], "techniques": ["lr-rewinding"]}})
    >>> [(run.seeds, run.rate) for run in grid.runs.values()]
    [((0,), 0.2), ((0,), 0.5), ((1,), 0.2), ((1,), 0.5)]
    >>> make_grid({"grid": {"scope": {"exlude": ["fc.*"]}}})
    Traceback (most recent call last):
    ValueError: recipe: unknown key 'grid.scope.exlude' (did you mean 'grid.scope.exclude'?)
    """
    merged = with_overrides(data, overrides)
    if "grid" not in merged:
        return make_recipe(merged, origin=origin, beside=beside)
    tables = merged.pop("grid")
    named = {"grid.": tables} if isinstance(tables, dict) else {}
    if isinstance(tables, list) and tables:
        named = {f"grid[{k}].": table for k, table in enumerate(tables)}
    if not named or not all(isinstance(table, dict) for table in named.values()):
        raise ValueError(f"{origin}: 'grid' must be a table, [grid], or several, [[grid]] (got {tables!r})")
    base = make_recipe(merged, origin=origin, beside=beside)
    runs: list[tuple[int, int, int, Recipe]] = []
    for index, (within, table) in enumerate(named.items()):
        for number, cell in enumerate(_combinations(table, within, origin)):
            recipe = make_recipe(_joined(merged, cell), origin=f"{origin}, {within[:-1]}", beside=beside)
            for place, seed in enumerate(recipe.seeds):
                for text in _with_t(recipe.techniques, cell.get("t"), f"{origin}: '{within}t'"):
                    one = recipe.model_copy(update={"techniques": (text,), "seeds": (seed,)})
                    try:
                        more = controls_of(one, cell.get("controls", ()))
                    except ValueError as error:
                        raise ValueError(f"{origin}: '{within}controls': {error}") from error
                    runs += [(place, index, number, run) for run in (one, *more)]
    runs.sort(key=lambda run: run[:3])
    by_key: dict[str, Recipe] = {}
    for *_, recipe in runs:
        try:
            by_key.setdefault(key_of(canonical(recipe)), recipe)
        except ValueError as error:  # of a technique's or a target's text, which names itself
            raise ValueError(f"{origin}: {error}") from error
    return Grid(base, tuple(named.values()), by_key)


def grid_toml(grid: Grid) -> str:
    """Return the grid as TOML text that reads back to an equal one."""
    lines = [to_toml(grid.recipe)]
    for table in grid.tables:
        lines += (
            ["[[grid]]"] + [f"{key_text(key)} = {toml_value(value)}" for key, value in table.items()] + [""]
        )
    return "\n".join(lines)


def labels(runs: Sequence[Recipe]) -> list[str]:
    """Return what people call each of the runs: its technique, what else is not the same in all of them, its seed.

    >>> labels([Recipe(techniques="lr-rewinding", seeds=[0], rate=rate) for rate in (0.2, 0.5)])
    ['lr-rewinding, rate 0.2, seed 0', 'lr-rewinding, rate 0.5, seed 0']
    """
    cells = [dict(_flat(cell_of(run))) for run in runs]
    keys = dict.fromkeys(key for cell in cells for key in cell if key not in ("technique", "seed"))
    apart = [key for key in keys if len({repr(cell.get(key)) for cell in cells}) > 1]

    def called(cell: Mapping[str, Any]) -> str:
        own = [f"{key.rpartition('.')[2]} {_said(cell[key])}" for key in apart if cell.get(key) is not None]
        return ", ".join([cell["technique"], *own, f"seed {cell['seed']}"])

    return [called(cell) for cell in cells]


def _combinations(table: Mapping[str, Any], within: str, origin: str) -> Iterator[dict[str, Any]]:
    """Every combination of the table's lists as dotted key -> value, each value checked by itself, so that an error names it."""
    axes: dict[str, list[Any]] = {}
    for key, value in _flat(table, TABLES):
        _check_key(key, within, origin)
        if key == "controls":
            choices = [_controls(value, f"{origin}: '{within}controls'")]
        elif key == "seeds" or (key == "techniques" and isinstance(value, list)):
            choices = [value]  # a list by itself, in a recipe too
        else:
            choices = value if isinstance(value, list) else [value]
        if value == []:
            raise ValueError(f"{origin}: '{within}{key}' is an empty list, so there would be no run")
        for choice in choices:
            if key == "controls":
                continue
            if key == "t":
                if type(choice) is not int or choice < 0:
                    raise ValueError(
                        f"{origin}: '{within}t' must be whole numbers of epochs (got {choice!r})"
                    )
            else:
                make_recipe(_joined({}, {key: choice}), origin=origin, within=within)
        axes[key] = choices
    for values in product(*axes.values()):
        yield dict(zip(axes, values))


def _check_key(key: str, within: str, origin: str) -> None:
    first = key.partition(".")[0]
    if first in WHOLE:
        raise ValueError(
            f"{origin}: '{within}{key}' is of the whole grid, not of a run; write it above, outside of [grid]"
        )
    known = [name for name in (*Recipe.model_fields, *_OF_GRIDS) if name not in WHOLE]
    if first not in known:
        raise ValueError(f"{origin}: unknown key '{within}{key}': {nearest(first, known)}")


def _joined(data: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain dict with a combination written over it."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for dotted, value in cell.items():
        table, dot, key = dotted.partition(".")
        if dot and table in TABLES:
            merged.setdefault(table, {})[key] = value
        elif dotted not in _OF_GRIDS:
            merged[dotted] = value
    return merged


def _controls(value: Any, where: str) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{where} must be a list of names: {', '.join(CONTROLS)} (got {value!r})")
    return tuple(found)


def _with_t(techniques: Sequence[str], t: int | None, where: str) -> list[str]:
    if t is None:
        return list(techniques)
    for text in techniques:
        if re.search(r"\d ?ep", text):
            raise ValueError(f"{where} is given to every technique, and {text!r} says its own")
    return [text + ("," if ":" in text else ":") + f"{t}ep" for text in techniques]


def _flat(table: Mapping[str, Any], tables: Sequence[str] = TABLES) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if key in tables and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
