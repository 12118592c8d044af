"""What a folder is: an experiment or a grid, with these arms; a run of one of them; or a run of nobody's recipe.

verify, export and bench ask here, and so treat runs of grids and of plain recipes alike.
"""

from __future__ import annotations

import json
from pathlib import Path

from rewound.experiment import store
from rewound.experiment.arms import Arm, arms_of, arms_of_grid
from rewound.experiment.grid import Grid, read_grid

MOST = 12  # runs named in an error


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is that of a Run, finished or not."""
    return (folder / "run.json").is_file()


def check_holds_runs(place: Path) -> None:
    """Raise FileNotFoundError where ``place`` is neither an experiment's folder nor a grid's."""
    if not (place / store.RECIPE).is_file():
        raise FileNotFoundError(
            f"{place} is no run, no experiment and no grid (neither run.json nor {store.RECIPE} is there)"
        )


def arms_in(place: Path) -> list[Arm]:
    """Return the arms of the experiment or the grid in ``place``, wherever that was moved to, finished or not."""
    check_holds_runs(place)
    asked = read_grid(place / store.RECIPE, [f"folder={json.dumps(str(place))}"])
    return arms_of_grid(asked) if isinstance(asked, Grid) else arms_of(asked, place)


def arm_of(folder: Path) -> Arm | None:
    """Return the arm whose run lies in ``folder``, or None where no recipe around it asks for it."""
    folder = folder.resolve()
    in_grid = folder.parent.name == store.RUNS and (folder.parents[1] / store.GRID).is_file()
    place = folder.parents[1] if in_grid else folder.parents[min(2, len(folder.parents) - 1)]
    if not (place / store.RECIPE).is_file():
        return None
    return next((arm for arm in arms_in(place) if arm.folder.resolve() == folder), None)


def located(path: Path) -> Path:
    """Return ``path``; of GRID/runs/BEGIN the run whose key begins so.

    Raises ValueError naming the runs that are there, where none of them begins so or several do.
    """
    full = path.absolute()
    runs, begin = (full, "") if full.name == store.RUNS else (full.parent, full.name)
    if (begin and path.is_dir()) or runs.name != store.RUNS or not (runs.parent / store.GRID).is_file():
        return path
    there = sorted(one.name for one in runs.iterdir() if is_run(one))
    meant = [key for key in there if key.startswith(begin)]
    if len(meant) == 1:
        return (path / meant[0]) if not begin else path.with_name(meant[0])
    asked = store.read_json(runs.parent / store.GRID)["runs"]
    named = [f"{key} ({asked[key]['label']})" if key in asked else key for key in meant or there]
    says = (
        f"{str(path)!r} may be any of" if meant else f"no run has a key that begins with {begin!r}; there are"
    )
    more = f"; and {len(named) - MOST} more" if len(named) > MOST else ""
    raise ValueError(f"{says} {'; '.join(named[:MOST]) or 'none'}{more}")
