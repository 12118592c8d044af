"""A comparison for people: one line a runtime and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewound.measure.bench.verdict import title, zeros_in_words

if TYPE_CHECKING:
    from rewound.measure.bench.compare import Comparison, Row

_HEAD = (
    "runtime",
    "batch",
    "ms (quartiles)",
    "p95 ms",
    "CPU ms",
    "rows/s",
    "error",
    "file MB",
    "load s",
    "MB added",
)


def as_text(found: Comparison) -> str:
    """Return the table, what was left out, and the verdict."""
    lines = [_cells(row) for row in found.rows]
    widths = [max(len(line[i]) for line in [_HEAD, *lines]) for i in range(len(_HEAD))]
    table = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]).rstrip()
        for line in [_HEAD, *lines]
    ]
    threads = f"{found.threads} thread" + "s" * (found.threads != 1)
    what = f"{found.name}: {found.weights:,} weights. {zeros_in_words(found.share)}"
    how = (
        f"{found.machine['cpu']}, {threads}, {max(len(r.times.samples) for r in found.rows)} rounds"
        if found.rows
        else ""
    )
    notes = [f"{title(name)}: {why}" for name, why in found.left_out.items()]
    notes += [
        f"{title(row.runtime)} is wrong: its error is {row.error:.1e}" for row in found.rows if not row.right
    ]
    legend = f"ms: median wall time of a call; error: largest, relative, against {found.against}; MB added: resident after calls."
    return "\n".join([what, how, "", *table, "", legend, *notes, "", found.verdict])


def _cells(row: Row) -> tuple[str, ...]:
    name = row.runtime + " (dense twin)" * (row.network == "dense twin")
    fresh = row.fresh or {}
    return (
        name,
        str(row.batch),
        str(row.wall).replace(" ms", ""),
        f"{1e3 * row.p95:.3g}",
        f"{1e3 * row.cpu.median:.3g}",
        f"{row.batch / row.wall.median:,.0f}"
        if row.batch / row.wall.median >= 100
        else f"{row.batch / row.wall.median:.1f}",
        "-" if row.error is None else f"{row.error:.1e}",
        "-" if row.file_bytes is None else f"{row.file_bytes / 1e6:.3g}",
        f"{fresh['load_seconds']:.2f}" if "load_seconds" in fresh else "-",
        f"{fresh['resident_added'] / 1e6:.0f}" if fresh.get("resident_added") is not None else "-",
    )
