"""What was asked of the widths, and what was met."""

from __future__ import annotations

from dataclasses import dataclass

from rewound.measure.latency import Ratio, Timing


@dataclass(frozen=True)
class Width:
    """One group: units kept of its size, the share of its importance that was lost, and, where it was timed, seconds of its
    operators before and after (in the table of single operators)."""

    name: str
    kind: str
    kept: int
    size: int
    lost: float
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Widths:
    """The widths that an allocation chose, what they were to meet and what they meet. Print it.

    goal: "speed-up", "multiply-adds" or "parameters"; asked: the number asked for. multiply_adds, parameters: (before,
    after), computed. speedup, before, after: measured in turn, for a speed-up alone; where: batch, clock and threads.
    tries: how many networks were measured.
    """

    goal: str
    asked: float
    groups: tuple[Width, ...]
    multiply_adds: tuple[int, int]
    parameters: tuple[int, int]
    speedup: Ratio | None = None
    before: Timing | None = None
    after: Timing | None = None
    where: str = ""
    tries: int = 0

    @property
    def met(self) -> float:
        """What was met, in the measure of ``asked``."""
        if self.speedup is not None:
            return self.speedup.median
        before, after = self.multiply_adds if self.goal == "multiply-adds" else self.parameters
        return after / before if before else 1.0

    @property
    def kept(self) -> dict[str, int]:
        """Name of a group -> units kept."""
        return {group.name: group.kept for group in self.groups}

    def __str__(self) -> str:
        return "\n".join([*self._sentences(), "", *self._table()])

    def _sentences(self) -> list[str]:
        if self.goal != "speed-up":
            lines = [
                f"asked: {self.asked:.3g} of the {self.goal}; met: {self.met:.3g} (computed, not measured)"
            ]
        else:
            turns = 0 if self.after is None else len(self.after.samples)
            lines = [
                f"asked: {self.asked:.3g}x faster; met: {self.speedup} (median and quartiles of {turns} turns)",
                f"measured: {self.before} before, {self.after} after; {self.where}",
            ]
        for what, (before, after) in (("multiply-adds", self.multiply_adds), ("parameters", self.parameters)):
            share = after / before if before else 1.0
            lines.append(f"computed: {after:,} of {before:,} {what} ({share:.3g})")
        return lines

    def _table(self) -> list[str]:
        timed = any(group.before is not None for group in self.groups)
        rows: list[tuple[str, ...]] = [
            ("group", "kind", "kept", "of", "importance lost", *(("ms before", "ms after") if timed else ()))
        ]
        for g in self.groups:
            times = ["" if s is None else f"{1e3 * s:.3g}" for s in (g.before, g.after)] if timed else []
            rows.append((g.name or ".", g.kind, f"{g.kept:,}", f"{g.size:,}", f"{g.lost:.1%}", *times))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return [
            "  ".join(
                cell.ljust(n) if k < 2 else cell.rjust(n) for k, (cell, n) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
