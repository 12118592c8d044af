"""How a running experiment is shown: live bars on a terminal, plain lines anywhere else.

Nothing here decides anything. Events are plain dicts from ``execute``:

    {"arm": 3, "kind": "epoch", "done": 41, "round": 2, "density": 0.64, "value": 0.97}
    {"arm": 3, "kind": "warning", "says": "..."}
    {"arm": 3, "kind": "finished"}      {"arm": 3, "kind": "failed", "error": "..."}
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rewound.experiment.table import Table, as_text, counted, number

Event = dict[str, Any]
Report = Callable[[Event], None]
EVERY = 10.0  # seconds between two plain lines about the whole


@contextmanager
def progress(labels: Sequence[str], epochs: Sequence[int], metric: str, stream: TextIO) -> Iterator[Report]:
    """Yield a ``report(event)`` for arms with these labels and lengths in epochs."""
    if stream.isatty():
        with _live(labels, epochs, metric, stream) as report:
            yield report
    else:
        yield _lines(labels, epochs, metric, stream)


def _lines(labels: Sequence[str], epochs: Sequence[int], metric: str, stream: TextIO) -> Report:
    """One line when an arm begins, goes on or ends, and now and then one about the whole."""
    done, first, last = [0] * len(labels), [0] * len(labels), [math.nan] * len(labels)
    total, ended, began, said = max(1, sum(epochs)), 0, 0.0, 0.0

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    say(f"{counted(len(labels), 'arm')}, {total:,} epochs in all")

    def report(event: Event) -> None:
        nonlocal ended, began, said
        k, now = event["arm"], time.monotonic()
        if event["kind"] == "warning":
            say(f"{labels[k]}: {event['says']}")
            return
        if event["kind"] != "epoch":
            ended += 1
            done[k] = epochs[k]
            value = "" if math.isnan(last[k]) else f", validation {metric} {number(last[k])}"
            say(
                f"{labels[k]}: "
                + (f"finished{value}" if event["kind"] == "finished" else f"FAILED, {event['error']}")
            )
            return
        if not done[k]:
            first[k] = event["done"] - 1
            began, said = began or now, said or now
            say(
                f"{labels[k]}: " + (f"goes on after epoch {first[k]} of {epochs[k]}" if first[k] else "began")
            )
        done[k], last[k] = event["done"], event["value"]
        if now - said >= EVERY:
            said = now
            left = (now - began) * (total - sum(done)) / max(1, sum(done) - sum(first))
            share = f"{sum(done) / total:.0%} of the epochs"
            say(f"{ended} of {len(labels)} arms, {share}, about {left:.0f} s left")

    return report


@contextmanager
def _live(labels: Sequence[str], epochs: Sequence[int], metric: str, stream: TextIO) -> Iterator[Report]:
    """One bar an arm, shown from its first epoch on, and one for the whole, which alone says when it ends."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[says]}"),
    )
    clock = (TimeElapsedColumn(), TextColumn("gone"), TimeRemainingColumn(), TextColumn("left"))
    bars, whole_bar = Progress(*columns), Progress(*columns, *clock)
    width = max(len(label) for label in labels)
    ids = [
        bars.add_task(label.ljust(width), total=n, says="", visible=False) for label, n in zip(labels, epochs)
    ]
    whole = whole_bar.add_task("all".ljust(width), total=max(1, sum(epochs)), says=f"0 of {len(labels)} arms")
    ended, done, says = 0, [0] * len(labels), [""] * len(labels)
    console = Console(file=stream)

    def report(event: Event) -> None:
        nonlocal ended
        k = event["arm"]
        if event["kind"] == "warning":
            console.print(f"{labels[k]}: {event['says']}", markup=False, highlight=False)
            return
        if event["kind"] == "epoch":
            done[k] = event["done"]
            says[k] = f"density {event['density']:.3g}  {metric} {number(event['value'])}"
        else:
            ended += 1
            done[k] = epochs[k]
            if event["kind"] == "failed":
                says[k] = f"[red]failed: {escape(str(event['error']))}"
        bars.update(ids[k], completed=done[k], says=says[k], visible=True)
        whole_bar.update(whole, completed=sum(done), says=f"{ended} of {len(labels)} arms")

    with Live(Group(bars, whole_bar), console=console, refresh_per_second=8):
        yield report


def show_table(table: Table, stream: TextIO) -> None:
    """Print a table: set by rich on a terminal, in plain columns anywhere else."""
    if not stream.isatty():
        print(as_text(table), file=stream)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=stream)
    for part, columns in enumerate(_fitting(table, console.width)):
        title = table.title if part == 0 else None
        rich = RichTable(title=title, title_justify="left", header_style="bold")
        for k in columns:
            rich.add_column(table.head[k], overflow="fold")
        for k, row in enumerate(table.rows):
            rich.add_row(*(row[c] for c in columns), end_section=k == table.rule - 1)
        console.print(rich)
    for note in table.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _fitting(table: Table, width: int) -> list[list[int]]:
    """Return the columns of each part of a table that is too wide for the terminal: the first two in all.

    >>> _fitting(Table("t", ("density", "ratio", "one", "two"), (), (), 0), width=30)
    [[0, 1, 2], [0, 1, 3]]
    """
    widths = [max(len(row[k]) for row in (table.head, *table.rows)) + 3 for k in range(len(table.head))]
    parts: list[list[int]] = []
    for k in range(2, len(widths)):
        if parts and 1 + sum(widths[c] for c in [*parts[-1], k]) <= width:
            parts[-1].append(k)
        else:
            parts.append([0, 1, k])
    return parts or [list(range(len(widths)))]
