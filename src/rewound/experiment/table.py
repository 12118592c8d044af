"""The table at the end: a column a technique, a row a density, median and range over seeds, then the cost.

``make_table`` is a pure function of results; ``as_text`` and ``as_markdown`` only set it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rewound.experiment.statistics import (
    Results,
    Spread,
    common_densities,
    controls,
    density_of,
    finished,
    in_units,
    last_densities,
    last_parameters,
    milestones,
    spreads,
    techniques,
)


@dataclass(frozen=True)
class Table:
    """Cells as text. ``notes`` say what the numbers are, and belong to every rendering."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    rule: int  # how many rows stand above the line that parts results from costs


def make_table(results: Results) -> Table:
    """Return the table of an experiment; arms that failed are left out and counted in a note."""
    metric = results["metric"]["name"]
    names, by_density = techniques(results), spreads(results)
    densities = milestones(common_densities(results))
    rows = [(_density(d), ratio(d), *(_cell(by_density[name].get(d)) for name in names)) for d in densities]
    dense = controls(results)
    if dense:
        rows += [("1 (retrained)", "1x", *(_cell(dense.get(name)) for name in names))]
    rule = len(rows)
    ends = last_densities(results)
    if len({d for spread in ends.values() for d in (spread.low, spread.high)}) > 1:
        rows += [("density", "at the end", *(_cell(ends.get(name), "{:.3g}".format) for name in names))]
    if in_units(results):
        shares = last_parameters(results)
        rows += [("of parameters", "at the end", *(_cell(shares.get(n), "{:.3g}".format) for n in names))]
    rows += [("test", "at the end", *(_cell(_over_seeds(results, name, "test", metric)) for name in names))]
    rows += [("search cost", "epochs", *(_cost(results, name, "epochs") for name in names))]
    rows += [("of a seed", "FLOPs", *(_cost(results, name, "flops") for name in names))]
    done, all_arms = len(finished(results)), len(results["arms"])
    seeds = len({arm["seed"] for arm in finished(results)})
    over = "of one seed" if seeds == 1 else f"median of {seeds} seeds (smallest-largest)"
    title = f"{results['name']}: validation {metric}, {results['task']['name']}"
    notes = [
        f"Validation {metric} after retraining, {over}. "
        "'test': the held-out test split, evaluated once, on the network at the end of the run.",
        "Search cost: training epochs, and dense training FLOPs (2 x multiply-adds), of all rounds, the "
        "original run included.",
    ]
    if in_units(results):
        notes.append(
            "Densities and ratios count units (or blocks); of the parameters more or fewer go with them: half the channels of "
            "every layer is about a quarter of its weights."
        )
    rounds = max((len(arm["rounds"]) - 1 for arm in finished(results)), default=0)
    if rounds and not dense:
        notes.append(
            "Retraining is training too, and no dense network trained for as many epochs is in this table: part of "
            "a gain over the original run may be that. For such a control add "
            f"--set rate=0 --set 'until={counted(rounds, 'round')}' --folder FOLDER."
        )
    empty = [arm for arm in finished(results) if any(r.get("collapsed") for r in arm["rounds"])]
    if empty:
        first = max(density_of(r) for arm in empty for r in arm["rounds"] if r.get("collapsed"))
        notes.append(
            f"In {counted(len(empty), 'run')} nothing survived of some tensor (layer collapse), from density "
            f"{first:.3g} on; other allocations (uniform, erk, lamp) spread the pruning more evenly."
        )
    stopped = [arm for arm in finished(results) if arm.get("stopped")]
    if stopped:
        notes.append(
            f"{counted(len(stopped), 'run')} stopped by a metric: the round that fell short is left out, and "
            "the network before it is the one at the end."
        )
    if done < all_arms:
        notes.append(f"{all_arms - done} of {all_arms} arms did not finish and are left out.")
    return Table(title, ("density", "ratio", *names), tuple(rows), tuple(notes), rule)


def as_text(table: Table) -> str:
    """Set the table in aligned columns.

    >>> print(as_text(Table("digits", ("density", "a"), (("1", "0.9"), ("epochs", "40")), (), 1)))
    digits
    <BLANKLINE>
    density  a
    -------  ---
    1        0.9
    -------  ---
    epochs   40
    """
    widths = [max(len(row[k]) for row in (table.head, *table.rows)) for k in range(len(table.head))]

    def line(cells: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()

    dashes = "  ".join("-" * width for width in widths)
    body = [line(row) for row in table.rows]
    lines = [table.title, "", line(table.head), dashes, *body[: table.rule], dashes, *body[table.rule :]]
    return "\n".join(lines + [""] * bool(table.notes) + list(table.notes))


def as_markdown(table: Table) -> str:
    """Set the table in Markdown.

    >>> print(as_markdown(Table("digits", ("density", "a"), (("1", "0.9"),), ("Median.",), 1)))
    # digits
    <BLANKLINE>
    | density | a |
    |---|---|
    | 1 | 0.9 |
    <BLANKLINE>
    Median.
    """
    rows = [table.head, *table.rows]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    body.insert(1, "|" + "---|" * len(table.head))
    return "\n".join([f"# {table.title}", "", *body] + [part for note in table.notes for part in ("", note)])


def number(value: float) -> str:
    """Return a metric with three decimals where it is a fraction, with four figures where it is not.

    >>> number(0.97222), number(2901.4), number(1.33)
    ('0.972', '2901', '1.330')
    """
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:#.4g}".removesuffix(".")


def ratio(density: float) -> str:
    """Return a density as a compression ratio.

    >>> ratio(0.2), ratio(1 / 9.31), ratio(0.000977)
    ('5x', '9.31x', '1,024x')
    """
    return f"{1 / density:.3g}x" if density > 1e-3 else f"{1 / density:,.0f}x"


def _cell(spread: Spread | None, number: Callable[[float], str] = number) -> str:
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return number(spread.median)
    dash = "-" if spread.low >= 0 else " to "
    return f"{number(spread.median)} ({number(spread.low)}{dash}{number(spread.high)})"


def _over_seeds(results: Results, technique: str, part: str, key: str) -> Spread | None:
    arms = [arm for arm in finished(results) if arm["technique"] == technique]
    values = [arm[part][key] for arm in arms if arm.get(part) and arm[part].get(key) is not None]
    return Spread.of(values) if values else None


def _cost(results: Results, technique: str, key: str) -> str:
    spread = _over_seeds(results, technique, "search_cost", key)
    if spread is None:
        return "-"
    return f"{spread.median:.3g}" if key == "flops" else f"{spread.median:,.0f}"


def _density(density: float) -> str:
    return "1 (original)" if density == 1 else f"{density:.3g}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" + "s" * (count != 1)
