"""Runs a small grid in the folder given, with two workers: the process that tests kill. Prints "ended" at its end."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    from grids import run

    study = run(Path(sys.argv[1]), on=sys.argv[2], workers=2)
    failed = [found["error"] for found in study["runs"] if found["status"] != "finished"]
    print("ended", *failed, flush=True)
