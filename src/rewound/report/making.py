"""A report from folders, in one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rewound.experiment.store import write_text
from rewound.experiment.study import read_study
from rewound.experiment.table import counted
from rewound.report.figures.budget import budget_section
from rewound.report.figures.cost import cost_section
from rewound.report.figures.density import density_section
from rewound.report.figures.efficiency import efficiency_section
from rewound.report.figures.layers import layers_section
from rewound.report.figures.losses import losses_section
from rewound.report.figures.rates import rates_section
from rewound.report.overlay import Overlay, read_overlay
from rewound.report.parts import Section
from rewound.report.render import render
from rewound.report.sections import caveats_section, provenance_section, runs_section, verdict_section
from rewound.report.view import View


def write_report(
    paths: Sequence[Path], out: Path, *, overlay: Path | None = None, benches: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the report of the experiments in ``paths`` to ``out``, and return what it is about, as a plain dict.

    overlay: a CSV of published points, see :func:`rewound.report.overlay.read_overlay`. benches: files that ``rewound bench
    --out`` wrote.

    Raises ``FileNotFoundError`` where there is no experiment, ``ValueError`` naming what is wrong in a file, ``ImportError``
    where matplotlib or Jinja is missing. Nothing is written then.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the page a file name, such as {out / 'report.html'}")
    study = read_study(paths)
    published = read_overlay(overlay) if overlay else []
    page = make_page(study, overlays=published, benches=[read_bench(path) for path in benches])
    write_text(out, page)
    return {
        "report": str(out),
        "runs": len(study["runs"]),
        "finished": sum(run["status"] == "finished" for run in study["runs"]),
        "bytes": len(page.encode()),
    }


def live_page(
    paths: Sequence[Path], *, overlay: Path | None = None, benches: Sequence[Path] = ()
) -> Callable[[str], str]:
    """Return ``function(version) -> page`` for :class:`rewound.report.watch.Live`; files beside the runs are read now, once.

    Raises ``FileNotFoundError`` for a folder that is not there, and what :func:`write_report` raises for the other files.
    """
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {str(path)!r} to watch")
    published = read_overlay(overlay) if overlay else []
    measured = [read_bench(path) for path in benches]
    return lambda version: make_page(read_study(paths), overlays=published, benches=measured, live=version)


def make_page(
    study: Mapping[str, Any],
    *,
    overlays: Sequence[Overlay] = (),
    benches: Sequence[Mapping[str, Any]] = (),
    live: str = "",
) -> str:
    """Return the page of a study."""
    view, parts = View.of(study), View.parts_of(study)
    sections: list[Section] = []
    absent: dict[str, None] = {}
    for part in parts:
        for name, section in _drawn(part, overlays, () if sections else benches).items():
            if section is None:
                absent[f"{part.name}: {name}" if part.name else name] = None
            else:
                sections.append(section.of_part(part.name, part.tag))
    finished = sum(run["status"] == "finished" for run in study["runs"])
    direction = "higher is better" if view.higher else "lower is better"
    of = f"{finished} of {counted(len(study['runs']), 'run')} finished"
    return render(
        study["name"],
        f"{study['task']['name']}, judged by validation {view.metric} ({direction}); {of}.",
        [
            verdict_section(study, parts),
            *sections,
            caveats_section(view, list(absent)),
            runs_section(view),
            provenance_section(study),
        ],
        names={k: label for part in parts for k, label in part.names.items()},
        published=[overlay.label for overlay in overlays],
        made=f"Made on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
        live=live,
    )


def _drawn(
    view: View, overlays: Sequence[Overlay], benches: Sequence[Mapping[str, Any]]
) -> dict[str, Section | None]:
    """Return what there is to see -> its section, or None where there is nothing."""
    return {
        "metric against density": density_section(view, overlays),
        "metric against retraining time (no technique was run with two of them)": budget_section(view),
        "metric against search cost": cost_section(view),
        "efficiency (multiply-adds were not counted, nor speed measured)": efficiency_section(view, benches),
        "densities by layer": layers_section(view),
        "learning rates (no run left a trace)": rates_section(view),
        "loss curves (no run left a log)": losses_section(view),
    }


def read_bench(path: Path) -> dict[str, Any]:
    """Read what ``rewound bench --out`` wrote; ``FileNotFoundError``, or ``ValueError`` naming the file and what it lacks."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no measurement {str(path)!r}; 'rewound bench FOLDER --out {path}' makes one"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error})") from error
    needed = ("name", "zeros", "threads", "verdict", "rows")
    missing = [key for key in needed if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(
            f"{path} is nothing that 'rewound bench --out' wrote: it has no {', '.join(missing)}"
        )
    return dict(found)


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Say for people what was written."""
    size = found["bytes"] / 1e6
    return [
        f"{found['report']}: {found['finished']} of {counted(found['runs'], 'run')}, {size:.2g} MB. Open it in a browser."
    ]
