"""Wall-clock time of a run by round, over all processes that worked at it: what a kill threw away was spent too."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from rewound.experiment.store import read_json, write_text

NAME = "seconds.json"


class Clock:
    """Seconds by round, kept in the run's folder; ``tick`` after every epoch.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     Clock(Path(place)).tick(0)
    ...     again = Clock(Path(place))  # another process
    ...     again.tick(1)
    ...     sorted(again.seconds)
    [0, 1]
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._last = folder / NAME, time.monotonic()
        try:
            self.seconds = {int(k): float(v) for k, v in read_json(self._path).items()}
        except (OSError, ValueError):
            self.seconds = {}

    def tick(self, round: int) -> None:
        """Charge the time since the last call to a round."""
        now = time.monotonic()
        self.seconds[round] = self.seconds.get(round, 0.0) + now - self._last
        self._last = now
        text = ", ".join(f'"{k}": {v:.3f}' for k, v in sorted(self.seconds.items()))
        with suppress(OSError):  # a full disk: the Run says so itself, with its own state in mind
            write_text(self._path, f"{{{text}}}", flush=False)
