"""The sparse engine beside ONNX Runtime and OpenVINO, which are dense: speed, efficiency, errors, break-even.

    python benchmarks/engine.py                                 # pip install 'rewound[bench]'; about 25 minutes
    python benchmarks/engine.py --part uniform --networks ResNet-20 ResNet-50
    python benchmarks/engine.py --quick --out /tmp              # tiny networks: does it run?

Parts: "uniform" masks at batch 1 on one thread; "batches" of 16 and 64; "threads", one and two; "masks": one global threshold,
and blocks of 2x1 and 4x1. Random weights; stems of one or three channels and depthwise convolutions stay dense. Every network and
part in a process of its own, where all runtimes take turns; one thread by process CPU time, several by wall time. Speed-up: the
faster peer's time over the engine's, turn by turn: median (range). The peers get float32 and fixed shapes.

What is measured is kept in --work as soon as it is there, so that a killed benchmark goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from _fresh import answer, ask, parser, shown
from _machine import facts, write_record

NETWORKS = [
    "ResNet-50", "ResNet-20", "ResNet-56", "VGG-16", "MobileNetV2", "BERT-base, 4 layers", "MLP 4096", "LeNet-300-100",
]  # fmt: skip
SPARSITIES = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98]
UNIFORM, UNEVEN, PAIRS, FOURS = "uniform", "one global threshold", "2x1", "4x1"
# part -> batches, threads, masks (None: as asked for by --sparsities)
PARTS: dict[str, tuple[list[int], list[int], list[tuple[str, float]] | None]] = {
    "uniform": ([1], [1], None),
    "threads": ([1], [1, 2], [(UNIFORM, s) for s in (0.0, 0.9, 0.95)]),
    "masks": ([1], [1], [(kind, s) for kind in (UNEVEN, PAIRS, FOURS) for s in (0.8, 0.9, 0.95)]),
    "batches": ([16, 64], [1], [(UNIFORM, s) for s in (0.0, 0.9, 0.95, 0.98)]),
}
# speed-ups asked for: uniform masks at .8, .9, .95, .98, batch 1, one thread
BARS = {
    "ResNet-50": (2.8, 4.5, 6.5, 10),
    "ResNet-20": (3, 5, 8, 12),
    "ResNet-56": (3.5, 6, 10, 16),
    "VGG-16": (2, 4, 7, 12),
    "MobileNetV2": (1, 1.3, 1.6, 1.8),
    "BERT-base, 4 layers": (2.5, 4, 6, 8),
    "MLP 4096": (1.8, 3.6, 6.8, 14),
    "LeNet-300-100": (1, 2, 2.5, 3),
}
ERRORS, SLOWEST, BREAK_EVEN, TWO_THREADS = 4.0, 1 / 1.1, 0.5, 0.9  # asked for, of every network
Found = dict[str, dict[str, list[dict[str, Any]]]]  # network -> part -> one entry a batch


def child(
    network: str, quick: bool, batch: int, threads: list[int], masks: list[Any], rounds: int, seconds: float
) -> Any:
    """Return what one network took, in all masks, beside its peers."""
    from _engine import measured
    from _networks import build

    model, example = build(network, quick)
    asked = [(kind, sparsity) for kind, sparsity in masks]
    return measured(model, example, asked, batch=batch, threads=threads, rounds=rounds, seconds=seconds)


def main() -> None:
    made = parser(__doc__, work="runs/engine")
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    made.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    made.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES, help="of the part 'uniform'")
    made.add_argument("--rounds", type=int, default=9, help="turns at most (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=15.0, help="of turns, about; three are made anyway")
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine, found = facts(), Found()
    for part in given.part:
        batches, threads, masks = PARTS[part]
        asked = [(UNIFORM, s) for s in given.sparsities] if masks is None else masks
        for network in given.networks:
            for batch in [2 if batch > 1 else 1 for batch in batches] if given.quick else batches:
                one = ask(
                    given.work,
                    1200,
                    network=network,
                    quick=given.quick,
                    batch=batch,
                    threads=threads,
                    masks=asked,
                    rounds=3 if given.quick else given.rounds,
                    seconds=given.seconds,
                )
                found.setdefault(network, {}).setdefault(part, []).append(one)
                print(f"{part}, {network}, batch {batch}: {_brief(one)}", flush=True)
    page = text(found)
    name = "engine" if list(given.part) == list(PARTS) else "engine-" + "-".join(given.part)
    print("", page, "", write_record(name, {"machine": machine, "found": found}, page, given.out), sep="\n")


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def clock(threads: int) -> str:
    return "cpu_ms" if threads == 1 else "wall_ms"


def fastest(one: Mapping[str, Any], threads: int) -> tuple[str, list[float]] | None:
    """Return the faster peer and its milliseconds, turn by turn."""
    times = {name: by[str(threads)][clock(threads)] for name, by in one.get("peers", {}).items()}
    return min(times.items(), key=lambda item: statistics.median(item[1])) if times else None


def speed_ups(one: Mapping[str, Any], mask: Mapping[str, Any], threads: int) -> list[float]:
    """How many times faster than the faster peer, turn by turn; nothing where one of them is missing."""
    peer, engine = fastest(one, threads), mask["engine"].get(str(threads), {})
    if peer is None or "failed" in engine or not engine:
        return []
    return [a / b for a, b in zip(peer[1], engine[clock(threads)])]


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the sparsity from which the engine is as fast, between measured ones on a straight line; None: nowhere.

    >>> break_even([(0.0, 0.5), (0.5, 1.5), (0.9, 4.0)])
    0.25
    """
    before: tuple[float, float] | None = None
    for sparsity, gain in points:
        if gain >= 1:
            if before is None:
                return sparsity
            share = (1 - before[1]) / (gain - before[1])
            return before[0] + share * (sparsity - before[0])
        before = (sparsity, gain)
    return None


def gflops(mask: Mapping[str, Any], threads: int = 1) -> float | None:
    """Return billions of useful floating-point operations a second."""
    times = mask["engine"].get(str(threads), {}).get(clock(threads))
    return 2 * mask["multiply_adds"] / statistics.median(times) / 1e6 if times else None


def entries(found: Found, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for network, parts in found.items():
        for one in parts.get(part, ()):
            yield network, one


# ---- the record ----------------------------------------------------------------------------------------------------


def text(found: Found) -> str:
    """Return the tables of the record."""
    lines: list[str] = []
    for part, make in (
        ("uniform", _uniform),
        ("batches", _batches),
        ("threads", _threads),
        ("masks", _masks),
    ):
        if any(part in parts for parts in found.values()):
            lines += make(found)
    return "\n".join([*lines, *_failures(found), *_asked(found)])


def _uniform(found: Found) -> list[str]:
    ones = [(network, one) for network, one in entries(found, "uniform") if "failed" not in one]
    sparsities = sorted({mask["sparsity"] for _, one in ones for mask in one["masks"]})
    columns = " | ".join(f"{s:g}" for s in sparsities)
    head = f"| network | faster peer | ms | {columns} | break-even |"
    lines = [
        "## Uniform masks, batch 1, one thread",
        "",
        "Times faster than the faster peer: median (range).",
        "",
    ]
    lines += [head, "|" + "---|" * (4 + len(sparsities))]
    for network, one in ones:
        peer = fastest(one, 1)
        gains = {mask["sparsity"]: speed_ups(one, mask, 1) for mask in one["masks"]}
        points = [(s, statistics.median(g)) for s, g in sorted(gains.items()) if g]
        even = break_even(points)
        cells = [network, *((peer[0], f"{statistics.median(peer[1]):.3g}") if peer else ("-", "-"))]
        cells += [shown(gains.get(s)) for s in sparsities] + ["nowhere" if even is None else f"{even:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The engine's GFLOP/s (2 x surviving multiply-adds), and its largest error against float64 as a multiple of ",
    ]
    lines[-1] += "that of torch in float32, over all sparsities:"
    lines += [
        "",
        f"| network | {columns} | error | compiled in, CPU s |",
        "|" + "---|" * (3 + len(sparsities)),
    ]
    for network, one in ones:
        by = {mask["sparsity"]: gflops(mask) for mask in one["masks"]}
        compiled = [mask["compile_seconds"] for mask in one["masks"] if "compile_seconds" in mask]
        cells = [network, *("-" if by.get(s) is None else f"{by[s]:.1f}" for s in sparsities)]
        cells += [_multiple(one), f"{statistics.median(compiled):.2f}" if compiled else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _batches(found: Found) -> list[str]:
    ones = [(network, one) for network, one in entries(found, "batches") if "failed" not in one]
    sparsities = sorted({mask["sparsity"] for _, one in ones for mask in one["masks"]})
    lines = ["## Batches, uniform masks, one thread", ""]
    lines += [f"| network | batch | faster peer | ms | {' | '.join(f'{s:g}' for s in sparsities)} | error |"]
    lines += ["|" + "---|" * (5 + len(sparsities))]
    for network, one in ones:
        peer = fastest(one, 1)
        gains = {mask["sparsity"]: speed_ups(one, mask, 1) for mask in one["masks"]}
        cells = [
            network,
            str(one["batch"]),
            *((peer[0], f"{statistics.median(peer[1]):.4g}") if peer else ("-", "-")),
        ]
        lines.append(
            f"| {' | '.join([*cells, *(shown(gains.get(s)) for s in sparsities), _multiple(one)])} |"
        )
    return [*lines, ""]


def _threads(found: Found) -> list[str]:
    lines = [
        "## Two threads, batch 1, uniform masks",
        "",
        "By wall time; the last column is the ratio of the two speed-ups.",
        "",
    ]
    lines += ["| network | sparsity | one thread | two threads | two / one |", "|" + "---|" * 5]
    for network, one in entries(found, "threads"):
        for mask in one.get("masks", ()):
            single, double = _walls(one, mask, 1), _walls(one, mask, 2)
            kept = (
                f"{statistics.median(double) / statistics.median(single):.2f}" if single and double else "-"
            )
            lines.append(f"| {network} | {mask['sparsity']:g} | {shown(single)} | {shown(double)} | {kept} |")
    return [*lines, ""]


def _walls(one: Mapping[str, Any], mask: Mapping[str, Any], threads: int) -> list[float]:
    """Speed-ups by wall time, for one thread too: a comparison needs one clock."""
    engine = mask["engine"].get(str(threads), {}).get("wall_ms")
    peers = [by[str(threads)]["wall_ms"] for by in one.get("peers", {}).values()]
    if not engine or not peers:
        return []
    return [a / b for a, b in zip(min(peers, key=statistics.median), engine)]


def _masks(found: Found) -> list[str]:
    lines = [
        "## Other masks, batch 1, one thread",
        "",
        "Multiply-adds: dense / surviving, what arithmetic alone promises.",
        "",
    ]
    lines += [
        "| network | mask | sparsity | multiply-adds | times faster | GFLOP/s | error |",
        "|" + "---|" * 7,
    ]
    for network, one in entries(found, "masks"):
        for mask in one.get("masks", ()):
            promised, speed = mask["dense_multiply_adds"] / max(1, mask["multiply_adds"]), gflops(mask)
            cells = [
                network,
                mask["kind"],
                f"{mask['sparsity']:g}",
                f"{promised:.1f}",
                shown(speed_ups(one, mask, 1)),
            ]
            cells += ["-" if speed is None else f"{speed:.1f}", _multiple({"masks": [mask]})]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _multiple(one: Mapping[str, Any]) -> str:
    found = [mask["error"] / mask["torch_error"] for mask in one["masks"] if mask.get("torch_error")]
    return f"{max(found):.2f}" if found else "-"


def _failures(found: Found) -> list[str]:
    """Return what could not be measured, by reason."""
    reasons: dict[str, list[str]] = {}
    for part in PARTS:
        for network, one in entries(found, part):
            what = f"{network} ({part})"
            told = [one["failed"]] if "failed" in one else []
            told += [e["failed"] for m in one.get("masks", ()) for e in m["engine"].values() if "failed" in e]
            for reason in dict.fromkeys(told):
                reasons.setdefault(reason, []).append(what)
    lines = [f"- {', '.join(dict.fromkeys(met))}: {reason}" for reason, met in reasons.items()]
    return ["## Not measured", "", *lines, ""] if lines else []


def _asked(found: Found) -> list[str]:
    """Return what was asked for and is not met."""
    lines = []
    for network, one in entries(found, "uniform"):
        gains = {m["sparsity"]: g for m in one.get("masks", ()) if (g := speed_ups(one, m, 1))}
        for sparsity, bar in zip((0.8, 0.9, 0.95, 0.98), BARS[network]):
            if sparsity in gains and (met := statistics.median(gains[sparsity])) < bar:
                lines.append(f"- {network} at {sparsity:g}: {met:.2f} of {bar:g}")
        even = break_even([(s, statistics.median(g)) for s, g in sorted(gains.items())])
        if gains and network != "MobileNetV2" and (even is None or even > BREAK_EVEN):
            lines.append(
                f"- {network}: break-even at {'no sparsity' if even is None else f'{even:.2f}'}, asked {BREAK_EVEN}"
            )
    for part in ("uniform", "batches", "masks"):
        for network, one in entries(found, part):
            for mask in one.get("masks", ()):
                what = f"{network}, batch {one['batch']}, {mask['kind']} {mask['sparsity']:g}"
                gain = speed_ups(one, mask, 1)
                if gain and statistics.median(gain) < SLOWEST:
                    lines.append(
                        f"- {what}: {1 / statistics.median(gain):.2f} times slower than the faster peer, asked 1.1"
                    )
                if mask.get("torch_error") and mask["error"] > ERRORS * mask["torch_error"]:
                    lines.append(
                        f"- {what}: error {_multiple({'masks': [mask]})} x torch's, asked {ERRORS:g}"
                    )
    for network, one in entries(found, "threads"):
        for mask in one.get("masks", ()):
            single, double = _walls(one, mask, 1), _walls(one, mask, 2)
            if (
                single
                and double
                and (kept := statistics.median(double) / statistics.median(single)) < TWO_THREADS
            ):
                lines.append(
                    f"- {network} at {mask['sparsity']:g}: two threads keep {kept:.2f}, asked {TWO_THREADS}"
                )
    return ["## Asked for and not met", "", *(lines or ["Nothing."]), ""]


def _brief(one: Mapping[str, Any]) -> str:
    if "failed" in one:
        return str(one["failed"])
    threads = 1
    gains = [(m, speed_ups(one, m, threads)) for m in one["masks"]]
    return ", ".join(
        f"{m['kind']} {m['sparsity']:g}: {statistics.median(g):.2f}x" if g else f"{m['sparsity']:g}: -"
        for m, g in gains
    )


if __name__ == "__main__":
    main()
