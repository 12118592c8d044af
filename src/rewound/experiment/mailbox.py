"""Events from workers to the one who waits for them, as lines in files: any executor, any machine that sees the folder.

No lock is shared, so a worker that is killed in the middle of a line harms nobody: half a line is never read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]


@dataclass(frozen=True)
class Post:
    """What a worker reports with: ``post({"arm": 3, "kind": "epoch", ...})`` appends a line to the file of arm 3."""

    folder: Path

    def __call__(self, event: Event) -> None:
        with suppress(OSError), open(self.folder / f"{event['arm']}.jsonl", "ab", buffering=0) as file:
            file.write(json.dumps(event).encode() + b"\n")  # one write: lines of two processes do not mix


class Mailbox:
    """Reads what was posted into a folder, each event once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     mailbox, post = Mailbox(Path(place)), Post(Path(place))
    ...     post({"arm": 0, "kind": "epoch"})
    ...     mailbox.deliver([0, 1], print)
    ...     mailbox.deliver([0, 1], print)
    {'arm': 0, 'kind': 'epoch'}
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[int, int] = {}

    def deliver(self, arms: Iterable[int], report: Callable[[Event], None]) -> None:
        """Hand the new events of these arms to ``report``, arm by arm."""
        for arm in arms:
            try:
                with open(self._folder / f"{arm}.jsonl", "rb") as file:
                    file.seek(self._read.get(arm, 0))
                    lines, _, _ = file.read().rpartition(b"\n")
            except FileNotFoundError:
                continue
            if lines:
                self._read[arm] = self._read.get(arm, 0) + len(lines) + 1
            for line in filter(None, lines.split(b"\n")):
                with suppress(ValueError):  # a process died within a line, and the next one wrote behind it
                    report(json.loads(line))
