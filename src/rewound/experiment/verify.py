"""Check a finished run again, from its files alone: what it says it is, is what lies there.

    checksums    every state, mask and trace has the content its name promises
    masks        nested, and of as many kept weights as result.json says, in all and by tensor
    weights      every pruned weight of the network is exactly 0, and the kept ones are not
    replay       the last epoch, trained again from the state before it, ends in the same state to the bit

The replay needs to know the loop, so it is for runs of a recipe; a run from a loop of the user's own goes
without.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewound.experiment import networks, store
from rewound.experiment.arms import Arm
from rewound.experiment.places import arm_of, arms_in, is_run, located
from rewound.experiment.study import read_study
from rewound.experiment.table import counted

ZEROS = 0.01  # the share of kept weights that training may have made exactly 0


def verify_folder(folder: str | Path, *, replay: bool = True) -> dict[str, Any]:
    """Check a run, or all finished runs of an experiment or a grid; return {"passed", "runs": [...], "left"} as a plain dict.

    What failed has not passed; what is running or waiting is not checked: "left" is how many. Raises FileNotFoundError where
    ``folder`` is none of these or nothing in it has finished, ValueError where it begins the key of several runs of a grid.
    """
    folder, left = located(Path(folder)), 0
    if is_run(folder):
        runs = [_verify_run(folder, arm_of(folder) if replay else None)]
    else:
        runs, left = _verify_all(folder, replay)
    passed = all(run["passed"] for run in runs)
    return {"folder": str(folder), "passed": passed, "runs": runs, "left": left}


def as_lines(found: dict[str, Any]) -> list[str]:
    """Set the outcome for people: one line a run, and one for each check that failed."""
    lines = []
    for run in found["runs"]:
        checks = run["checks"]
        good = ", ".join(check["name"] for check in checks if check["passed"])
        lines.append(f"{'ok    ' if run['passed'] else 'FAILED'}  {run['folder']}" + f": {good}" * bool(good))
        lines += [f"        {c['name']}: {c['says']}" for c in checks if not c["passed"]]
        lines += [f"        {note}" for note in run["notes"]]
    bad = sum(not run["passed"] for run in found["runs"])
    count = len(found["runs"])
    left = f"; {found['left']} not finished, so not checked" if found["left"] else ""
    lines.append(
        f"{counted(count, 'run')} checked, " + ("all hold" if not bad else f"{bad} do not hold") + left
    )
    return lines


def _verify_all(folder: Path, replay: bool) -> tuple[list[dict[str, Any]], int]:
    """Check the runs of an experiment or a grid; return what was found, and how many have still to finish."""
    arms = {arm.folder.resolve(): arm for arm in arms_in(folder)}
    written = (_json(folder / store.RESULTS) or {}).get("arms", [])
    told = {(folder / arm["folder"]).resolve(): arm for arm in written}
    study, runs = read_study([folder])["runs"], []
    for one in study:
        if one["status"] == "failed" or (one["status"] == "finished" and one["folder"] is None):
            why = f"this run failed: {one['error']}" if one["error"] else "its folder is not there"
            check = _check("finished", False, why)
            place = one["folder"] or f"{folder} ({one['label']})"
            runs.append({"folder": place, "passed": False, "checks": [check], "notes": []})
        elif one["status"] == "finished":
            place = Path(one["folder"])
            run = _verify_run(place, arms.get(place.resolve()) if replay else None)
            wrong = _results(
                place, {store.result_file(place).name: one, store.RESULTS: told.get(place.resolve())}
            )
            run["checks"].append(_check("results", not wrong, wrong))
            run["passed"] = all(check["passed"] for check in run["checks"])
            runs.append(run)
    if not runs:
        raise FileNotFoundError(f"no run of {folder} has finished; 'rewound run {folder}' goes on with it")
    return runs, len(study) - len(runs)


def _results(folder: Path, told: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Compare what files beside a run tell of it, by name, with what it wrote itself."""
    there = [done["kept"] for done in (_json(folder / "result.json") or {}).get("rounds", [])]
    for name, results in told.items():
        if results is not None and (says := [done["kept"] for done in results["rounds"]]) != there:
            return f"{name} tells {says}, the run {there}"
    return ""


def _verify_run(folder: Path, arm: Arm | None) -> dict[str, Any]:
    checks: list[dict[str, Any]] = []
    notes: list[str] = []
    result = _json(folder / "result.json") or {}
    steps: list[tuple[str, Callable[[], str]]] = [
        ("finished", lambda: _finished(folder, result)),
        ("checksums", lambda: _checksums(folder)),
        ("masks", lambda: _masks(folder, result)),
        ("weights", lambda: _weights(folder, result)),
    ]
    if arm is None:
        notes.append("the last epoch was not replayed")
    else:
        steps.append(("replay", lambda: _replay(folder, arm)))
    for name, step in steps:
        try:
            wrong = step()
        except Exception as error:  # a damaged file breaks in many ways, and each is an answer here
            wrong = str(error) or type(error).__name__
        checks.append(_check(name, not wrong, wrong))
        if wrong and name in ("finished", "checksums"):
            break  # what follows would read what is not there, or not to be trusted
    return {
        "folder": str(folder),
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "notes": notes,
    }


def _finished(folder: Path, result: dict[str, Any]) -> str:
    if not result:
        return f"there is no readable result.json in {folder}"
    return (
        "" if result.get("finished") else f"the run stopped after {len(result['rounds'])} rounds; run it on"
    )


def _checksums(folder: Path) -> str:
    from rewound.folder import damage

    files = sorted(folder.glob("rounds/*/*.pt")) + sorted(folder.glob("state*/*.pt"))
    wrong = [f"{path.relative_to(folder)}: {why}" for path in files if (why := damage(path))]
    return "; ".join(wrong) if files else "there are no state files"


def _masks(folder: Path, result: dict[str, Any]) -> str:
    before = None
    for done in result["rounds"][1:]:
        mask = _mask_of(folder, done["index"])
        if mask.kept != done["kept"] or mask.size != done["size"]:
            told = f"{done['kept']} of {done['size']}"
            return f"round {done['index']}: {mask.kept} of {mask.size} kept, result.json says {told}"
        if dict(mask.densities) != done["densities"]:
            return f"round {done['index']}: the densities by tensor are not those of result.json"
        if before is not None and not mask <= before:
            return f"round {done['index']}: keeps weights that the round before had pruned"
        before = mask
    return ""


def _weights(folder: Path, result: dict[str, Any]) -> str:
    best = result["best"]
    if best == 0:
        return ""  # nothing is pruned in the network that was kept
    weights, mask = networks.tensors_of(folder, result), _mask_of(folder, best)
    zeros = 0
    for name, kept in mask.items():
        alive = weights[name][~kept].count_nonzero().item()
        if alive:
            return f"{alive} pruned weights of {name} are not 0"
        zeros += int((weights[name][kept] == 0).sum())
    if zeros > max(1, ZEROS * mask.kept):
        return f"{zeros} of {mask.kept} kept weights are exactly 0, as if they had been pruned too"
    return ""


def _replay(folder: Path, arm: Arm) -> str:
    """Train on from the second newest state in a copy of the folder and compare what comes out."""
    import torch

    from rewound.experiment.arms import run_options, task_of
    from rewound.tasks import drive

    states = networks.states(folder, "epoch")
    if len(states) < 2:
        return "there is no state before the last one to train on from"
    recipe, seed = arm.recipe, arm.seed
    task, threads = task_of(recipe), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="rewound-verify-") as scratch, warnings.catch_warnings():
        copy = Path(scratch) / "run"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock*", states[0].name))
        torch.set_num_threads(recipe.threads)
        try:
            warnings.simplefilter("ignore")  # the run itself has said it
            options = run_options(recipe, task, arm.technique, seed)
            drive(task, seed=seed, epochs=recipe.epochs, folder=copy, **options)
        finally:
            torch.set_num_threads(threads)
        again = networks.states(copy, "epoch")[0]
        if again.name == states[0].name:  # the name is the content's checksum
            return ""
        return _difference(networks.newest(folder, "epoch"), networks.newest(copy, "epoch"))


def _difference(there: Any, again: Any, where: str = "") -> str:
    """Return the first place where two states differ, or an empty text."""
    import torch

    if isinstance(there, torch.Tensor):
        same = isinstance(again, torch.Tensor) and there.dtype == again.dtype and there.shape == again.shape
        if same and there.numpy().tobytes() == again.numpy().tobytes():
            return ""
        return f"{where.strip('.')} comes out different"
    if isinstance(there, dict) and isinstance(again, dict) and there.keys() == again.keys():
        return next((d for k in there if (d := _difference(there[k], again[k], f"{where}.{k}"))), "")
    if isinstance(there, (list, tuple)) and isinstance(again, (list, tuple)) and len(there) == len(again):
        pairs = enumerate(zip(there, again))
        return next((d for k, (a, b) in pairs if (d := _difference(a, b, f"{where}.{k}"))), "")
    return "" if repr(there) == repr(again) else f"{where.strip('.')} comes out different"


def _mask_of(folder: Path, index: int) -> Any:
    from rewound.folder import load_checked
    from rewound.mask import Mask

    found = sorted((folder / "rounds" / f"{index:02d}").glob("mask-*.pt"))
    if not found:
        raise FileNotFoundError(f"round {index} has no mask")
    return Mask.from_plain(load_checked(found[0]))


def _json(path: Path) -> Any:
    try:
        return store.read_json(path)
    except (OSError, ValueError):
        return None


def _check(name: str, passed: bool, says: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "says": "" if passed else says}
