"""English sentences and their translations from Debian's own package descriptions.

apt keeps a list of descriptions for each language (``*_i18n_Translation-de``). An entry holds one line that says what
the package is, then paragraphs and lists; volunteers translate paragraph by paragraph, and the MD5 of the English text
ties an entry to its translation. So paragraphs pair up by their order, and sentences within most of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rewound.tasks.pairs import Pair, clean, read_lines

HOW = (
    "apt's lists of package descriptions, which 'apt-get -o Acquire::Languages=en,de update' (as root, on Debian) "
    "writes to /var/lib/apt/lists"
)
_FIELD = re.compile(r"([\w-]+):\s*(.*)")
_BULLET = re.compile(r"[-*+o\u2022]\s+(?=\S)")
_SENTENCE = re.compile(r"(?<=[^.\s]{3}[.!?])\s+(?=[\"(\u00bb\u201e]?[A-Z\u00c4\u00d6\u00dc])")
_LETTERS = re.compile(r"[^\W\d_]{2}")


def list_files(folder: Path, language: str) -> list[Path]:
    """Return the lists of a language in ``folder``, plain or packed, sorted by name."""
    named = re.compile(rf"(.*_)?Translation-{re.escape(language)}(\.(gz|bz2|xz|lz4|zst))?")
    return sorted(path for path in folder.iterdir() if named.fullmatch(path.name))


def read_debian(folder: str | Path, source: str = "en", target: str = "de") -> list[Pair]:
    """Return pairs (sentence in ``source``, the same in ``target``) of all descriptions that both languages have.

    Where a paragraph has as many sentences in both languages, each is a pair; else the paragraph is. What is not
    translated at all, lies far apart in length or has no words is left out. In order of the lists; no pair twice.

    Raises ``FileNotFoundError`` for a language without a list, ``ValueError`` naming a file that is none and for lists
    that have nothing in common.
    """
    folder = Path(folder).expanduser()
    found = []
    for language in (source, target):
        files = list_files(folder, language) if folder.is_dir() else []
        if not files:
            raise FileNotFoundError(f"no list *Translation-{language} in {folder}: get {HOW}")
        entries: dict[tuple[str, str], list[str]] = {}
        for file in files:
            for key, lines in read_descriptions(file, language):
                entries.setdefault(key, lines)
        found.append(entries)
    sources, targets = found
    pairs = (
        pair for key, lines in sources.items() if key in targets for pair in aligned(lines, targets[key])
    )
    kept = list(dict.fromkeys(pair for pair in pairs if _is_translation(*pair)))
    if not kept:
        raise ValueError(
            f"the lists {source} and {target} in {folder} have no description in common: fetch them anew, together"
        )
    return kept


def read_descriptions(path: Path, language: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield ((package, MD5 of the English description), lines of the description in ``language``) for each entry."""
    entry: dict[str, list[str]] = {}
    lines: list[str] | None = None
    text = f"Description-{language}"
    for number, line in enumerate([*read_lines(path), ""], start=1):
        if not line:
            if entry:
                missing = [name for name in ("Package", "Description-md5", text) if name not in entry]
                if missing:
                    raise ValueError(
                        f"{path}: the entry that ends in line {number} has no {missing[0]}: this is no list of "
                        f"descriptions in {language!r}"
                    )
                yield (entry["Package"][0], entry["Description-md5"][0]), entry[text]
            entry, lines = {}, None
        elif line[0] == " " and lines is not None:
            lines.append(line[1:])
        elif match := _FIELD.fullmatch(line):
            lines = entry[match[1]] = [match[2]]
        else:
            raise ValueError(
                f"{path}, line {number}: not 'Field: value': this is no list of package descriptions"
            )


def aligned(source: list[str], target: list[str]) -> Iterator[Pair]:
    """Yield pairs of the first lines and, paragraph by paragraph, of the rest of two descriptions.

    >>> list(aligned(["ball game", "Hit it.", " * one", " * two"], ["Ballspiel", "Triff.", " * eins", " * zwei"]))
    [('ball game', 'Ballspiel'), ('Hit it.', 'Triff.'), ('one', 'eins'), ('two', 'zwei')]
    """
    yield clean(source[0]), clean(target[0])
    paragraphs = _paragraphs(source[1:]), _paragraphs(target[1:])
    if len(paragraphs[0]) != len(paragraphs[1]):
        return
    for a, b in zip(*paragraphs):
        blocks = _blocks(a), _blocks(b)
        if len(blocks[0]) != len(blocks[1]):
            continue
        for one, other in zip(*blocks):
            sentences = _SENTENCE.split(one), _SENTENCE.split(other)
            yield from zip(*sentences) if len(sentences[0]) == len(sentences[1]) else [(one, other)]


def _paragraphs(lines: Iterable[str]) -> list[list[str]]:
    """Cut at the lines that hold a full stop and nothing else."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == ".":
            found.append([])
        else:
            found[-1].append(line)
    return [paragraph for paragraph in found if paragraph]


def _blocks(paragraph: list[str]) -> list[str]:
    """Join lines that belong together: running text, and each item of a list (indented lines that are no item's are
    set as they stand, so each is a block)."""
    found: list[str] = []
    item = False
    for line in paragraph:
        text = clean(line)
        bullet = _BULLET.match(text)
        if bullet:
            found.append(text[bullet.end() :])
        elif found and (item or not line.startswith(" ")):
            found[-1] += " " + text
        else:
            found.append(text)
        item = bullet is not None or (item and line.startswith(" "))
    return found


def _is_translation(source: str, target: str) -> bool:
    lengths = sorted((len(source), len(target)))
    words = _LETTERS.search(source) and _LETTERS.search(target)
    return bool(words) and source.casefold() != target.casefold() and lengths[1] <= 2 * lengths[0] + 20
