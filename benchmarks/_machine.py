"""What a benchmark record must say about the machine, and how records are written. No host names, no absolute
paths."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from rewound.measure.machine import facts

__all__ = ["command", "facts", "write_record"]

RECORDS = Path(__file__).parent / "records"


def command() -> str:
    """Return the command line as somebody else would type it from the root of the repository."""
    arguments = iter(sys.argv[1:])
    shown = []
    for argument in arguments:
        if argument in ("--out", "--work"):  # where files go is nobody else's business
            next(arguments, None)
        elif not argument.startswith(("--out=", "--work=")):
            shown.append(argument)
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])


def write_record(name: str, data: dict[str, Any], markdown: str, folder: Path | str | None = None) -> Path:
    """Write DATE-name.json and DATE-name.md (in UTC) and return the path of the latter.

    The date, the command and, unless ``data`` has its own ``"machine"`` (taken before the measurement), the
    machine's facts are added to both.
    """
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    machine = data.get("machine") or facts()
    folder = RECORDS if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "date": date, "command": command(), "machine": machine, **data}
    stem = folder / f"{date}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in machine.items()]
    page = [f"# {name}", "", f"{date}. `{command()}`", "", markdown.strip(), "", "## Machine", "", *lines, ""]
    path = stem.with_suffix(".md")
    path.write_text("\n".join(page))
    return path
