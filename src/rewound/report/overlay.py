"""Published points from a CSV file, to lie behind one's own: which columns it has, and what is drawn of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rewound.spelling import nearest

REQUIRED = ("density", "method")
VALUES = ("test_median", "delta_median")  # at least one of them
NUMBERS = (
    "density",
    "compression",
    "retrain_epochs",
    "n",
    "test_median",
    "test_min",
    "test_max",
    "val_median",
    "base_mean",
    "delta_median",
)
TEXTS = ("network", "prune", "iterative", "method")
_MARKERS = "osD^vP*X"
Row = Mapping[str, str | float]


@dataclass(frozen=True)
class Line:
    """One method's points, densities falling. ``percent``: the file gives its metric in percent."""

    method: str
    rows: tuple[Row, ...]
    marker: str
    percent: bool

    def values(self, fraction: bool) -> list[tuple[float, float]]:
        """Return (density, metric), as a fraction where that is how one's own is given."""
        return self._of("test_median", 0.01 if fraction and self.percent else 1.0)

    def changes(self, fraction: bool) -> list[tuple[float, float]]:
        """Return (density, change against the unpruned network), in percentage points where one's own is a fraction."""
        return self._of("delta_median", 100.0 if fraction and not self.percent else 1.0)

    def _of(self, key: str, factor: float) -> list[tuple[float, float]]:
        return [(float(row["density"]), float(row[key]) * factor) for row in self.rows if key in row]


@dataclass(frozen=True)
class Overlay:
    """The lines of one network, pruned in one way."""

    label: str
    source: str
    lines: tuple[Line, ...]


def read_overlay(path: str | Path) -> list[Overlay]:
    """Read published points: a CSV with the columns ``density`` (kept / prunable), ``method``, ``test_median`` or
    ``delta_median``, and of ``network, prune, iterative, compression, retrain_epochs, n, test_min, test_max, val_median,
    base_mean`` those that there are.

    Where a method has several ``retrain_epochs`` at a density, the one with the best ``val_median`` is drawn, as the paper
    chose it; where there is no ``val_median``, each is a line of its own.

    Raises ``FileNotFoundError``, or ``ValueError`` that names the column, or line, that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no overlay {str(path)!r}; it is a CSV file of published points")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            head = [name.strip() for name in next(reader, [])]
            _check_columns(path, head)
            rows = [_row(path, line, head, cells) for line, cells in enumerate(reader, 2) if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} has columns, and no points")
    rows.sort(key=_title)
    return [
        Overlay(title or path.stem, path.name, tuple(_lines(list(group))))
        for title, group in groupby(rows, key=_title)
    ]


def _check_columns(path: Path, head: Sequence[str]) -> None:
    known = (*TEXTS, *NUMBERS)
    for name in head:
        if name not in known:
            raise ValueError(f"{path}: unknown column {name!r}; {nearest(name, known)}")
        if head.count(name) > 1:
            raise ValueError(f"{path}: column {name!r} is there twice")
    missing = [name for name in REQUIRED if name not in head]
    if missing:
        raise ValueError(
            f"{path}: no column {' and no column '.join(map(repr, missing))} (there are: {', '.join(head) or 'none'})"
        )
    if not any(name in head for name in VALUES):
        raise ValueError(
            f"{path}: neither a column {VALUES[0]!r} (the metric) nor {VALUES[1]!r} (its change against the unpruned "
            f"network); there are: {', '.join(head)}"
        )


def _row(path: Path, line: int, head: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(head):
        raise ValueError(f"{path}, line {line}: {len(cells)} cells for {len(head)} columns")
    found: dict[str, str | float] = {}
    for name, cell in zip(head, (cell.strip() for cell in cells)):
        if name in TEXTS:
            found[name] = cell
        elif cell:
            found[name] = _number(path, line, name, cell)
    density = found.get("density")
    if not isinstance(density, float) or not 0 < density <= 1:
        raise ValueError(
            f"{path}, line {line}: column 'density' must be in (0, 1], kept / prunable (got {density!r})"
        )
    return found


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}: column {name!r} must be a number (got {cell!r})")
    return value


def _title(row: Row) -> str:
    how = {"1": "iterative", "0": "one-shot", "true": "iterative", "false": "one-shot"}
    iterative = str(row.get("iterative", ""))
    parts = (row.get("network"), row.get("prune"), how.get(iterative.lower(), iterative))
    return ", ".join(str(part) for part in parts if part)


def _lines(rows: list[Row]) -> Iterable[Line]:
    values = [abs(float(row[key])) for row in rows for key in ("base_mean", "test_median") if key in row]
    percent = bool(values) and max(values) > 1.5
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        method, t = str(row["method"]), row.get("retrain_epochs")
        by_method.setdefault(method if "val_median" in row or t is None else f"{method} t={t:g}", []).append(
            row
        )
    for k, (method, own) in enumerate(sorted(by_method.items())):
        chosen: dict[float, Row] = {}
        for row in own:
            best = chosen.get(float(row["density"]))
            if best is None or row.get("val_median", 0) > best.get("val_median", 0):  # type: ignore[operator]
                chosen[float(row["density"])] = row
        yield Line(method, tuple(chosen[d] for d in sorted(chosen, reverse=True)), _MARKERS[k % 8], percent)
