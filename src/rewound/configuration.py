"""From the user's arguments to what can be compared and printed: the plan, the snapshots it needs, the configuration."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rewound import ranks
from rewound.allocation import asked_for
from rewound.parameters import local, parameters_by_name
from rewound.plan import Plan, Until, kept_by_round, kept_gradually
from rewound.rounds import Rounds
from rewound.state import PARTS, WEIGHT_PARTS, persistent_tensors
from rewound.techniques import Technique
from rewound.trace import Trace, hyper_parameters, scheduled

NEED_DATA = ("gradient", "taylor", "taylor-weights", "taylor-gates")  # criteria that must see batches


def needed_snapshots(technique: Technique, epochs: int) -> dict[int, tuple[str, ...]]:
    """Return epoch -> parts of the state to freeze when it begins: only what the technique will ask for.

    >>> from rewound.techniques import learning_rate_rewinding, weight_rewinding
    >>> needed_snapshots(learning_rate_rewinding(36), 182)
    {146: ('clock',)}
    >>> needed_snapshots(weight_rewinding(36), 182)
    {146: ('model', 'rng', 'extras', 'optimizer', 'clock')}
    """
    point = epochs - technique.length(epochs)
    if technique.goes_on:
        return {}
    needs: dict[int, tuple[str, ...]] = {}
    if technique.weights in ("rewound", "initial"):
        needs[0 if technique.weights == "initial" else point] = WEIGHT_PARTS
    if technique.state_rule == "rewound":
        at = 0 if technique.weights == "initial" else point
        needs[at] = (*needs.get(at, ()), "optimizer")
    needs[point] = (*needs.get(point, ()), "clock")
    return needs


def kept_snapshots(
    needs: Mapping[int, Sequence[str]], more: Sequence[int], epochs: int
) -> dict[int, tuple[str, ...]]:
    """Return what an original run freezes: what its own technique ``needs``, and the whole state at ``more`` epochs, for
    runs that will begin from it.

    >>> kept_snapshots({9: ("clock",)}, [0], 10)
    {0: ('model', 'optimizer', 'clock', 'rng', 'extras'), 9: ('clock',)}
    """
    for epoch in more:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= epochs:
            raise ValueError(
                f"'snapshots' are epochs of the original run, whole numbers from 0 to T = {epochs} (got {epoch!r})"
            )
    kept = {epoch: tuple(parts) for epoch, parts in needs.items()} | dict.fromkeys(more, PARTS)
    return dict(sorted(kept.items()))


def require_usable(scheduler: Any, extras: Sequence[Any], seed: Any, criterion: Any, evidence: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` for an argument that would fail only after the original run."""
    if isinstance(extras, (str, Mapping)) or not isinstance(extras, Sequence):
        raise TypeError(f"'extras' must be a list of objects (got {type(extras).__name__})")
    named = [("scheduler", scheduler), *((f"extras[{i}]", extra) for i, extra in enumerate(extras))]
    for where, value in named:
        stateful = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
        if value is not None and not stateful and not isinstance(value, torch.Generator):
            raise TypeError(
                f"{where} is a {type(value).__name__}, which has no state_dict() and load_state_dict(), so its state can be "
                "neither kept nor rewound; give it both, or leave it out (several schedulers: one is 'scheduler', the "
                "others go among 'extras')"
            )
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"'seed' must be a whole number (got {seed!r})")
    if criterion in NEED_DATA and evidence is None:
        raise ValueError(
            f"criterion {criterion!r} needs data: pass evidence=lambda model, scope: "
            "rewound.Evidence(model, scope, batches=..., loss=...)"
        )


def require_measured(until: Until, pretrained: bool, evaluate: Any) -> None:
    """Raise ``ValueError`` where the metric that stops the run can never be known for the original network."""
    if until.metric is not None and pretrained and evaluate is None:
        raise ValueError(
            f"the run stops by {until.metric!r} against the network as it arrives, and nothing measures that; pass "
            f"evaluate=lambda model: {{{until.metric!r}: ...}}"
        )


def make_plan(
    model: nn.Module,
    optimizer: Optimizer,
    rounds: Rounds,
    technique: Technique,
    epochs: int,
    rate: float | None,
    until: Until | None,
    pretrained: bool,
    history: Trace | None,
    on_disk: bool,
    extras: Sequence[Any],
    snapshots: Sequence[int] = (),
) -> Plan:
    """Return what a run with these arguments will do; ``ValueError`` where it cannot."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(
            f"'epochs' is the length T of the original run, a whole number from 1 (got {epochs!r})"
        )
    t = technique.length(epochs)
    if technique.goes_on:
        _require_gradual(technique, pretrained, rounds, until)
    elif pretrained:
        _require_history(technique, epochs, history)
    scheduled(optimizer)  # an optimizer without a learning rate is refused
    by_tensor: tuple[dict[str, float], ...] = ()
    rate, until = rounds.schedule(rate, until)
    units, size = rounds.units, sum(rounds.sizes.values())
    if isinstance(rounds.allocation, Mapping):
        kept, by_tensor = _by_tensor(rounds.sizes, units.aliases, rate, until, rounds.allocation)
        until = until or Until(density=kept[-1] / size)
    elif until is None:
        raise ValueError("'until' must say when to stop: a density such as 0.05, '20x', '10 rounds'")
    elif technique.goes_on:
        kept = kept_gradually(size, until, len(technique.starts(epochs)))
    else:
        kept = kept_by_round(size, rate, until)
    if not kept and (until is None or until.rounds != 0):
        raise ValueError(
            f"until={until} prunes nothing of the {size:,} {units.what} in scope (rate {rate}); give a smaller density, a "
            "ratio above 1x, or a higher rate"
        )
    needs = kept_snapshots(needed_snapshots(technique, epochs), snapshots, epochs)
    sizes = _sizes(model, optimizer, extras)
    covered = sum(shape.numel() for shape in units.covers.values())
    return Plan(
        technique=technique,
        epochs=epochs,
        retrain_epochs=t,
        until=until,
        kept=kept,
        size=size,
        model_size=sum(p.numel() for p in parameters_by_name(model).values()),
        tensors=len(rounds.sizes),
        pretrained=pretrained,
        snapshots=tuple(_told(epoch, parts) for epoch, parts in sorted(needs.items())),
        disk_bytes=_disk_bytes(sizes, covered, needs, len(kept), until) if on_disk else 0,
        memory_bytes=0 if on_disk else _snapshot_bytes(sizes, needs, until),
        by_tensor=by_tensor,
        starts=technique.starts(epochs),
        what=units.what,
        covered=covered,
    )


def configuration(
    plan: Plan,
    rounds: Rounds,
    rate: float | None,
    seed: int,
    optimizer: Optimizer,
    scheduler: Any,
    extras: Sequence[Any],
    history: Trace | None,
) -> dict[str, Any]:
    """Return what makes two runs the same run, as JSON-able values that read well when they differ."""
    gradual = {"starts": list(plan.starts)} if plan.starts else {}
    return {
        "format": 1,
        "technique": str(plan.technique),
        "epochs": plan.epochs,
        "rate": rate,
        "until": str(plan.until),
        "seed": seed,
        "pretrained": plan.pretrained,
        "history": None if history is None else _digest(history.values.tobytes()),
        **{key: _spelled(value) for key, value in rounds.told.items()},
        "scope": {name: list(rounds.scope.shapes[name]) for name in rounds.scope.names},
        "parameters": plan.model_size,
        "optimizer": type(optimizer).__name__,
        "groups": [
            {**hyper_parameters(group), "tensors": len(group["params"])} for group in optimizer.param_groups
        ],
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "extras": [type(extra).__name__ for extra in extras],
        "snapshots": list(plan.snapshots),
        "processes": ranks.world_size(),
        **gradual,
    }


def _require_history(technique: Technique, epochs: int, history: Trace | None) -> None:
    if technique.weights in ("rewound", "initial"):
        raise ValueError(
            f"{technique} needs weights from the middle of the original run, and a model that arrives trained has none; "
            "train it here (pretrained=False), or use fine_tuning(lr=...) or, with history=..., learning_rate_rewinding()"
        )
    if history is None and technique.lr != "last":
        raise ValueError(
            f"{technique} needs the learning rates of the original run, and this model came without them; pass "
            "history=rewound.Trace.from_schedule(lambda step: ..., epochs=..., steps_per_epoch=...), or use fine_tuning()"
        )
    if history is not None and history.epochs != epochs:
        raise ValueError(
            f"'history' covers {history.epochs} epochs and 'epochs' is {epochs}; they must agree"
        )


def _require_gradual(technique: Technique, pretrained: bool, rounds: Rounds, until: Until | None) -> None:
    if pretrained:
        raise ValueError(
            f"{technique} prunes while the network is first trained, and this model arrives trained; use "
            "fine_tuning(lr=...), or, with history=..., a technique that rewinds"
        )
    if isinstance(rounds.allocation, Mapping) or until is None or until.density is None:
        raise ValueError(
            f"{technique} goes to one density by a cubic schedule; give 'until' a density, as in until=0.1, and an allocation "
            f"that shares it out (got until={until})"
        )
    if until.rounds is not None or until.metric is not None:
        raise ValueError(
            f"{technique} is one training with its own schedule, which neither rounds nor a metric end; give 'until' a density "
            f"alone (got {until})"
        )


def _by_tensor(
    sizes: Mapping[str, int],
    aliases: Mapping[str, tuple[str, ...]],
    rate: float | None,
    until: Until | None,
    allocation: Mapping[str, float],
) -> tuple[tuple[int, ...], tuple[dict[str, float], ...]]:
    """Each named tensor loses ``rate`` of its survivors a round until it is at its own density; the others stay whole."""
    if until is not None and until.density is not None:
        raise ValueError(
            "an allocation by tensor says its own target densities; leave 'until' out, or give rounds or a metric"
        )
    own: dict[str, tuple[int, ...]] = {}
    found, unmatched = asked_for(allocation, sizes, aliases)
    for name, asked in found.items():
        density = next(iter(asked.values()))
        if not 0 < density <= 1:
            raise ValueError(f"the density of {name!r} must be in (0, 1] (got {density!r})")
        own[name] = kept_by_round(sizes[name], rate, Until(density=density))
    if unmatched:
        raise ValueError(f"no tensor in scope is called {unmatched[0]!r}; in scope: {', '.join(sizes)}")
    rounds = max((len(kept) for kept in own.values()), default=0)
    if until is not None and until.rounds is not None:
        rounds = min(rounds, until.rounds)
    if rounds == 0:
        raise ValueError(
            f"an allocation by tensor that keeps everything prunes nothing (got {dict(allocation)!r})"
        )
    kept_at = [
        {name: (kept or (sizes[name],))[min(k, len(kept) - 1)] for name, kept in own.items()}
        for k in range(rounds)
    ]
    whole_ones = sum(size for name, size in sizes.items() if name not in own)
    return (
        tuple(whole_ones + sum(at.values()) for at in kept_at),
        tuple({name: count / sizes[name] for name, count in at.items()} for at in kept_at),
    )


def _told(epoch: int, parts: Sequence[str]) -> str:
    what = {"model": "weights and buffers", "optimizer": "optimizer", "clock": "schedule", "rng": "RNG"}
    return f"at epoch {epoch}: {', '.join(what[p] for p in parts if p in what)}"


def _sizes(model: nn.Module, optimizer: Optimizer, extras: Sequence[Any]) -> dict[str, int]:
    """Return part of the state -> bytes, as far as it can be known before the first step."""
    return {
        "model": sum(local(t).numel() * t.element_size() for t in persistent_tensors(model).values()),
        "optimizer": _slots(optimizer)
        * sum(_bytes(p) for group in optimizer.param_groups for p in group["params"]),
        "extras": sum(_bytes(t) for e in extras if isinstance(e, nn.Module) for t in e.parameters()),
    }


def _snapshot_bytes(sizes: Mapping[str, int], needs: Mapping[int, Sequence[str]], until: Until) -> int:
    """Return what the snapshots and the last good round take, wherever they are kept."""
    kept = sum(sizes.get(part, 0) for parts in needs.values() for part in parts)
    return kept + (sum(sizes.values()) if until.metric else 0)


def _disk_bytes(
    sizes: Mapping[str, int],
    covered: int,
    needs: Mapping[int, Sequence[str]],
    rounds: int,
    until: Until,
) -> int:
    """Return an estimate of the most that lies in the folder: two states to go on from and one being written, snapshots
    and masks. Schedules are small beside them and not counted."""
    full = sum(sizes.values())
    replaced = full if until.metric else 0  # a good round is written before the one before it is deleted
    return 3 * full + _snapshot_bytes(sizes, needs, until) + replaced + rounds * (covered // 8)


def _bytes(tensor: Any) -> int:
    return local(tensor).numel() * tensor.element_size()


def _slots(optimizer: Optimizer) -> int:
    """Tensors an optimizer will keep for each parameter: what it has, or what its kind is known for."""
    for slots in optimizer.state.values():
        if isinstance(slots, Mapping):
            return sum(1 for v in slots.values() if getattr(v, "ndim", 0) > 0)
    options = optimizer.defaults
    known = 2 * ("betas" in options) + bool(options.get("momentum")) + bool(options.get("amsgrad"))
    return known + (type(optimizer).__name__ in ("Adagrad", "RMSprop")) + bool(options.get("centered"))


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): float(v) for k, v in value.items()}
    # A partial or an object without a text of its own is printed with its address, another one in every process.
    if value is None or isinstance(value, bool | int | float):
        return value
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
