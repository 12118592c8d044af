"""Runs a small grid in the folder given: the process that tests kill or leave without room. Prints "ended" at its end."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    from grids import run

    place, on, workers = sys.argv[1:]
    study = run(Path(place), on=on, workers=int(workers))
    failed = [found["error"] for found in study["runs"] if found["status"] != "finished"]
    print("ended", *failed, flush=True)
