"""Who may work in a run's folder: one process at a time, and none that has lost its right to.

Any number of processes, on any machines, may be given the same run. The first to come holds the lease, the others wait until
it is free and then find the work done, or go on with it. The operating system frees the lease of a process that dies. A lease
can be lost all the same, where somebody deletes the file or a file server forgets its locks; who has lost it stops at the next
epoch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = (
    ".lock-run"  # beside the '.lock' of the Run itself, which is not held while results are read and written
)


class LostLeaseError(RuntimeError):
    """This process no longer holds its run's folder; another one may."""


@contextmanager
def leased(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold ``folder``, waiting for it as long as it takes; yield ``check()``, which raises LostLeaseError once it is lost.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place, leased(Path(place) / "run") as check:
    ...     check()
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    lock = FileLock(path)
    with lock.acquire(timeout=-1, poll_interval=0.2):
        held = _identity(path)

        def check() -> None:
            if held is None or _identity(path) != held:
                raise LostLeaseError(
                    f"this process no longer holds {str(folder)!r}: its {NAME} was deleted or replaced while it worked there"
                )

        yield check


def _identity(path: Path) -> tuple[int, int] | None:
    """The file's device and inode; the inode of a file that a process has open is not given to another one."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_held(folder: Path) -> bool:
    """Return whether some process holds ``folder`` now."""
    from filelock import FileLock, Timeout

    if not (folder / NAME).is_file():
        return False
    try:
        with FileLock(folder / NAME).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False
