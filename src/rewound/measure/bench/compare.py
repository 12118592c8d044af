"""compare: one network in several runtimes, interleaved, each one's outputs checked before its time counts."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rewound.measure import machine
from rewound.measure.bench.fresh import measure_fresh
from rewound.measure.bench.networks import (
    Flat,
    Zeros,
    dense_twin,
    in_float32,
    in_float64,
    largest_error,
    tensors_of,
)
from rewound.measure.bench.runtimes import INSTALL, RUNTIMES, Bind, files_of, quiet
from rewound.measure.bench.telling import as_text
from rewound.measure.bench.turns import Turns, take_turns
from rewound.measure.bench.verdict import at_batch, verdict
from rewound.measure.latency import Timing, of_batch, pinned, rows_of
from rewound.spelling import nearest
from rewound.untouched import as_found

WRONG = 1e-3  # a relative error from which a runtime computes something else
MODEL, TWIN = "model", "dense twin"
_FEW = 0.05  # with fewer zeros than this the dense twin is the network itself
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One runtime on one network and batch size. network: "model" or "dense twin". p95: seconds. error: largest, relative,
    None where it was not looked at (the twin's). file_bytes, fresh: of the first batch size (see ``fresh.py``)."""

    runtime: str
    network: str
    batch: int
    wall: Timing
    cpu: Timing
    p95: float
    error: float | None
    file_bytes: int | None = None
    fresh: Mapping[str, Any] | None = None

    @property
    def right(self) -> bool:
        """Whether its outputs are those of the network."""
        return self.error is None or self.error <= WRONG

    @property
    def times(self) -> Timing:
        """The clock that decides: CPU time on one thread (what a quiet machine would show), else wall time."""
        return self.cpu if self.wall.threads == 1 else self.wall


@dataclass(frozen=True)
class Comparison:
    """name: of the network. weights: how many, and share: of them that are zero. against: what errors are relative to.
    left_out: runtime -> why it has no row. ``print`` it for the table and the verdict."""

    name: str
    weights: int
    share: float
    threads: int
    against: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    verdict: str
    machine: Mapping[str, Any]

    def __str__(self) -> str:
        return as_text(self)

    def row(self, runtime: str, batch: int | None = None, network: str = MODEL) -> Row:
        """Return one row (of the first batch size); KeyError where there is none."""
        for row in self.rows:
            if (row.runtime, row.network) == (runtime, network) and batch in (None, row.batch):
                return row
        raise KeyError(
            f"no row for {runtime!r} on the {network}" + f" at batch {batch}" * (batch is not None)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; times in seconds."""
        return {
            "name": self.name,
            "weights": self.weights,
            "zeros": self.share,
            "threads": self.threads,
            "errors_against": self.against,
            "verdict": self.verdict,
            "left_out": dict(self.left_out),
            "rows": [
                {
                    "runtime": row.runtime,
                    "network": row.network,
                    "batch": row.batch,
                    "wall_seconds": _plain(row.wall),
                    "cpu_seconds": _plain(row.cpu),
                    "p95_seconds": row.p95,
                    "rows_per_second": row.batch / row.wall.median,
                    "error": row.error,
                    "right": row.right,
                    "file_bytes": row.file_bytes,
                    "fresh": None if row.fresh is None else dict(row.fresh),
                }
                for row in self.rows
            ],
            "machine": dict(self.machine),
        }


def compare(
    model: nn.Module,
    example: Any,
    *,
    runtimes: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    threads: int = 1,
    rounds: int = 15,
    seconds: float = 60.0,
    fresh: bool = True,
    twin: bool = True,
    name: str = "the network",
    say: Say = lambda text: None,
) -> Comparison:
    """Measure ``model`` on ``example`` (a tensor, a tuple of arguments or a dict of them) in every runtime.

    Parameters
    ----------
    runtimes
        Of "torch", "torch.compile", "onnxruntime", "openvino", "engine"; None: all. One that is not installed, or cannot run
        this network, is named in ``left_out`` with the reason.
    batches
        Batch sizes (rows of the example repeated or cut); None: the example's own. The first one counts for the verdict, for
        load time and memory.
    threads
        Of every runtime. The process is kept on as many cores.
    rounds, seconds
        Turns of every call, and about how long those of one batch size may take in all; three rounds are made anyway.
    fresh
        Measure load time and memory too, each runtime in a new process.
    twin
        Measure dense runtimes also on the same network without zeros, if there are any zeros: do they help there?
    say
        Told what is being done.

    The model is left as it was found. Raises ``ValueError`` for unknown runtimes, threads, batches or rounds.

    >>> model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(1, 64)
    >>> found = compare(model, x, runtimes=["torch"], rounds=3, fresh=False)
    >>> found.row("torch").error < 1e-5
    True
    >>> found.verdict
    'No weight is zero.'
    """
    asked = _checked(runtimes, threads, batches, rounds)
    sizes = list(batches) if batches is not None else [rows_of(example)]
    left_out = {n: _install(n, gone) for n in asked if (gone := RUNTIMES[n].missing)}
    asked = [n for n in asked if n not in left_out]
    zeros = Zeros.of(model)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="rewound-bench-") as place, pinned(threads), as_found(model):
        own = copy.deepcopy(model).eval()  # exporters may write to it
        networks = {MODEL: own}
        if twin and zeros.share > _FEW:
            networks[TWIN] = dense_twin(own)
        with machine.on_cores(threads):
            for i, batch in enumerate(sizes):
                folder = Path(place) / str(batch)
                folder.mkdir()
                one = _OneBatch(networks, of_batch(example, batch), batch, threads, folder, say)
                found = one.measure(asked, rounds, seconds, left_out)
                rows += one.with_fresh(found, left_out) if fresh and i == 0 else found
                against = one.against

    def times(batch: int, network: str = MODEL) -> dict[str, Timing]:
        return {r.runtime: r.times for r in rows if (r.batch, r.network) == (batch, network) and r.right}

    says = verdict(zeros.share, times(sizes[0]), times(sizes[0], TWIN))
    says = " ".join(filter(None, [says, *(at_batch(batch, times(batch)) for batch in sizes[1:])]))
    facts = {**machine.facts(), "threads": threads}
    return Comparison(name, zeros.weights, zeros.share, threads, against, tuple(rows), left_out, says, facts)


class _OneBatch:
    """The runtimes on inputs of one batch size, each made, checked and measured."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        example: Any,
        batch: int,
        threads: int,
        folder: Path,
        say: Say,
    ) -> None:
        self.batch, self.threads, self.folder, self.say = batch, threads, folder, say
        self.modules = {name: Flat(model, example).eval() for name, model in networks.items()}
        self.inputs = tensors_of(example)
        self.arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in self.inputs]
        self.expected, self.against = _expected(self.modules[MODEL], self.inputs)

    def measure(
        self, asked: Sequence[str], rounds: int, seconds: float, left_out: dict[str, str]
    ) -> list[Row]:
        calls: dict[tuple[str, str], Callable[[], Any]] = {}
        errors: dict[tuple[str, str], float | None] = {}
        for network, module in self.modules.items():
            for runtime in asked:
                twin = network == TWIN
                if runtime in left_out or (
                    twin and (not RUNTIMES[runtime].dense or runtime == "torch.compile")
                ):
                    continue
                self.say(f"{runtime}, batch {self.batch}: preparing" + ", dense twin" * twin)
                try:
                    call = self._make(runtime, network, module)(self.arrays)
                    errors[runtime, network] = None if twin else largest_error(call(), self.expected)
                except Exception as error:  # whatever an exporter or a runtime dislikes, it is named
                    left_out[runtime] = f"cannot run this network ({_first_line(error)})"
                    continue
                calls[runtime, network] = call
        if not calls:
            return []
        self.say(f"batch {self.batch}: measuring {len(calls)} calls in turn")
        taken = take_turns(calls, rounds=rounds, seconds=seconds)
        return [self._row(*key, turns, errors[key]) for key, turns in taken.items()]

    def with_fresh(self, rows: Sequence[Row], left_out: dict[str, str]) -> list[Row]:
        """Return the rows with load times and memory."""
        inputs = self.folder / "inputs.npz"
        np.savez(inputs, *self.arrays)
        found = []
        for row in rows:
            if row.network == MODEL:
                self.say(f"{row.runtime}: loading in a process of its own")
                path = self._path(row.runtime, MODEL)
                size = sum(file.stat().st_size for file in files_of(path))
                try:
                    fresh = measure_fresh(row.runtime, path, inputs, self.threads)
                except Exception as error:
                    fresh = {"failed": _first_line(error)}
                row = Row(**{**vars(row), "file_bytes": size, "fresh": fresh})
            found.append(row)
        return found

    def _make(self, runtime: str, network: str, module: nn.Module) -> Bind:
        with quiet():
            return RUNTIMES[runtime].make(module, self.inputs, self.threads, self._path(runtime, network))

    def _path(self, runtime: str, network: str) -> Path:
        return self.folder / (network.replace(" ", "-") + RUNTIMES[runtime].suffix)

    def _row(self, runtime: str, network: str, turns: Turns, error: float | None) -> Row:
        wall, cpu = Timing(turns.wall, "wall", self.threads), Timing(turns.cpu, "cpu", self.threads)
        return Row(runtime, network, self.batch, wall, cpu, turns.p95, error)


def _expected(module: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[list[np.ndarray], str]:
    try:
        return in_float64(module, inputs), "torch in float64"
    except RuntimeError:  # a model that makes float32 tensors of its own cannot be widened
        return in_float32(module, inputs), "torch in float32"


def _checked(
    runtimes: Sequence[str] | None, threads: int, batches: Sequence[int] | None, rounds: int
) -> list[str]:
    asked = list(RUNTIMES) if runtimes is None else list(dict.fromkeys(runtimes))
    if not asked:
        raise ValueError(f"'runtimes' must name one at least; there are {', '.join(RUNTIMES)}")
    for name in asked:
        if name not in RUNTIMES:
            raise ValueError(f"no runtime named {name!r}: {nearest(name, RUNTIMES)}")
    for what, value in (("threads", threads), ("rounds", rounds), *(("batches", b) for b in batches or ())):
        if type(value) is not int or value < 1:
            raise ValueError(f"'{what}' must be whole numbers from 1 (got {value!r})")
    return asked


def _install(name: str, missing: Sequence[str]) -> str:
    return f"left out: {', '.join(missing)} not installed ({INSTALL})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _plain(timing: Timing) -> dict[str, Any]:
    low, high = timing.spread
    return {"median": timing.median, "low": low, "high": high, "samples": list(timing.samples)}
