"""The demonstration, `rewound run`, from nothing to its end: how long it takes, and what it shows.

    python benchmarks/demonstration.py

Runs the command in a fresh process and an empty folder, and keeps its table and picture beside the record.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import facts, write_record


def main() -> None:
    machine = facts()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "demonstration"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rewound", "run", "--folder", str(folder)], check=True)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rewound", "run", "--folder", str(folder)], check=True)
        again = time.perf_counter() - start
        table = (folder / "table.md").read_text()
        text = (
            f"From start to end: {seconds:.0f} s; started again when finished: {again:.1f} s.\n\n"
            f"![validation accuracy against density](PICTURE)\n\n{table}"
        )
        data = {"machine": machine, "seconds": seconds, "seconds_when_finished_before": again}
        path = write_record("demonstration", data, text)
        picture = next(folder.glob("*.svg"), None) or next(folder.glob("*.png"))
        kept = path.with_suffix(picture.suffix)
        shutil.copyfile(picture, kept)
        path.write_text(path.read_text().replace("PICTURE", kept.name))
        print(path)


if __name__ == "__main__":
    main()
