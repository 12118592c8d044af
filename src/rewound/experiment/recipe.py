"""A recipe: one experiment as a text file (TOML), checked before anything runs.

    task       what is trained               techniques x seeds   the arms, each one run of Algorithm 1
    rate       how much a round prunes       until                where it ends

Unknown keys are errors that name the nearest known one. A recipe is a frozen value; ``to_toml`` gives it back
as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from rewound.experiment.toml_text import key_text, parse_value, toml_value, tomllib
from rewound.spelling import closest

ONE_SHOT = "one-shot"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seeds(value: object) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"must be at least 1 (got {value})")
        return tuple(range(value))
    found = list(value) if isinstance(value, (list, tuple)) else []
    if not found or not all(type(v) is int and v >= 0 for v in found):
        raise ValueError(f"must be a count (3) or a list of whole numbers ([0, 1, 2]) (got {value!r})")
    if len(set(found)) < len(found):
        raise ValueError(f"names a seed twice (got {value!r})")
    return tuple(found)


def _texts(value: object) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(v, str) for v in found):
        raise ValueError(f"must be a text or a list of texts (got {value!r})")
    return tuple(found)


def _rate(value: object) -> float | str:
    if value == ONE_SHOT:
        return ONE_SHOT
    if not _is_number(value) or not 0 <= value < 1:  # type: ignore[operator]
        raise ValueError(
            f'must be in [0, 1), the fraction of survivors a round prunes (0 is a control), or "one-shot" (got {value!r})'
        )
    return float(value)  # type: ignore[arg-type]


def _until(value: object) -> float | str | tuple[float | str, ...]:
    if isinstance(value, (list, tuple)) and value:
        return tuple(_until(v) for v in value)  # type: ignore[misc]
    if isinstance(value, str):
        return value
    if not _is_number(value) or not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(
            'must be a density in (0, 1), "20x", "10 rounds", "accuracy drops 0.01", or a list of these '
            f"(got {value!r})"
        )
    return float(value)  # type: ignore[arg-type]


def _allocation(value: object) -> str | dict[str, float]:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and value and all(_is_number(v) for v in value.values()):
        return {str(k): float(v) for k, v in value.items()}
    raise ValueError(
        f"must be a name (global, uniform, erk, lamp, cost, for_multiply_adds(0.1)) or a table of name = density (got {value!r})"
    )


def _pattern(value: object) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else _texts(value)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class ScopeTable(BaseModel):
    """Which tensors may be pruned: names or glob patterns. Left out: what ``find_scope`` finds by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: Texts = ()
    exclude: Texts = ()
    embeddings: bool = False


class Recipe(BaseModel):
    """One experiment: every technique with every seed, on one task.

    >>> recipe = Recipe(name="mine", task="digits", seeds=2, until="20x")
    >>> recipe.seeds, recipe.techniques
    ((0, 1), ('fine-tuning', 'weight-rewinding', 'lr-rewinding'))
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
    task: str = "digits"
    task_options: dict[str, Any] = {}
    techniques: Texts = ("fine-tuning", "weight-rewinding", "lr-rewinding")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = (0, 1, 2)
    epochs: int | None = Field(default=None, ge=1)
    rate: Annotated[float | str, PlainValidator(_rate)] = 0.2
    until: Annotated[Any, PlainValidator(_until)] = None
    criterion: str = "magnitude"
    pattern: Annotated[Any, PlainValidator(_pattern)] = "weight"
    allocation: Annotated[Any, PlainValidator(_allocation)] = "global"
    multiple: int = Field(default=1, ge=1)
    floor: float | None = Field(default=None, ge=0, le=1)
    allow: str = "exact after fold"
    scope: ScopeTable = ScopeTable()
    data_order: Literal["rewind", "fresh"] = "rewind"
    threads: int = Field(default=1, ge=1)
    workers: int = Field(default=2, ge=1)
    folder: str | None = None

    @property
    def target(self) -> Any:
        """``until``; left out, density 0.05, or what an allocation by tensor or a pattern n:m says itself."""
        says_itself = not isinstance(self.allocation, str) or ":" in self.pattern
        return 0.05 if self.until is None and not says_itself else self.until

    @property
    def place(self) -> Path:
        """The experiment's folder: ``folder``, or ``runs/NAME``."""
        return Path(self.folder) if self.folder else Path("runs") / self.name


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a TOML file and apply ``a.b=c`` overrides.

    A task given as a file (``my_task.py:MyTask``) is looked for beside the recipe first, then where you are.

    Raises FileNotFoundError, or ValueError naming every wrong key with its dotted path.
    """
    return make_recipe(read_data(path), overrides, origin=str(path), beside=Path(path).parent)


def read_data(path: str | Path) -> dict[str, Any]:
    """Return what a recipe's file says, unchecked, with a name; FileNotFoundError, or ValueError for what is no TOML."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        there = f"; there is {', '.join(near[:5])}" if near else "; 'rewound new recipe.toml' writes one"
        raise FileNotFoundError(f"there is no recipe {str(path)!r}{there}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    data.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem))
    return data


def make_recipe(
    data: Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    origin: str = "recipe",
    beside: Path | None = None,
    within: str = "",
) -> Recipe:
    """Check a recipe given as a plain dict; ``origin`` names it in errors, ``within`` what its dotted paths begin with.

    >>> make_recipe({"task": "digits"}, ["scope.exlude=fc*"])
    Traceback (most recent call last):
    ValueError: recipe: unknown key 'scope.exlude' (did you mean 'scope.exclude'?)
    """
    merged = with_overrides(data, overrides)
    try:  # strict through JSON: arrays may become tuples, but "3" does not become 3
        recipe = Recipe.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise ValueError(f"{origin}: " + "; ".join(_say(e, within) for e in error.errors())) from None
    return recipe.model_copy(update={"task": _find_task_file(recipe.task, beside)})


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with ``a.b=c`` texts applied."""
    merged = json.loads(json.dumps(data, default=str))
    for text in overrides:
        _override(merged, text)
    return merged


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML text that reads back to an equal recipe.

    >>> recipe = Recipe(name="mine", until=("20x", "accuracy drops 0.01"))
    >>> make_recipe(tomllib.loads(to_toml(recipe))) == recipe
    True
    """
    plain = recipe.model_dump(mode="json", exclude_none=True)
    plain["scope"] = {k: v for k, v in plain["scope"].items() if v}
    tables = {k: v for k, v in plain.items() if isinstance(v, dict)}
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items() if key not in tables]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]"] + [
                f"{key_text(key)} = {toml_value(value)}" for key, value in table.items()
            ]
    return "\n".join(lines) + "\n"


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return what sets the arms of two recipes apart, as "key: old there, new here".

    Other seeds, techniques or workers only add arms; they are no difference. A task's file may have moved.
    """
    free = {"name", "techniques", "seeds", "workers", "folder"}
    a, b = (r.model_dump(mode="json") | {"task": task_name(r.task)} for r in (old, new))
    return [f"{key}: {a[key]!r} there, {b[key]!r} here" for key in a if key not in free and a[key] != b[key]]


def task_name(task: str) -> str:
    """Return a task's text without the folder that its file lies in.

    >>> task_name("digits"), task_name("/home/me/my_task.py:MyTask")
    ('digits', 'my_task.py:MyTask')
    """
    file, colon, name = task.rpartition(":")
    return Path(file).name + colon + name


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ValueError(
            f"--set wants key=value, such as until=0.05 or scope.exclude=fc.weight (got {text!r})"
        )
    table = data
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(
                f"--set {text}: {part!r} is no table here, so nothing can be set inside it; "
                f"a whole table is written {part}='{{ {key_text(path[-1])} = {value or '...'} }}'"
            )
    table[path[-1]] = parse_value(value)


def _say(error: Any, within: str = "") -> str:
    """One pydantic error as a clause: the dotted path, what was found, what to do."""
    path = [str(part) for part in error["loc"]]
    dotted = within + ".".join(path)
    if error["type"] == "extra_forbidden":
        known = [*(ScopeTable if path[:1] == ["scope"] and len(path) > 1 else Recipe).model_fields]
        if path == ["grid"]:
            return (
                "'grid' makes this a grid of recipes, and one recipe is wanted here (from Python: read_grid)"
            )
        prefix = within + "".join(part + "." for part in path[:-1])
        near = [f"did you mean '{prefix}{name}'?" for name in closest(path[-1], known)]
        return f"unknown key '{dotted}' ({near[0] if near else 'known: ' + ', '.join(known)})"
    if error["type"] == "value_error":
        return f"'{dotted}' {error['ctx']['error']}"
    if error["type"] == "string_pattern_mismatch":  # of the name, which is also a folder's
        return f"'{dotted}' may have letters, digits, blanks and _ . - (got {error['input']!r})"
    message = error["msg"].replace("Input should", "should")
    return f"'{dotted}' {message} (got {error['input']!r})"


def _find_task_file(task: str, beside: Path | None) -> str:
    file, colon, name = task.rpartition(":")
    if not colon:
        file, name = task, ""
    if (
        beside is None
        or not file.endswith(".py")
        or Path(file).is_absolute()
        or not (beside / file).is_file()
    ):
        return task
    return str(beside / file) + colon + name
