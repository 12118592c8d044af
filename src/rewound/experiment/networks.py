"""The networks that finished runs end with: which there are, one of them chosen, its weights read into its model.

Also what ``rewound bench`` may be given: a folder of runs, a ``.pt2`` file of torch.export, or ``module:function``.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewound.experiment import store
from rewound.experiment.places import arm_of, check_holds_runs, is_run, located
from rewound.experiment.statistics import density_of
from rewound.experiment.study import read_study

if TYPE_CHECKING:
    from torch import nn

WITHIN = 0.01  # of the metric before pruning, that a network may have lost to be chosen


@dataclass(frozen=True)
class Candidate:
    """The network that one run ended with. lost: of its metric, as a share of what it was before pruning (infinite where no
    original run tells that)."""

    folder: Path
    technique: str
    seed: int
    density: float
    metric: str
    value: float
    lost: float
    label: str = ""

    def __str__(self) -> str:
        name = self.label or f"{self.technique}, seed {self.seed}"
        return f"{name}: density {self.density:.3g}, {self.metric} {self.value:.4g}"


def candidates(place: Path) -> list[Candidate]:
    """Return the finished runs of an experiment or a grid. ValueError or FileNotFoundError where there is none."""
    check_holds_runs(place)
    study = read_study([place])
    metric, sign = study["metric"]["name"], 1 if study["metric"]["higher_is_better"] else -1
    finished = [run for run in study["runs"] if run["status"] == "finished"]
    original: dict[str, float] = {}  # by network and seed: gradual pruning has none of its own
    for run in finished:
        first = run["rounds"][0]
        if not first.get("partial") and first["metrics"].get(metric) is not None:
            original.setdefault(_network(run), first["metrics"][metric])
    found = []
    for run in finished:
        last = run["rounds"][run.get("best", len(run["rounds"]) - 1)]
        before, after, cell = original.get(_network(run)), last["metrics"].get(metric), run["cell"]
        if after is None or run["folder"] is None:
            continue
        lost = math.inf if before is None else sign * (before - after) / abs(before) if before else 0.0
        folder, technique = Path(run["folder"]), cell["technique"]
        one = Candidate(folder, technique, cell["seed"], density_of(last), metric, after, lost, run["label"])
        found.append(one)
    if not found:
        raise ValueError(f"no run of {place} has finished; 'rewound run {place}' goes on with it")
    return found


def _network(run: Mapping[str, Any]) -> str:
    return json.dumps(
        [run["cell"][key] for key in ("task", "task_options", "epochs", "seed")], sort_keys=True
    )


def choose(
    found: Sequence[Candidate], technique: str | None = None, seed: int | None = None, within: float = WITHIN
) -> tuple[Candidate, str]:
    """Return the smallest network that has lost no more than ``within`` of its metric, and why it is that one.

    Where all have lost more, the one that has lost least. ``technique`` and ``seed`` leave out the others.
    """
    technique = None if technique is None else _spelled(technique)
    left = [c for c in found if technique in (None, c.technique) and seed in (None, c.seed)]
    if not left:
        there = "; ".join(dict.fromkeys(f"{c.technique}, seed {c.seed}" for c in found))
        asked = f"technique {technique or 'any'}, seed {'any' if seed is None else seed}"
        raise ValueError(f"no finished run of {asked}; there is {there}")
    good = [c for c in left if c.lost <= within]
    if good:
        chosen = min(good, key=lambda c: (c.density, c.lost))
        why = f"the smallest of {len(left)} that lost at most {within:.1%} of {chosen.metric}"
    else:
        chosen = min(left, key=lambda c: (c.lost, c.density))
        if math.isinf(chosen.lost):
            return chosen, f"the smallest of {len(left)}; no original run tells what they lost"
        why = f"all {len(left)} lost more than {within:.1%} of {chosen.metric}; this one lost least ({chosen.lost:.1%})"
    return chosen, why if len(left) > 1 else "the only one"


def _spelled(technique: str) -> str:
    """As studies spell it; what is no technique stays as it is, to be said not to be there."""
    from rewound.techniques import parse_technique

    try:
        return str(parse_technique(technique))
    except ValueError:
        return technique


def network_of(folder: Path, rows: int = 1) -> tuple[nn.Module, Any]:
    """Return the model that the run in ``folder`` ended with, in evaluation mode, and ``rows`` rows of its task's data.

    Raises ValueError for a run that no recipe asks for, as those of loops of one's own: only a recipe's task knows the model.
    """
    from rewound.experiment.arms import task_of
    from rewound.measure.latency import of_batch

    arm = arm_of(folder)
    if arm is None:
        raise ValueError(
            f"{folder} comes from a loop of your own, or from a grid that no longer asks for it, so its model is not known here: "
            "write a function that returns (model, example) and give it as module:function, or use rewound.runtime.compile"
        )
    task = task_of(arm.recipe)
    model = task.model(arm.seed)
    model.load_state_dict(tensors_of(folder, store.read_json(folder / "result.json")))
    example = getattr(task, "example", None)
    if example is None:
        example = next(iter(task.batches(0, arm.seed)))[0]
    return model.eval(), of_batch(example, rows)


def find_network(text: str, rows: int = 1) -> tuple[nn.Module, Any, str]:
    """Return (model, example, what it is) for the folder of a run, an experiment or a grid, a .pt2 file, or module:function.

    Raises FileNotFoundError or ValueError saying what may be given.
    """
    path = located(Path(text))
    if path.is_dir():
        folder, why = path, ""
        if not is_run(path):
            chosen, why = choose(candidates(path))
            folder, why = chosen.folder, f"{chosen} ({why})"
        return (*network_of(folder, rows), why or str(path))
    if path.suffix == ".pt2":
        return (*_exported(path), path.name)
    module, colon, function = text.rpartition(":")
    if not colon or path.exists():
        raise ValueError(
            f"{text!r} is no run's folder, no .pt2 file and no module:function that returns (model, example)"
        )
    return (*_from_function(module, function), text)


def tensors_of(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of the network the run ended with: the newest state's, or the last good round's."""
    return newest(folder, "epoch" if result["stopped"] is None else "good")["state"]["model"]


def states(folder: Path, kind: str) -> list[Path]:
    """Return the state files of a kind, newest first."""
    found = (folder / "state").glob(f"{kind}-*.pt")
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def newest(folder: Path, kind: str) -> dict[str, Any]:
    """Return the newest state of a kind; FileNotFoundError where there is none, ValueError for a damaged one."""
    from rewound.folder import load_checked

    found = states(folder, kind)
    if not found:
        raise FileNotFoundError(f"there is no {kind} state in {folder}")
    return load_checked(found[0])


def _exported(path: Path) -> tuple[nn.Module, Any]:
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    program = torch.export.load(path)
    if program.example_inputs is None:
        raise ValueError(
            f"{path} holds no example inputs; export it anew with torch.export.save(torch.export.export(...))"
        )
    args, kwargs = program.example_inputs
    if args and kwargs:
        raise ValueError(f"{path} takes positional and keyword arguments; export it with one kind of them")
    return program.module(), kwargs or args


def _from_function(module: str, function: str) -> tuple[nn.Module, Any]:
    from torch import nn

    from rewound.tasks.task import import_file

    if module.endswith(".py"):
        found = import_file(module)
    else:
        with _importing_from(os.getcwd()):  # an installed command does not look there by itself
            found = importlib.import_module(module)
    if not callable(make := getattr(found, function, None)):
        raise ValueError(f"{module} has no function {function!r} that returns (model, example)")
    made = make()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ValueError(f"{module}:{function}() must return (model, example), a torch module and its inputs")
    return made[0].eval(), made[1]


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
