"""Sentence pairs: read from a file, and split so that no sentence stands on two sides."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[str, str]
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UNPACK = {".lz4": "lz4", ".zst": "zstd"}  # programs: apt packs its lists so on small systems
_APT_HELPER = "/usr/lib/apt/apt-helper"  # comes with apt, and unpacks whatever apt packs


@dataclass(frozen=True)
class Pairs:
    """Training, validation and test pairs (source sentence, target sentence)."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


def clean(text: str) -> str:
    """Return ``text`` in Unicode's composed form, with single blanks and none at the ends.

    >>> clean("  two\\t words ")
    'two words'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a text file (UTF-8, plain or .gz, .bz2, .xz) of lines "source TAB target"; empty lines count as nothing.

    Sentences are cleaned, and a pair that stands there twice is read once. Raises ``ValueError`` naming the line that
    is no pair, or the file if it is no text or empty.
    """
    path = Path(path).expanduser()
    found: dict[Pair, None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        columns = [clean(column) for column in line.split("\t")]
        if not any(columns):
            continue
        if len(columns) != 2 or not all(columns):
            raise ValueError(
                f"{path}, line {number}: must be source TAB target, neither empty (got {line[:60]!r})"
            )
        found[columns[0], columns[1]] = None
    if not found:
        raise ValueError(f"{path} holds no pair: each line must be source TAB target")
    return list(found)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends, unpacked by what its name ends in."""
    try:
        if path.suffix in _UNPACK:
            yield from _unpacked(path).decode("utf-8-sig").split("\n")
            return
        with _OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged, or no text in UTF-8: {error}") from error


def split_pairs(pairs: Iterable[Pair], validation: int, test: int) -> Pairs:
    """Hold out ``validation`` and ``test`` pairs so that no sentence of either language is in two of the splits.

    Sentences that differ by case, punctuation or blanks only count as the same. Pairs that share one, also by way of
    others, go together. Which are held out follows from their text alone: not from their order, nor from a seed.

    Raises ``ValueError`` where that many cannot be held out.

    >>> split = split_pairs([("a", "x"), ("b", "x"), ("b.", "y"), ("c", "z"), ("d", "w")], validation=1, test=1)
    >>> len(split.train), sorted(split.validation + split.test)
    (3, [('c', 'z'), ('d', 'w')])
    """
    pairs = list(dict.fromkeys(pairs))
    if min(validation, test) < 1 or validation + test >= len(pairs):
        raise ValueError(
            f"cannot hold out {validation} pairs to validate and {test} to test, at least 1 each, of {len(pairs)}"
        )
    groups = sorted(_connected(pairs), key=lambda group: min(_digest(pair) for pair in group))
    parts: dict[str, list[Pair]] = {"test": [], "validation": [], "train": []}
    room = {"test": test, "validation": validation, "train": len(pairs)}
    for group in groups:
        part = next(name for name, members in parts.items() if len(members) + len(group) <= room[name])
        parts[part] += group
    short = next((name for name in ("test", "validation") if len(parts[name]) < room[name]), None)
    if short or not parts["train"]:
        raise ValueError(
            f"cannot hold out {validation} pairs to validate and {test} to test of {len(pairs)}: so many share their "
            "sentences with others that too few groups are left; hold out fewer"
        )
    return Pairs(*(tuple(parts[name]) for name in ("train", "validation", "test")))


def without(pairs: Iterable[Pair], held: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return the ``pairs`` that share no sentence with those ``held`` out elsewhere.

    >>> without([("a", "x"), ("b", "y")], [("B.", "z")])
    (('a', 'x'),)
    """
    taken = {key for pair in held for key in map(sentence_key, pair)}
    return tuple(pair for pair in pairs if taken.isdisjoint(map(sentence_key, pair)))


def some_of(pairs: tuple[Pair, ...], size: int) -> tuple[Pair, ...]:
    """Return ``size`` of the ``pairs``: which ones follows from their text alone; in the order they had."""
    if not 0 < size <= len(pairs):
        raise ValueError(f"'subset' must be in 1..{len(pairs)}, the training pairs there are (got {size})")
    chosen = set(sorted(pairs, key=_digest)[:size])
    return tuple(pair for pair in pairs if pair in chosen)


def sentence_key(text: str) -> str:
    """Return what two sentences have in common that differ by case, punctuation or blanks only.

    >>> sentence_key("A game, of sorts."), sentence_key("?!")
    ('a game of sorts', '?!')
    """
    return re.sub(r"\W+", " ", text.casefold()).strip() or text


def _connected(pairs: list[Pair]) -> list[list[Pair]]:
    """Group pairs that share a sentence, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys = [(sentence_key(source), sentence_key(target)) for source, target in pairs]
    for source, target in keys:
        parent[root(source)] = root(target)
    groups: dict[str, list[Pair]] = {}
    for pair, (source, _) in zip(pairs, keys):
        groups.setdefault(root(source), []).append(pair)
    return list(groups.values())


def _digest(pair: Pair) -> bytes:
    return hashlib.sha256("\t".join(pair).encode()).digest()


def _unpacked(path: Path) -> bytes:
    program = _UNPACK[path.suffix]
    if shutil.which(_APT_HELPER):
        command = [_APT_HELPER, "cat-file", str(path)]
    elif shutil.which(program):
        command = [program, "-dc", str(path)]
    else:
        raise ValueError(f"{path} is packed by {program}, which is not there: install it, or unpack the file")
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise ValueError(f"{path} is damaged: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
