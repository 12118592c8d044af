import io
import re

import pytest

from rewound.experiment.screen import progress, show_table
from rewound.experiment.table import Table, make_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


EVENTS = [
    {"arm": 0, "kind": "epoch", "done": 1, "round": 0, "density": 1.0, "value": 0.5},
    {"arm": 0, "kind": "warning", "says": "round 1: nothing [much] survives"},
    {"arm": 1, "kind": "epoch", "done": 8, "round": 1, "density": 0.8, "value": 0.6},
    {"arm": 0, "kind": "epoch", "done": 2, "round": 0, "density": 1.0, "value": 0.75},
    {"arm": 0, "kind": "finished"},
    {"arm": 1, "kind": "failed", "error": "ValueError: no [luck]"},
]


def shown(stream):
    with progress(["one", "two"], [10, 10], "accuracy", stream) as report:
        for event in EVENTS:
            report(event)
    return stream.getvalue()


def test_anywhere_but_on_a_terminal_there_are_plain_lines():
    assert shown(io.StringIO()).splitlines() == [
        "2 arms, 20 epochs in all",
        "one: began",
        "one: round 1: nothing [much] survives",
        "two: goes on after epoch 7 of 10",
        "one: finished, validation accuracy 0.750",
        "two: FAILED, ValueError: no [luck]",
    ]


def test_on_a_terminal_there_are_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(Terminal())
    assert "\x1b[" in text
    assert "2 of 2 arms" in text
    assert "no [luck]" in text
    assert "one: round 1: nothing [much] survives" in text


@pytest.mark.parametrize(("kind", "coloured"), [(io.StringIO, False), (Terminal, True)])
def test_a_table_is_plain_or_ruled(kind, coloured, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = kind()
    show_table(Table("title", ("density", "a"), (("1", "0.9"), ("epochs", "40")), ("note",), 1), stream)
    assert ("\x1b[" in stream.getvalue()) == coloured
    assert "0.9" in stream.getvalue()


def test_a_table_too_wide_for_the_terminal_comes_in_parts_and_loses_no_digit(make_results, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    table, stream = make_table(make_results()), Terminal()
    show_table(table, stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert all(cell in text for row in table.rows for cell in row)
    assert text.count("1 (original)") == 3
    assert max(map(len, text.splitlines())) <= 60


def test_long_runs_say_now_and_then_how_far_they_are(monkeypatch):
    clock = iter([0.0, 5.0, 12.0, 13.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress(["one"], [10], "accuracy", stream) as report:
        for done in (1, 2, 3, 4):
            report({"arm": 0, "kind": "epoch", "done": done, "value": 0.5})
    assert stream.getvalue().splitlines() == [
        "1 arm, 10 epochs in all",
        "one: began",
        "0 of 1 arms, 30% of the epochs, about 28 s left",
    ]
