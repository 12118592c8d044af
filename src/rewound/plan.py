"""What a run will do, known before its first step: rounds, weights kept, epochs, snapshots, search cost, disk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from rewound.techniques import Technique

MERGE = (
    0.02  # a last round that would prune less than this part of the survivors is merged into the one before
)
UNBOUNDED_ROUNDS = 50  # the most rounds of a run that only a metric stops


@dataclass(frozen=True)
class Until:
    """When to stop pruning: at a ``density``, after a number of ``rounds``, or when ``metric`` of the retrained network
    is more than ``drop`` below (or ``rise`` above) the original run's; whichever comes first. "0 rounds" trains the original
    network and prunes nothing: what other runs may begin from.

    >>> parse_until("20x").density
    0.05
    >>> print(parse_until((0.05, "accuracy drops 0.01")))
    density 0.05 or accuracy drops 0.01
    """

    density: float | None = None
    rounds: int | None = None
    metric: str | None = None
    drop: float | None = None
    rise: float | None = None

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(
                f"'until' as a density must be in (0, 1] (got {self.density!r}); "
                f"write a compression ratio as '{self.density:g}x', a number of rounds as '{self.density:g} rounds'"
            )
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"'until' cannot be a negative number of rounds (got {self.rounds})")
        if (self.metric is None) != (self.drop is None and self.rise is None):
            raise ValueError("'until' a metric needs its name and either 'drop' or 'rise'")
        if self.density is None and self.rounds is None and self.metric is None:
            raise ValueError("'until' must say when to stop: " + _FORMS)

    def stopped_by(self, metrics: Mapping[str, float], original: Mapping[str, float]) -> bool:
        """Return whether a round's metrics are worse than allowed; a metric that is NaN is."""
        if self.metric is None:
            return False
        change = self.measured(metrics, "this round") - self.measured(original, "the original run")
        within = change >= -self.drop if self.drop is not None else change <= self.rise  # type: ignore[operator]
        return not within

    def measured(self, metrics: Mapping[str, float], which: str) -> float:
        """Return the metric that decides; ``ValueError`` where it was not logged for the round called ``which``."""
        assert self.metric is not None
        if self.metric not in metrics:
            raise ValueError(
                f"the run stops by {self.metric!r}, which was not logged for {which}; logged: "
                f"{', '.join(metrics) or 'nothing'}. Call run.log({self.metric}=...) in every epoch; for a network that "
                "arrives trained, and for rounds of no epochs, let evaluate return it"
            )
        return metrics[self.metric]

    def __str__(self) -> str:
        parts = []
        if self.density is not None:
            parts.append(f"density {self.density:g}")
        if self.rounds is not None:
            parts.append(f"{self.rounds} round{'s' * (self.rounds != 1)}")
        if self.metric is not None:
            parts.append(
                f"{self.metric} "
                + (f"drops {self.drop:g}" if self.drop is not None else f"rises {self.rise:g}")
            )
        return " or ".join(parts)


_FORMS = "a density (0.05), '20x', '10 rounds', 'accuracy drops 0.01', 'mse rises 0.1', or a tuple of those"


def parse_until(until: float | str | Until | Sequence[float | str | Until]) -> Until:
    """Read ``until`` in any of its forms."""
    if isinstance(until, Until):
        return until
    if isinstance(until, (list, tuple)):
        merged: dict[str, object] = {}
        for part in until:
            one = parse_until(part)
            for field in fields(Until):
                value = getattr(one, field.name)
                if value is not None and merged.setdefault(field.name, value) != value:
                    raise ValueError(f"'until' gives {field.name!r} twice (got {until!r})")
        return Until(**merged)  # type: ignore[arg-type]
    if isinstance(until, (int, float)) and not isinstance(until, bool):
        return Until(density=float(until))
    if isinstance(until, str):
        text, number = until.strip(), r"([-+.\deE]+)"
        if match := re.fullmatch(number + r" ?x", text):
            if float(match[1]) < 1:
                raise ValueError(f"a compression ratio is at least 1x (got {until!r})")
            return Until(density=1 / float(match[1]))
        if match := re.fullmatch(r"(\d+) ?rounds?", text):
            return Until(rounds=int(match[1]))
        if match := re.fullmatch(r"(\S+) (drops|rises) " + number, text):
            return Until(metric=match[1], **{match[2][:-1]: float(match[3])})  # type: ignore[arg-type]
        if match := re.fullmatch(r"(density )?" + number, text):
            return Until(density=float(match[2]))
        if " or " in text:
            return parse_until(text.split(" or "))
    raise ValueError(f"cannot read 'until' = {until!r}; it is {_FORMS}")


def kept_by_round(size: int, rate: float | None, until: Until) -> tuple[int, ...]:
    """Return how many of ``size`` weights survive each round, exactly: round(rate x survivors) go, down to the target.

    ``rate`` None is one-shot. A target that the rounds do not hit exactly is hit exactly by the last.

    >>> kept_by_round(1000, 0.2, parse_until(0.5))
    (800, 640, 512, 500)
    >>> kept_by_round(1000, None, parse_until("10x"))
    (100,)
    """
    target = 0 if until.density is None else max(1, round(until.density * size))
    if until.rounds == 0:
        return ()
    most = until.rounds or (UNBOUNDED_ROUNDS if until.density is None else math.inf)
    if rate is None:
        if until.density is None:
            raise ValueError(f"one-shot pruning (rate=None) needs a density to prune to (got until={until})")
        return (target,)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(
            "'rate' is the part of the surviving weights pruned in a round: in (0, 1), 0 for a control, or None for "
            f"one-shot (got {rate!r})"
        )
    if rate == 0 and until.rounds is None:
        raise ValueError(
            "'rate' = 0 prunes nothing and never ends; give a number of rounds, as in until='3 rounds'"
        )
    kept = size
    rounds: list[int] = []
    while len(rounds) < most and (kept > target or rate == 0):
        pruned = round(rate * kept)
        if pruned == 0 and rate > 0:  # too few weights are left for a round of this rate
            if until.density is None:
                break
            pruned = kept - target
        kept -= pruned
        if until.density is not None and kept - target <= MERGE * kept:
            kept = target
        if kept < 1:
            break
        rounds.append(kept)
    return tuple(rounds)


def kept_gradually(size: int, until: Until, prunings: int) -> tuple[int, ...]:
    """Return how many of ``size`` weights survive each of ``prunings`` prunings within one training.

    The k-th of n goes to sparsity s (1 - (1 - k/n)^3), s being that of the target: much at first, little at the end (Zhu and
    Gupta 2018, equation 1, from a dense network).

    >>> kept_gradually(1000, parse_until(0.2), 4)
    (538, 300, 212, 200)
    """
    assert until.density is not None
    sparsity = 1 - until.density
    shares = [1 - sparsity * (1 - (1 - k / prunings) ** 3) for k in range(1, prunings + 1)]
    return tuple(max(1, round(share * size)) for share in shares)


@dataclass(frozen=True)
class Plan:
    """What a :class:`rewound.Run` will do; ``print`` it. Counts are exact, bytes and FLOPs are estimates.

    ``kept``, ``size`` and densities count what the pattern decides about: weights, blocks or units (``what``), in so many
    ``tensors`` (or groups of units); ``covered`` parameters are what a mask of them covers. ``starts``, where the network is
    pruned while it is first trained: the epochs that begin with a pruning.
    """

    technique: Technique
    epochs: int
    retrain_epochs: int
    until: Until
    kept: tuple[int, ...]
    size: int
    model_size: int
    tensors: int
    pretrained: bool
    snapshots: tuple[str, ...]
    disk_bytes: int
    by_tensor: tuple[Mapping[str, float], ...] = ()
    memory_bytes: int = 0
    what: str = "weights"
    covered: int = 0
    starts: tuple[int, ...] = ()

    @property
    def rounds(self) -> int:
        """Number of prune-and-retrain rounds (at the most, where a metric may stop the run)."""
        return len(self.kept)

    @property
    def densities(self) -> tuple[float, ...]:
        """Density in scope after each round."""
        return tuple(k / self.size for k in self.kept)

    @property
    def total_epochs(self) -> int:
        """Training epochs of everything, the original run included where it is trained here."""
        return self.trained(self.rounds)

    def span(self, round: int) -> range:
        """Return the epochs of a round: all T of the original run, T-t onward of a retraining, or a part of the one training."""
        if self.starts:
            bounds = (0, *self.starts, self.epochs)
            return range(bounds[round], bounds[round + 1])
        return range(0 if round == 0 else self.epochs - self.retrain_epochs, self.epochs)

    def trained(self, round: int, epoch: int | None = None) -> int:
        """Return how many epochs are trained from the very first to the end of ``epoch`` of ``round`` (or of the round)."""
        before = sum(len(self.span(k)) for k in range(1 if self.pretrained else 0, round))
        span = self.span(round)
        if round == 0 and self.pretrained:
            return 0
        return before + (len(span) if epoch is None else epoch + 1 - span.start)

    @property
    def _in_memory(self) -> str:
        if self.memory_bytes:
            return f"about {self.memory_bytes / 1e6:.3g} MB of snapshots"
        return "the schedule of each step, no weights"

    @property
    def _counted(self) -> str:
        if self.what == "weights":
            return f"{self.size:,} of {self.model_size:,} parameters, in {self.tensors} tensors"
        groups = "groups" if self.what == "units" else "tensors"
        covered = f"{self.covered:,} of {self.model_size:,} parameters"
        return f"{self.size:,} {self.what} in {self.tensors} {groups}, made of {covered}"

    @property
    def _in_units(self) -> str:
        return "" if self.what == "weights" else f"; counted in {self.what}"

    def to_dict(self) -> dict[str, object]:
        """Return the plan as JSON-able values."""
        return {
            "technique": str(self.technique),
            "epochs": self.epochs,
            "retrain_epochs": self.retrain_epochs,
            "until": str(self.until),
            "rounds": self.rounds,
            "kept": list(self.kept),
            "densities": list(self.densities),
            "size": self.size,
            "what": self.what,
            "covered": self.covered,
            "model_size": self.model_size,
            "pretrained": self.pretrained,
            "snapshots": list(self.snapshots),
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "total_epochs": self.total_epochs,
            **({"starts": list(self.starts)} if self.starts else {}),
        }

    def __str__(self) -> str:
        t, n = self.retrain_epochs, self.rounds
        at_most = " at the most" if self.until.metric else ""
        first = (
            "no original run (pretrained)" if self.pretrained else f"an original run of {self.epochs} epochs"
        )
        shown = [f"{d:.3g}" for d in self.densities]
        if len(shown) > 12:
            shown = [*shown[:6], "...", *shown[-5:]]
        then = f"{first}, then {n} round{'s' * (n != 1)} of {t} epochs = {self.total_epochs} epochs{at_most}"
        if self.starts:
            at = (
                f"before epochs {self.starts[0]} to {self.starts[-1]}"
                if n > 1
                else f"before epoch {self.starts[0]}"
            )
            then = f"one training of {self.epochs} epochs, pruned {n} time{'s' * (n != 1)} within it, {at}"
        lines = [
            f"Plan: {then}",
            f"  technique  {self.technique.told}",
            f"  scope      {self._counted}",
            f"  density    {' -> '.join(['1', *shown])}   (until {self.until}{self._in_units})",
            f"  snapshots  {'; '.join(self.snapshots) or 'none'}",
            f"  disk       about {self.disk_bytes / 1e6:.3g} MB"
            if self.disk_bytes
            else f"  memory     {self._in_memory} (no folder: what is killed starts again)",
        ]
        return "\n".join(lines)
