"""What errors about an unknown name say: the known one that is nearest, or all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5  # of difflib's similarity; what is less alike is another word, not a slip of the finger


def closest(name: object, known: Iterable[object], count: int = 1) -> list[str]:
    """Return at most ``count`` of the known names that are much like ``name``, the most alike first.

    >>> closest("3.weigth", ["3.weight", "5.weight", "norm"], count=3)
    ['3.weight', '5.weight']
    """
    return difflib.get_close_matches(str(name), [str(k) for k in known], n=count, cutoff=CUTOFF)


def nearest(name: object, known: Iterable[object]) -> str:
    """Return the end of an error about an unknown name: the nearest one, or else all that are known.

    >>> nearest("digit", ["digits", "diabetes"]), nearest("zzz", ["digits", "diabetes"])
    ("did you mean 'digits'?", 'known are digits, diabetes')
    """
    names = [str(k) for k in known]
    near = closest(name, names)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names) or 'none'}"


def unknown(kind: str, name: object, known: Iterable[object], also: str = "") -> str:
    """Return the whole error: the nearest name, and all there are; ``also``: what else would have done.

    >>> print(unknown("allocation", "lmap", ["global", "lamp"], also="a function"))
    unknown allocation 'lmap': did you mean 'lamp'? (known: global, lamp; or a function)
    """
    names = [str(k) for k in known]
    hint = "".join(f": did you mean {near!r}?" for near in closest(name, names))
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(names)}{f'; or {also}' * bool(also)})"
