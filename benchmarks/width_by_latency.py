"""Speed-ups asked of ``rewound.for_speedup`` and met: ResNet-20 and a BERT of four layers, batch 1, one thread.

    python benchmarks/width_by_latency.py                              # asks 1.5x, 2x and 3x of each
    python benchmarks/width_by_latency.py --networks ResNet-20 --asked 2
    python benchmarks/width_by_latency.py --quick --out /tmp           # tiny networks: does it run?

Each network in a process of its own, with random weights (latency does not look at values), pattern "unit". "Chosen by": the
measurement with which the allocation stopped. "Met": measured anew when all choices are made, the dense and the smaller
networks in turns; median and quartiles of the ratios of each turn, by process CPU time and by wall time. "In" says whether
the newly measured CPU time is within 5 % of what was asked. What cannot be reached is refused, with the largest
speed-up there is; that is a row of the table too.

Takes about five minutes on a quiet machine. Finished networks are kept in --work.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from _fresh import answer, ask, parser
from _machine import facts, write_record

CHOSEN = ["ResNet-20", "BERT-base, 4 layers"]
ASKED = [1.5, 2.0, 3.0]
TOLERANCE = 0.05


# ---- in a process of its own -------------------------------------------------------------------------------------


def child(network: str, quick: bool, asked: list[float], seconds: float) -> list[dict[str, Any]]:
    """Return a row for each of the speed-ups asked for."""
    from _networks import build

    import rewound
    from rewound.measure.latency import Stopwatch, ratio

    model, example = build(network, quick)
    rows, smaller = [], []
    for times in asked:
        goal = rewound.for_speedup(times, threads=1, tolerance=TOLERANCE, seconds=seconds)
        wall, cpu = time.perf_counter(), time.process_time()
        row: dict[str, Any] = {"asked": times}
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                mask = rewound.prune(model, None, pattern="unit", allocation=goal, example=example)
            row |= {"planned_s": time.perf_counter() - wall, "planned_cpu_s": time.process_time() - cpu}
            small = rewound.compact(model, mask, example)
        except ValueError as error:
            rows.append({**row, "refused": str(error)})
            continue
        widths = goal.widths
        rows.append(
            {
                **row,
                "tries": widths.tries,
                "chosen_by": _figures(widths.speedup),
                "multiply_adds": widths.multiply_adds,
                "parameters": widths.parameters,
                "widths": {width.name: [width.kept, width.size] for width in widths.groups},
                "warned": [str(w.message)[:300] for w in said],
            }
        )
        smaller.append((rows[-1], small))
    for clock in ("cpu", "wall"):
        watch = Stopwatch(threads=1, clock=clock, seconds=2 * seconds * (1 + len(smaller)))
        dense, *timings = watch.models([model, *(small for _, small in smaller)], example)
        for (row, _), timing in zip(smaller, timings):
            row[f"met_{clock}"] = _figures(ratio(dense, timing))
            row[f"ms_{clock}"] = [1e3 * dense.median, 1e3 * timing.median]
    return rows


def _figures(ratio: Any) -> list[float]:
    return [ratio.median, *ratio.spread]


# ---- the record --------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    lines = [
        "Times faster: median (quartiles). Milliseconds: process CPU time of one call. Shares: of what the dense network has.",
        "",
        "| network | asked | met (CPU time) | in | met (wall time) | chosen by | ms | multiply-adds | parameters | networks "
        "tried | planned in |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, rows in found.items():
        if isinstance(rows, dict):
            lines.append(f"| {network} | failed: {rows['failed']} |" + " |" * 9)
            continue
        for row in rows:
            if "refused" in row:
                lines.append(f"| {network} | {row['asked']}x | refused: {row['refused']} |" + " |" * 8)
                continue
            near = abs(row["met_cpu"][0] / row["asked"] - 1) <= TOLERANCE
            shares = [f"{after / before:.3f}" for before, after in (row["multiply_adds"], row["parameters"])]
            before, after = row["ms_cpu"]
            cells = [
                network,
                f"{row['asked']}x",
                _ratio(row["met_cpu"]),
                "yes" if near else "no",
                _ratio(row["met_wall"]),
                _ratio(row["chosen_by"]),
                f"{before:.3g} to {after:.3g}",
                *shares,
                str(row["tries"]),
                f"{row['planned_s']:.0f} s ({row['planned_cpu_s']:.0f} s CPU)",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(figures: list[float]) -> str:
    return f"{figures[0]:.2f} ({figures[1]:.2f} to {figures[2]:.2f})"


def main() -> None:
    made = parser(__doc__, work="runs/width-by-latency")
    made.add_argument("--networks", nargs="+", choices=CHOSEN, default=CHOSEN)
    made.add_argument(
        "--asked", nargs="+", type=float, default=ASKED, help="times faster (default: 1.5, 2, 3)"
    )
    made.add_argument(
        "--seconds", type=float, default=3.0, help="of one comparison of two networks (default: %(default)s)"
    )
    given = made.parse_args()
    if given.child:
        return answer(given.child, child)
    machine = {**facts(), "torch_threads": 1}
    seconds = 0.2 if given.quick else given.seconds
    found = {}
    for network in given.networks:
        found[network] = ask(
            given.work, network=network, quick=given.quick, asked=given.asked, seconds=seconds
        )
        print("\n".join(table({network: found[network]}).splitlines()[4:]), flush=True)
    path = write_record("width_by_latency", {"machine": machine, "rows": found}, table(found), given.out)
    print("\nrecord:", path)
    return None


if __name__ == "__main__":
    main()
