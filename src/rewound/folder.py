"""A run's folder: atomic files whose names carry their checksum, one writer at a time, one configuration.

    run.json                            what this run is; another configuration is refused with the difference
    result.json                         the rounds so far, for people and tools
    rounds/03/mask-<sum>.pt             of each finished round: its mask and the hyper-parameters it used
    rounds/03/trace-<sum>.pt
    state/epoch-000123-<sum>.pt         the newest states to go on from (two are kept), and the snapshots that the
    state/rewind-000004-<sum>.pt        plan needs; with several processes, state-1/ and so on for ranks 1 and up

A file is written to a temporary name, flushed to the disk and renamed, so it is there whole or not at all; a name ends in
the first 16 hex digits of its content's SHA-256, so an altered file is recognised without a second file to agree with.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import torch

_NAME = re.compile(r"(?P<kind>[a-z]+)(-(?P<number>\d{6,}))?-(?P<sum>[0-9a-f]{16})\.pt")


class Folder:
    """The folder of one run, held by this process until ``close()`` (or its death)."""

    def __init__(self, path: str | os.PathLike[str], rank: int = 0) -> None:
        self.path = Path(path)
        self._states = self.path / ("state" if rank == 0 else f"state-{rank}")
        self._first = rank == 0
        for part in (self.path, *self.path.parents):
            if part.exists() and not part.is_dir():
                raise NotADirectoryError(f"'folder' must be a folder, and {str(part)!r} is a file")
        try:
            self._states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"cannot make {str(self._states)!r} for the run's states ({error}); give another folder"
            ) from error
        self._lock = filelock.FileLock(self.path / (".lock" if rank == 0 else f".lock-{rank}"))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RuntimeError(
                f"another process is working in {str(self.path)!r}; wait for it, stop it, or give this run another folder"
            ) from None
        for stale in self._states.glob("*.tmp"):  # left by a process that died while writing
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def claim(
        self, configuration: Mapping[str, Any], replaceable: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """Make this folder that configuration's, or raise ``ValueError`` showing how the folder's own differs.

        ``replaceable`` is asked, where something differs, which entries may.
        """
        asked = json.loads(json.dumps(configuration))
        there = self.configuration
        if there is None:
            self.write_json("run.json", asked)
            return
        differences = list(_differences(there, asked))
        if differences:
            allowed = replaceable()
            if all(text.partition(":")[0] in allowed for text in differences):
                self.write_json("run.json", asked)
                return
            raise ValueError(
                f"{str(self.path)!r} holds another run. What differs (there -> here):\n  "
                + "\n  ".join(differences)
                + "\nGive this run another folder, or delete that one."
            )

    @property
    def configuration(self) -> dict[str, Any] | None:
        """What the folder's run is, or None where none began."""
        return self.read_json("run.json")

    def read_json(self, name: str) -> Any:
        """Return a JSON file's content, None where there is none; ``ValueError`` names a damaged one."""
        return read_json(self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically (rank 0 only)."""
        if self._first:
            text = json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"
            write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def save_state(self, kind: str, number: int, content: Mapping[str, Any], keep: int = 1) -> Path:
        """Write a state file of this rank, then delete all but the newest ``keep`` of its kind."""
        path = _write_sum_named(self._states, f"{kind}-{number:06d}", content)
        for old in self._of_kind(kind):
            if old != path and _number(old) == number:  # a damaged one, written again
                old.unlink(missing_ok=True)
        for old in self._of_kind(kind)[keep:]:
            if old != path:
                old.unlink(missing_ok=True)
        return path

    def adopt(self, other: Path, states: Iterable[tuple[str, int]]) -> None:
        """Take over states (kind, number) of another folder, in this order: one file with two names where the disk can, else
        copies. ``FileNotFoundError`` names one that is not there."""
        source = other / self._states.name
        for kind, number in states:
            found = sorted(source.glob(f"{kind}-{number:06d}-*.pt"))
            whole = next((path for path in found if damage(path) is None), None)
            if whole is None:
                raise FileNotFoundError(
                    f"{str(source)!r} has no intact {kind!r} state {number}, which this run begins from; was it among the "
                    "'snapshots' of that run?"
                )
            if not (self._states / whole.name).exists():
                _link(whole, self._states / whole.name)
        _sync_folder(self._states)

    def state_numbers(self, kind: str) -> list[int]:
        """Return the numbers of the intact states of a kind, newest first; damaged ones are named in a warning."""
        return [_number(path) for path in self._of_kind(kind) if _intact(path)]

    def load_state(self, kind: str, number: int) -> dict[str, Any]:
        """Return a state by kind and number, having checked it."""
        same = [path for path in self._of_kind(kind) if _number(path) == number]
        if same:
            return load_checked(next((path for path in same if damage(path) is None), same[0]))
        raise FileNotFoundError(
            f"{str(self._states)!r} has no {kind!r} state {number}, which this run needs to go on; "
            "it was deleted or never finished. Start again in another folder"
        )

    def save_round(self, index: int, kind: str, content: Mapping[str, Any]) -> None:
        """Write a finished round's ``mask`` or ``trace`` (rank 0 only)."""
        if self._first:
            folder = self.path / "rounds" / f"{index:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            path = _write_sum_named(folder, kind, content)
            for other in folder.glob(f"{kind}-*.pt"):
                if other != path:
                    other.unlink(missing_ok=True)

    def load_round(self, index: int, kind: str) -> dict[str, Any]:
        """Return a finished round's ``mask`` or ``trace``, having checked it."""
        folder = self.path / "rounds" / f"{index:02d}"
        # A process that died between writing and tidying up leaves two: the newer one that is whole counts.
        found = sorted(
            folder.glob(f"{kind}-*.pt"), key=lambda path: (damage(path) is not None, -path.stat().st_mtime_ns)
        )
        if not found:
            raise FileNotFoundError(f"{str(folder)!r} has no {kind}; start again in another folder")
        return load_checked(found[0])

    def _of_kind(self, kind: str) -> list[Path]:
        paths = [p for p in self._states.glob(f"{kind}-*.pt") if _NAME.fullmatch(p.name)]
        return sorted(paths, key=_number, reverse=True)


def read_json(path: Path) -> Any:
    """Return a JSON file's content, None where there is none; ``ValueError`` names a damaged one."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); delete the folder to start again") from None


def _link(path: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the disk knows no second names; whole or not at all."""
    temporary = target.with_suffix(".tmp")
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, target)


def _without_nan(content: Any) -> Any:
    """JSON has no NaN and no infinity: they become null. The states keep them."""
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file through a temporary one in the same folder, so that ``path`` is whole or as it was before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def checksum(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def damage(path: Path) -> str | None:
    """Return what is wrong with a sum-named file, None where nothing is."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return "its name carries no checksum"
    found = checksum(path)
    if found != match["sum"]:
        return f"its content has checksum {found}, its name says {match['sum']}: truncated or altered"
    return None


def load_checked(path: Path) -> dict[str, Any]:
    """Return the content of a sum-named file; ``ValueError`` names a damaged one. No pickled code is run."""
    if wrong := damage(path):
        raise ValueError(f"{str(path)!r} is damaged ({wrong}); start again in another folder")
    return torch.load(path, map_location="cpu", weights_only=True)


class _Summing(io.RawIOBase):
    """Passes bytes on to a file and keeps their checksum, so that a large state is never in memory twice."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def writable(self) -> bool:
        return True


def _write_sum_named(folder: Path, stem: str, content: Mapping[str, Any]) -> Path:
    temporary = folder / f"{stem}.tmp"
    try:
        with open(temporary, "wb") as file:
            summing = _Summing(file)
            torch.save(dict(content), summing)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{stem}-{summing.digest.hexdigest()[:16]}.pt"
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        left = (
            "the states written before are whole, so the run goes on from them when it is started again"
            if folder.is_dir()
            else "the folder is gone, so the run must be started again from the beginning"
        )
        raise OSError(f"could not write {str(temporary)!r} ({error}); {left}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    return path


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # not on Windows, where a rename needs no such help
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError:
            pass  # some network and shared file systems cannot flush a folder; the file itself is flushed
        finally:
            os.close(handle)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match["number"] or 0) if match else -1


def _intact(path: Path) -> bool:
    if wrong := damage(path):
        warnings.warn(f"{str(path)!r} is damaged ({wrong}); going on from the state before it", stacklevel=4)
        return False
    return True


def _differences(there: Any, here: Any, where: str = ""):
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            if key not in there or key not in here:
                missing = "there" if key not in there else "here"
                yield f"{where}{key}: not {missing} ({there.get(key, here.get(key))!r})"
            else:
                yield from _differences(there[key], here[key], f"{where}{key}.")
    elif there != here:
        yield f"{where.rstrip('.')}: {there!r} -> {here!r}"
