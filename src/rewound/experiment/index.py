"""The index: a study as tables of SQLite, made anew from the folders by every run, and at will by ``rewound index FOLDER``;
nothing is only in it.

sqlite3 runs/mine/index.sqlite "select label, density, value from runs where status = 'finished' order by value"

runs    one row a run: key, label, what sets it apart (``cell``, as JSON), status, error, folder, density and metrics at its
            end, what the search cost
rounds  one row a round of a run: density, metric before and after retraining, epochs, FLOPs, seconds
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rewound.experiment import store
from rewound.experiment.statistics import density_of
from rewound.experiment.study import read_study
from rewound.experiment.table import counted

_TABLES = """
create table runs (
    key text primary key, label text, task text, technique text, seed integer, rate, until, pattern text, criterion text,
    cell text, status text, error text, folder text, density real, value real, test real,
    epochs integer, steps integer, flops real, sparse_flops real, seconds real, shared_epochs integer
);
create table rounds (
    key text, round integer, density real, density_total real, before real, value real, epochs integer, flops real, seconds real,
    primary key (key, round)
) without rowid;
create index runs_by_technique on runs (technique, seed);
"""
_CELL = ("task", "technique", "seed", "rate", "until", "pattern", "criterion")
_COST = ("epochs", "steps", "flops", "sparse_flops", "seconds", "shared_epochs")


def rebuild_index(place: Path) -> Path:
    """Write the index of a grid's or an experiment's folder, or of one that holds several, anew and return its path.

    Who reads the old one is not disturbed. Raises what :func:`rewound.experiment.study.read_study` raises.
    """
    path = place / store.INDEX
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    passing.unlink(missing_ok=True)
    try:
        write_index(read_study([place]), passing)
        os.replace(passing, path)
    finally:
        passing.unlink(missing_ok=True)
    return path


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Set what :func:`counts` found for people."""
    return [
        f"{found['index']}: {counted(found['runs'], 'run')}, {found['finished']} finished, {counted(found['rounds'], 'round')}"
    ]


def counts(path: Path) -> dict[str, Any]:
    """Return how many runs, finished ones and rounds an index holds."""
    with closing(sqlite3.connect(path)) as database:
        asked = {
            "runs": "select count(*) from runs",
            "finished": "select count(*) from runs where status = 'finished'",
            "rounds": "select count(*) from rounds",
        }
        return {
            "index": str(path),
            **{name: database.execute(text).fetchone()[0] for name, text in asked.items()},
        }


def write_index(study: Mapping[str, Any], path: Path) -> None:
    """Write a study as the tables of a new SQLite file."""
    name = study["metric"]["name"]
    with closing(sqlite3.connect(path)) as database, database:  # the inner one commits
        database.execute("pragma journal_mode = off")  # it gets its name once it is whole
        database.executescript(_TABLES)
        database.executemany(
            f"insert into runs values ({', '.join('?' * 22)})", (_row(run, name) for run in study["runs"])
        )
        database.executemany(
            f"insert into rounds values ({', '.join('?' * 9)})",
            (
                (
                    run["key"],
                    done["index"],
                    density_of(done),
                    done["density_total"],
                    done["before"].get(name),
                    done["metrics"].get(name),
                    done["epochs"],
                    done["flops"],
                    done.get("seconds"),
                )
                for run in study["runs"]
                for done in run["rounds"]
            ),
        )


def _row(run: Mapping[str, Any], metric: str) -> tuple[Any, ...]:
    cell, rounds, cost = run["cell"], run["rounds"], run["search_cost"]
    last = rounds[run.get("best", len(rounds) - 1)] if rounds else None
    return (
        run["key"],
        run["label"],
        *(_plain(cell.get(key)) for key in _CELL),
        json.dumps(cell, sort_keys=True),
        run["status"],
        run["error"],
        run["folder"],
        None if last is None else density_of(last),
        None if last is None else last["metrics"].get(metric),
        (run["test"] or {}).get(metric),
        *(cost.get(key) for key in _COST),
    )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)
