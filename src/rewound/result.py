"""What a run found: density, metrics before and after retraining, and search cost, round by round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from rewound.techniques import Technique
from rewound.trace import Trace


@dataclass(frozen=True)
class Round:
    """One round; round 0 is the original run.

    ``density`` counts the scope, ``density_total`` every parameter of the model; ``densities`` is by tensor. ``before``
    holds what ``evaluate`` gave right after pruning, ``metrics`` what was last logged, ``log`` one dict an epoch.
    ``collapsed`` names the tensors of which nothing survived. ``flops`` are those of the round's training, ``sparse_flops``
    count surviving weights only; ``multiply_adds`` are (surviving, dense) of one forward pass over the run's ``example``.
    ``partial`` marks the rounds of gradual pruning but the last: their networks stand in the middle of the one training.
    ``units`` holds, where blocks or units were pruned, (kept, size) in units by name; the weights are then all parameters that
    the mask covers.
    """

    index: int
    kept: int
    size: int
    model_size: int
    epochs: int
    steps: int
    densities: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    log: tuple[dict[str, float], ...] = ()
    collapsed: tuple[str, ...] = ()
    flops: float | None = None
    sparse_flops: float | None = None
    units: dict[str, tuple[int, int]] | None = None
    multiply_adds: tuple[int, int] | None = None
    partial: bool = False

    @property
    def multiply_adds_share(self) -> float | None:
        """Surviving / dense multiply-adds of a forward pass; None where the run was given no example."""
        if self.multiply_adds is None:
            return None
        surviving, dense = self.multiply_adds
        return surviving / dense if dense else 1.0

    @property
    def unit_density(self) -> float | None:
        """Kept / total in units, or None where single weights are pruned."""
        if self.units is None:
            return None
        return sum(kept for kept, _ in self.units.values()) / sum(size for _, size in self.units.values())

    @property
    def density(self) -> float:
        """Kept / total over the scope."""
        return self.kept / self.size

    @property
    def density_total(self) -> float:
        """Kept / total over every parameter of the model."""
        return (self.model_size - self.size + self.kept) / self.model_size

    def to_dict(self) -> dict[str, Any]:
        """Return the round as JSON-able values."""
        plain = asdict(self)
        plain.update(density=self.density, density_total=self.density_total, collapsed=list(self.collapsed))
        plain["log"] = [dict(entry) for entry in self.log]
        if not self.partial:
            del plain["partial"]
        if self.multiply_adds is None:
            del plain["multiply_adds"]
        else:
            plain["multiply_adds"] = list(self.multiply_adds)
        if self.units is None:
            del plain["units"]
        else:
            plain.update(
                units={n: list(pair) for n, pair in self.units.items()}, unit_density=self.unit_density
            )
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Round:
        """Inverse of :meth:`to_dict`."""
        known = {k: v for k, v in plain.items() if k not in ("density", "density_total", "unit_density")}
        known.update(log=tuple(known["log"]), collapsed=tuple(known["collapsed"]))
        if known.get("units") is not None:
            known["units"] = {name: (kept, size) for name, (kept, size) in known["units"].items()}
        if known.get("multiply_adds") is not None:
            known["multiply_adds"] = tuple(known["multiply_adds"])
        return cls(**known)


@dataclass(frozen=True)
class SearchCost:
    """What the search cost: training of all rounds, the original run included where it was trained here.

    ``flops`` are training FLOPs (2 x multiply-adds, forward and backward) of dense arithmetic, ``sparse_flops`` those of
    surviving weights; None where the run was given no ``example`` to count them on.
    """

    epochs: int
    steps: int
    flops: float | None = None
    sparse_flops: float | None = None


@dataclass(frozen=True)
class Result:
    """Rounds so far, ``search_cost``, ``trace``; ``print`` it for a table.

    ``stopped`` says why the run ended before its plan, ``best`` is the index of the round whose weights the model has.
    """

    technique: Technique
    rounds: tuple[Round, ...]
    finished: bool
    stopped: str | None
    best: int
    pretrained: bool
    _trace: Callable[[], Trace]

    @property
    def trace(self) -> Trace:
        """Hyper-parameters used, step by step, over all rounds."""
        return self._trace()

    @property
    def search_cost(self) -> SearchCost:
        """Sum over the rounds."""

        def total(name: str) -> float | None:
            values = [getattr(r, name) for r in self.rounds]
            return None if not values or any(v is None for v in values) else sum(values)

        return SearchCost(
            epochs=sum(r.epochs for r in self.rounds),
            steps=sum(r.steps for r in self.rounds),
            flops=total("flops"),
            sparse_flops=total("sparse_flops"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the trace as JSON-able values."""
        return {
            "technique": str(self.technique),
            "finished": self.finished,
            "stopped": self.stopped,
            "best": self.best,
            "pretrained": self.pretrained,
            "search_cost": asdict(self.search_cost),
            "rounds": [r.to_dict() for r in self.rounds],
        }

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for r in self.rounds for name in r.metrics))
        before = list(dict.fromkeys(name for r in self.rounds for name in r.before))
        in_units = any(r.units is not None for r in self.rounds)
        counted = ["of units"] * in_units
        worked = ["multiply-adds"] * any(r.multiply_adds is not None for r in self.rounds)
        header = [
            "round",
            *counted,
            "density",
            "of model",
            "ratio",
            *worked,
            *names,
            *(f"{b} pruned" for b in before),
            "epochs",
        ]
        rows, epochs = [], 0
        for r in self.rounds:
            epochs += r.epochs
            cells = [
                str(r.index) + "*" * (r.index == self.best),
                *([_number(r.unit_density)] if in_units else []),
                f"{r.density:.4f}",
                f"{r.density_total:.4f}",
            ]
            cells.append(f"{1 / r.density:.1f}x" if r.kept else "-")
            cells += [_number(r.multiply_adds_share)] if worked else []
            cells += [_number(r.metrics.get(n)) for n in names] + [_number(r.before.get(b)) for b in before]
            rows.append([*cells, str(epochs)])
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)) for row in [header, *rows]]
        cost = self.search_cost
        flops = "" if cost.flops is None else f", {cost.flops:.3g} training FLOPs (dense)"
        lines += ["* the model has the weights of this round" if self.rounds else "no round is finished yet"]
        lines += [self.technique.told, f"search cost {cost.epochs} epochs, {cost.steps:,} steps{flops}"]
        lines += [f"stopped: {self.stopped}"] if self.stopped else []
        lines += [
            f"round {r.index}: nothing survives in {', '.join(r.collapsed)}"
            for r in self.rounds
            if r.collapsed
        ]
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
