"""Which units of a network's structure are candidates: by kind or name, by scope, and by how exact their removal is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rewound.compaction.units import Certificate, Group, Structure
from rewound.scope import Scope
from rewound.spelling import unknown

KINDS = ("channel", "hidden unit", "head", "query head", "head dim", "group", "width")

# name of a pattern -> kinds of units it takes
FAMILIES: dict[str, frozenset[str]] = {
    "channel": frozenset({"channel", "group"}),
    "filter": frozenset({"channel"}),  # of these, what exactly one convolution writes
    "hidden unit": frozenset({"hidden unit"}),
    "head": frozenset({"head", "query head"}),
    "unit": frozenset(KINDS) - {"head dim", "width"},
    **{kind: frozenset({kind}) for kind in ("query head", "head dim", "group", "width")},
}


@dataclass(frozen=True)
class Kinds:
    """Units by kind ("channel", "unit"), or by the name of their group (a glob pattern may match several).

    ``structure``: where it is known already; nothing ``asked`` then means all of its groups. A filter (Li et al. 2017) is a
    channel that one convolution alone writes: no residual sum couples it to another's.
    """

    asked: tuple[str, ...]
    structure: Structure | None = None

    def __str__(self) -> str:
        return ", ".join(self.asked) or f"structure of {len(self.structure or ())} groups"

    def wants(self, group: Group) -> bool:
        """Return whether any of what is asked for means this group."""
        return not self.asked or any(_means(asked, group) for asked in self.asked)


def _means(asked: str, group: Group) -> bool:
    if asked in FAMILIES:
        alone = asked != "filter" or len({s.tensor for s in group.slices if s.role == "writes"}) == 1
        return group.kind in FAMILIES[asked] and alone
    return asked == group.name or fnmatchcase(group.name, asked)


def as_certificate(allow: str | Certificate) -> Certificate:
    """Return the certificate of that name: "exact", "exact after fold", "exact after rescale", "approximate".

    >>> as_certificate("exact after fold") <= Certificate.EXACT_AFTER_RESCALE
    True
    """
    if isinstance(allow, Certificate):
        return allow
    known = {str(each).lower(): each for each in Certificate}
    if not isinstance(allow, str) or allow.lower() not in known:
        raise ValueError(unknown("certificate", allow, known))
    return known[allow.lower()]


def candidates(
    structure: Structure,
    kinds: Kinds,
    scope: Scope,
    allow: str | Certificate = Certificate.EXACT_AFTER_FOLD,
    only: Iterable[str] | None = None,
) -> Structure:
    """Return the structure with those groups that may be pruned as the only ones.

    A group is a candidate if ``kinds`` asks for it, if every weight that writes it is in scope (a frozen or excluded writer
    keeps its units), and if its certificate is ``allow`` or better. only: names of groups; others are left out.

    ValueError, with the kinds there are and the reasons, if no group is a candidate; for a name that is none.
    """
    level = as_certificate(allow)
    for asked in kinds.asked:
        if asked not in FAMILIES and not any(_means(asked, group) for group in structure):
            names = [*FAMILIES, *(group.name for group in structure)]
            raise ValueError(unknown("kind or group of units", asked, names))
    kept, left = [], {}
    limited = None if only is None else set(only)
    for group in structure:
        if kinds.wants(group) and (limited is None or group.name in limited):
            why = _why_not(group, scope, level)
            if why is None:
                kept.append(group)
            else:
                left[group.name] = why
    if not kept:
        raise ValueError(_nothing(structure, kinds, left))
    return structure.restricted(kept)


def _why_not(group: Group, scope: Scope, level: Certificate) -> str | None:
    for s in group.writers:
        if s.tensor not in scope.sizes:
            why = scope.reasons.get(s.tensor, "not in scope")
            return f"its writer {s.tensor!r} is left out: {why}"
    if group.certificate > level:
        name = str(group.certificate).lower()
        because = f" ({group.why})" if group.why else ""
        return f"its removal is {name}{because}: allow={name!r} admits it"
    return None


def _nothing(structure: Structure, kinds: Kinds, left: Mapping[str, str]) -> str:
    """Say what there is, and why none of it can be pruned."""
    groups, units = Counter[str](), Counter[str]()
    for group in structure:
        groups[group.kind] += 1
        units[group.kind] += group.size
    there = ", ".join(f"{units[kind]:,} of kind {kind!r} in {groups[kind]} groups" for kind in groups)
    # The positions of a kernel are no units; that they stay explains nothing.
    fixed = {f"{name!r} axis {axis}": why for (name, axis), why in structure.fixed.items() if axis < 2}
    lines = [
        f"nothing can be pruned by pattern '{kinds}'; the units of this model: {there or 'none'}",
        *_grouped({repr(name): why for name, why in left.items()}),
        *(f"fixed: {line}" for line in _grouped(fixed)),
    ]
    return "\n  ".join(lines)


def _grouped(reasons: Mapping[str, str], most: int = 5) -> list[str]:
    """The most frequent reasons, each with the first of what it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    by_count = sorted(names.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{', '.join(those[:3])}{f' and {len(those) - 3} more' if len(those) > 3 else ''}: {why}"
        for why, those in by_count[:most]
    ]
    rest = len(by_count) - most
    return lines + ([f"... and {rest} more reasons"] if rest > 0 else [])
