"""Algorithm 1 of the paper as an iterator over the user's epochs: train, then prune and retrain, round by round.

    1. train the network to completion                    round 0: epochs 0 .. T-1, everything it uses is recorded
    2. prune 20 % of the surviving weights                 between the rounds
    3. retrain                                             round k: epochs T-t .. T-1 again, the recording replayed
    4. repeat 2 and 3 until the target is reached
    (Renda, Frankle and Carbin 2020, Algorithm 1)

The epoch number itself rewinds, so samplers that are seeded by the epoch rewind too. The loop's own objects (model,
optimizer, scheduler) are the user's; what happens to them happens through optimizer hooks and in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rewound import ranks
from rewound.configuration import (
    configuration,
    kept_snapshots,
    make_plan,
    needed_snapshots,
    require_measured,
    require_usable,
)
from rewound.damage import Damage, damage_of
from rewound.evidence import Evidence
from rewound.guarding import Guard, require_unguarded
from rewound.live import Live, number
from rewound.mask import Mask
from rewound.measure import cost
from rewound.movement import watch_movement
from rewound.plan import Plan, Until, parse_until
from rewound.reinitialize import reinitialize_
from rewound.result import Result, Round
from rewound.rounds import Rounds
from rewound.smaller import Smaller
from rewound.state import State, persistent_tensors
from rewound.store import Store
from rewound.techniques import Technique, learning_rate_rewinding, parse_technique
from rewound.trace import EMPTY, Trace, held, joined


class Run:
    """Train, prune, rewind and retrain inside the user's own loop.

    >>> import torch, rewound
    >>> model = torch.nn.Linear(8, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> run = rewound.Run(model, optimizer, epochs=2, until=0.5)
    >>> for epoch in run:                            # was: for epoch in range(2)
    ...     optimizer.zero_grad()
    ...     loss = model(torch.ones(4, 8)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     run.log(loss=loss.item())
    >>> [round.density for round in run.result.rounds]
    [1.0, 0.8125, 0.625, 0.5]

    Args:
        model, optimizer, scheduler: the user's own; wrappers (compile, DDP, Accelerate, Fabric) are looked through.
        epochs: T, the length of the original run.
        technique: a cell of the table in ``rewound.techniques``, or its text; default learning-rate rewinding, t = T.
        rate: part of the survivors pruned in a round; None prunes once, to ``until``. With a pattern of units ("channel") or
            blocks, ``rate`` and the density of ``until`` count units; the rounds of the result tell units and weights.
        until: a density in (0, 1), "20x", "10 rounds", "accuracy drops 0.01", "mse rises 0.1", or a tuple of those. A
            metric that stops the run brings the last good round back.
        criterion, pattern, allocation, scope, multiple, floor, allow: what :func:`rewound.prune` takes. An allocation by
            tensor says its own target densities, and needs no ``until``; nor does "n:m", which prunes once, to n/m.
        evidence: ``function(model, scope) -> Evidence``, for a criterion that needs data.
        extras: what training depends on besides (GradScaler, EMA, sampler, torch.Generator): saved, rewound with the
            weights; modules among them (EMA copies) obey the mask.
        folder: where states are kept, so that a killed run goes on where it was when the same script starts again.
        snapshots: epochs of the original run at which the whole state is kept besides, for runs that will begin from this one.
        original: the folder of a run of the same training with ``until="0 rounds"``: this one begins from it rather than train
            the original network again, with the same results to the bit. It must hold the ``snapshots`` that the technique needs.
        seed: of everything this class draws itself (random criterion, fresh weights).
        evaluate: ``function(model) -> dict`` of metrics, called right after each pruning, before retraining.
        example: what one optimizer step consumes (a tensor, tuple or dict of inputs), to count FLOPs on (of training, and for
            allocations that weigh them), and to find the units of the model with.
        pretrained: the model arrives trained, so there is no original run to record or to rewind weights to.
        history: what the original run of such a model used (``Trace.from_schedule(...)``); implies ``pretrained``.
        initialize: ``function(model, seed)`` that draws fresh weights in place, for re-initialisation.
        progress: ``function(run)``, called after every epoch.
        shrink: with a pattern of units: what is pruned leaves the model where it stands, so that every round trains a smaller
            and faster network, with the results of masked training. Parameters and optimizer stay the same objects;
            ``rewound.coordinates(model)`` tells where their entries were. Masks stay those of the original network.

    Raises ``ValueError`` or ``TypeError`` for what cannot work, before anything is trained or written. While it runs,
    ``RuntimeError`` for an epoch without a step, a pruned weight that came back, or a folder that another process holds;
    ``ValueError`` for a folder of another run and for a metric that decides and was not logged; ``OSError`` for a full disk.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        epochs: int,
        technique: Technique | str = learning_rate_rewinding(),  # noqa: B008 (frozen)
        rate: float | None = 0.2,
        until: float | str | Until | Sequence[float | str | Until] | None = None,
        scheduler: Any = None,
        criterion: Any = "magnitude",
        pattern: Any = "weight",
        allocation: Any = "global",
        scope: Any = None,
        evidence: Callable[..., Evidence] | None = None,
        extras: Sequence[Any] = (),
        folder: Any = None,
        seed: int = 0,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        example: Any = None,
        pretrained: bool = False,
        history: Trace | None = None,
        initialize: Callable[[nn.Module, int], None] | None = None,
        progress: Callable[[Run], None] | None = None,
        multiple: int = 1,
        floor: float | None = None,
        allow: Any = "exact after fold",
        shrink: bool = False,
        snapshots: Sequence[int] = (),
        original: Any = None,
    ) -> None:
        require_usable(scheduler, extras, seed, criterion, evidence)
        self.technique = parse_technique(technique)
        caps = {"multiple": multiple, "floor": floor, "allow": allow}
        self._pruning = Rounds(model, scope, criterion, pattern, allocation, example, caps)
        self._scope, self.mask = self._pruning.scope, self._pruning.whole
        require_unguarded(model)
        self._live = live = Live(model, optimizer, scheduler, extras, self.mask)
        self._evidence, self._evaluate, self._example = evidence, evaluate, example
        self._initialize, self._progress = initialize or reinitialize_, progress
        self._smaller = Smaller(live, example, self._pruning) if shrink else None
        if folder == "":
            raise ValueError(
                "'folder' must be a path, or None to keep everything in memory (got an empty text)"
            )
        # The script may change its directory before the first state is written.
        self._seed, self._path = int(seed), None if folder is None else Path(folder).absolute()
        self._pretrained = pretrained or history is not None
        self._until = None if until is None else parse_until(until)
        self.plan: Plan = make_plan(
            model, live.optimizer, self._pruning, self.technique, epochs, rate, self._until,
            self._pretrained, history, folder is not None, live.extras, snapshots,
        )  # fmt: skip
        self._pruning.try_out(model, self.plan)
        require_measured(self.plan.until, self._pretrained, evaluate)
        self._T, self._t = epochs, self.plan.retrain_epochs
        self._needs = needed_snapshots(self.technique, epochs)
        self._keeps = kept_snapshots(self._needs, snapshots, epochs)
        if original is not None and (folder is None or self._pretrained):
            raise ValueError(
                "'original' is for a run with a 'folder' of its own, and for a model that has not been trained before"
            )
        if original is not None and self.technique.goes_on:
            raise ValueError(
                f"{self.technique} prunes while the network is first trained, so it cannot begin from a finished 'original' run"
            )
        self._original = None if original is None else Path(original).absolute()
        self._configuration = configuration(
            self.plan, self._pruning, rate, self._seed, live.optimizer, scheduler, live.extras, history
        ) | ({"shrink": True} if shrink else {})
        if criterion == "movement" and evidence is None:
            live.watch(watch_movement(live.optimizer, model, self._scope))
        self.round = 0
        self.epoch: int | None = None
        self._rounds: list[Round] = []
        self._log: list[dict[str, float]] = []
        self._done = 0
        self._before: dict[str, float] = {}
        self._damage = Damage()
        self._stopped: str | None = None
        self._best = 0
        self._finished = self._started = self._in_body = self._steps_said = False
        self._recorded: Trace | None = history
        self._tensors = set(persistent_tensors(model))
        # What a model without a history is fine-tuned with: what its optimizer has now, before any scheduler steps.
        self._given = held(live.optimizer, self._t, self.technique.lr_value) if self._pretrained else None
        self._store: Store | None = None
        self._flops_of_step: int | None = None
        self._step_flops()  # an example that does not fit is an error now, not after the original run

    # ---- the user's side -------------------------------------------------------------------------------------------

    @property
    def guard(self) -> Guard | None:
        """What holds the present mask; None before the first pruning."""
        return self._live.guard

    @property
    def density(self) -> float:
        """Kept / total over the scope, now."""
        return self.mask.density

    @property
    def logged(self) -> dict[str, float]:
        """What was logged last in this round."""
        return dict(self._log[-1]) if self._log else {}

    @property
    def lr(self) -> tuple[float, ...]:
        """Learning rates that the last optimizer step really used, one a parameter group; empty before a round's first step."""
        recorder = self._live.recorder
        return () if recorder is None else recorder.last_lr

    @property
    def result(self) -> Result:
        """The finished rounds so far."""
        return Result(
            self.technique,
            tuple(self._rounds),
            self._finished,
            self._stopped,
            self._best,
            self._pretrained,
            partial(_traces, self._store, len(self._rounds)),
        )

    def log(self, **metrics: Any) -> None:
        """Note metrics of the present epoch: numbers or one-element tensors. What a round ends on is its result."""
        if not self._in_body:
            raise RuntimeError("run.log() notes metrics of an epoch; call it inside 'for epoch in run'")
        for name, value in metrics.items():
            self._log[-1][name] = number(name, value)

    def attach(self, optimizer: Optimizer, scheduler: Any = None) -> None:
        """Go on with a rebuilt optimizer (and scheduler): mask, recording and replay move over to it."""
        self._live.attach(optimizer, scheduler)

    def __iter__(self) -> Iterator[int]:
        if self._started:
            raise RuntimeError("a Run is iterated once; build another one to go on from its folder")
        self._started = True
        self._store = Store(self._path, self._configuration, self._original, self._needs)
        try:
            self._open()
            while True:
                yield from self._epochs()
                self._close_round()
                if self._is_over():
                    break
                self._prune_and_rewind()
            self._end()
        finally:
            self._in_body = False
            self._live.unlisten()
            self._store.close()

    # ---- a round ---------------------------------------------------------------------------------------------------

    def _epochs(self) -> Iterator[int]:
        """Yield the epochs of the present round that are not done yet."""
        epochs = self.plan.span(self.round)
        if self.round == 0 and self._pretrained:
            return
        recorder, replay = self._live.recorder, self._live.replay
        assert recorder is not None
        for epoch in epochs[self._done :]:
            self.epoch = epoch
            if self.round == 0:
                self._take_snapshots(epoch)
            if replay is not None:
                replay.start_epoch(self._done)
            recorder.start_epoch()
            before = recorder.steps
            self._log.append({})
            self._in_body = True
            yield epoch
            self._in_body = False
            ranks.together(partial(self._check_epoch, epoch, recorder.steps - before))
            self._done += 1
            if self._progress is not None:
                self._progress(self)
            self._save()

    def _check_epoch(self, epoch: int, steps: int) -> None:
        if steps == 0:
            raise RuntimeError(
                f"no step of the {type(self._live.optimizer).__name__} given to this Run was seen in epoch {epoch}; if your loop "
                "builds its optimizer anew, hand it over with run.attach(optimizer); a GradScaler may have skipped them all "
                "(begin with a smaller init_scale), and so may a loop over no batches"
            )
        self._check_tensors(epoch)
        if self.guard is not None:
            self.guard.check()
        replay = self._live.replay
        if replay is None or self._recorded is None or self._steps_said:
            return
        fewer = replay.remaining - replay.overrun
        if abs(fewer) > max(1, 0.01 * steps):  # GradScaler may skip a step now and then
            self._steps_said = True
            warnings.warn(
                f"epoch {epoch} took {steps} steps in round {self.round} and {steps + fewer} in "
                "the original run; t is counted in epochs, and the recorded hyper-parameters of an epoch are held or cut",
                stacklevel=3,
            )

    def _check_tensors(self, epoch: int) -> None:
        """Refuse a tensor that appears in training where a state without it is, or will be, put back."""
        assert self._store is not None
        new = sorted(persistent_tensors(self._live.model).keys() ^ self._tensors)
        if new and (self._store.folder is not None or "model" in self._keeps.get(0, ())):
            raise RuntimeError(
                f"{new[0]!r} was not in the model before epoch {epoch} (or is no longer), so the state before it cannot be put "
                "back; a buffer that the first forward pass creates must be there when the run begins: run one batch first"
            )

    def _close_round(self) -> None:
        """Note what the round was: its result, trace and mask."""
        assert self._store is not None
        recorder = self._live.recorder
        trace = EMPTY if recorder is None else recorder.trace()
        if self.round == 0 and not self._pretrained:
            self._recorded = trace
        # Rank 0's log is everybody's: each rank may have logged something else, or nothing.
        self._log, self._before = ranks.from_first((self._log, self._before))
        metrics = self._log[-1] if self._log else self._before
        dense, sparse = self._step_flops()
        flops, sparse_flops = (None if n is None else trace.steps * n for n in (dense, sparse))
        self._rounds.append(
            Round(
                index=self.round, kept=self.mask.kept, size=self.mask.size, model_size=self.plan.model_size,
                epochs=self._done, steps=trace.steps, densities=dict(self.mask.densities), before=self._before,
                metrics=dict(metrics), log=tuple(self._log), flops=flops, sparse_flops=sparse_flops,
                collapsed=tuple(name for name, count in self.mask.counts.items() if count == 0),
                units=None if self.mask.units is None else dict(self.mask.units),
                multiply_adds=_forward(dense, sparse), partial=self.technique.goes_on and self.round < self.plan.rounds,
            )
        )  # fmt: skip
        mask = self.mask.to_plain() if self.round else None
        self._store.finish_round(self.round, trace.to_plain(), mask, self.result.to_dict())
        if self.round == 0:
            self._take_snapshots(self._T)

    def _is_over(self) -> bool:
        """Return whether no round follows; keep, or bring back, the last good round where a metric decides."""
        assert self._store is not None
        until, metrics, original = self.plan.until, self._rounds[-1].metrics, self._rounds[0].metrics
        if until.metric is not None:
            until.measured(original, "the original run")  # said before a round is trained in vain
        if self.round and until.stopped_by(metrics, original):
            self._best = self.round - 1
            self._stopped = (
                f"{until.metric} {metrics[until.metric]:.4g} in round {self.round}, "  # type: ignore[index]
                f"{original[until.metric]:.4g} in the original run ({until}); "  # type: ignore[index]
                f"the model has the weights of round {self._best} again"
            )
            good = self._store.fetch("good", self._best)
            mask = Mask.from_plain(good["mask"])
            if self._smaller is not None:
                self._smaller.become(mask)
            self._live.restore(State.from_plain(good["state"]))
            self._set_mask(mask)
            return True
        self._best = self.round
        if until.metric is not None:
            state = self._live.capture(("model", "optimizer", "clock", "extras"))
            self._store.keep("good", self.round, {"state": state.to_plain(), "mask": self.mask.to_plain()})
        return self.round >= self.plan.rounds

    def _end(self) -> None:
        assert self._store is not None
        self._finished = True
        if self._store.folder is not None:
            self._store.folder.write_json("result.json", self.result.to_dict())

    # ---- between two rounds ------------------------------------------------------------------------------------------

    def _prune_and_rewind(self) -> None:
        """Prune, put weights and clock where the technique says, and replay what its lr rule gives."""
        assert self._store is not None
        following = self.round + 1
        model = self._live.model if self._smaller is None else self._smaller.twin()
        evidence = self._make_evidence(model, following)
        mask = ranks.together(lambda: self._pruning.mask(model, self.plan, following, self.mask, evidence))
        mask = Mask.from_plain(ranks.from_first(mask.to_plain())) if ranks.world_size() > 1 else mask
        self._damage = damage_of(model, self.mask, mask)
        # A technique that cannot go on (a last lr of zero) is refused here, before anything of the round is done.
        trace = self._retraining_trace()
        self.round, self._done, self._log = following, 0, []
        if self._smaller is not None:
            self._smaller.follow(mask)
        self._rewind()
        self._set_mask(mask)
        self._before = ranks.together(lambda: self._live.evaluated(self._evaluate))
        collapsed = [name for name, count in mask.counts.items() if count == 0]
        if collapsed:
            warnings.warn(
                f"round {self.round}: nothing survives in {', '.join(collapsed)} (layer collapse); allocation='uniform', "
                "'erk' or 'lamp' spreads the pruning more evenly",
                stacklevel=3,
            )
        self._live.listen(trace)

    def _rewind(self) -> None:
        """Apply the weights row of the table; the clock goes back to T-t in every one."""
        assert self._store is not None
        for epoch, parts in self._needs.items():
            state = State.from_plain(self._store.fetch("rewind" if epoch else "initial", epoch))
            state = State(**{part: getattr(state, part) for part in parts})
            self._live.restore(state if self._smaller is None else self._smaller.cut(state))
        if self.technique.weights == "fresh":
            initialize = (
                self._initialize if self._smaller is None else self._smaller.initializing(self._initialize)
            )
            self._live.draw_fresh(initialize, self._seed_of(self.round))
        if self.technique.state_rule == "fresh":
            self._live.forget_slots()

    def _set_mask(self, mask: Mask) -> None:
        self.mask = mask
        self._live.protect(mask if self._smaller is None else self._smaller.guarded(mask))

    def _retraining_trace(self) -> Trace | None:
        if self._t == 0 or self.technique.goes_on:  # nothing is replayed: the user's scheduler goes on
            return None
        if self._recorded is None:
            return self._given
        steps = self._recorded.last_epochs(self._t).steps
        return self.technique.replayed(self._recorded, steps, self._damage)

    def _make_evidence(self, model: nn.Module, following: int) -> Evidence:
        if self._evidence is not None:
            return self._evidence(model, self._scope)
        seed = self._seed_of(following)
        return Evidence(model, self._scope, movement=self._live.movement, seed=seed, example=self._example)

    def _seed_of(self, round: int) -> int:
        return (self._seed * 1_000_003 + round) % 2**63  # torch takes no larger ones

    # ---- state -------------------------------------------------------------------------------------------------------

    def _take_snapshots(self, epoch: int) -> None:
        parts = self._keeps.get(epoch)
        if parts is not None:
            assert self._store is not None
            state = self._live.capture(parts)
            self._store.keep(
                "rewind" if epoch else "initial", epoch, state.to_plain(), count=len(self._keeps)
            )

    def _open(self) -> None:
        """Go on from the newest intact state, or begin."""
        assert self._store is not None
        content = self._store.newest()
        if content is None:
            if not self._pretrained:
                self._live.listen(None)
            else:
                for epoch in self._needs:
                    self._take_snapshots(epoch)
                self._before = ranks.together(lambda: self._live.evaluated(self._evaluate))
            self._save(force=True)
            return
        progress = content["progress"]
        self.round, self._done = progress["round"], progress["done"]
        self._best = max(0, self.round - 1)
        self._rounds = [Round.from_dict(r) for r in progress["rounds"]]
        self._log, self._before = [dict(entry) for entry in progress["log"]], dict(progress["before"])
        self._damage = Damage(*progress["damage"])
        if self.round and self._smaller is not None:
            self._smaller.become(Mask.from_plain(progress["mask"]))
        self._live.restore(State.from_plain(content["state"]))
        if self.round == 0 and self._pretrained:
            return
        if self.round and not self._pretrained:
            self._recorded = Trace.from_plain(self._store.trace(0))
        if self.round:
            self._set_mask(Mask.from_plain(progress["mask"]))
        self._live.listen(self._retraining_trace() if self.round else None)
        assert self._live.recorder is not None
        self._live.recorder.load(Trace.from_plain(progress["trace"]))

    def _save(self, force: bool = False) -> None:
        """Write a state to go on from, if one is due; the last two epochs of a run always are (``rewound verify``)."""
        assert self._store is not None
        if self._store.folder is None:
            return
        t = len(self.plan.span(self.round))
        last_round = self.round == self.plan.rounds or (self.plan.until.metric is not None and self.round > 0)
        force = force or (last_round and self._done >= t - 1) or (self.round == 0 and self._done == t)
        number = sum(r.epochs for r in self._rounds) + self._done
        self._store.save_newest(number, self._content, force)

    def _content(self) -> dict[str, Any]:
        recorder = self._live.recorder
        return {
            "state": self._live.capture().to_plain(),
            "progress": {
                "round": self.round,
                "done": self._done,
                "rounds": [r.to_dict() for r in self._rounds],
                "log": [dict(entry) for entry in self._log],
                "before": self._before,
                "damage": [self._damage.relative_norm, self._damage.pruned],
                "mask": self.mask.to_plain() if self.round else None,
                "trace": None if recorder is None else recorder.trace().to_plain(),
            },
        }

    def _step_flops(self) -> tuple[int, int] | tuple[None, None]:
        """Training FLOPs of one step, dense and with the present mask."""
        if self._example is None:
            return None, None
        if self._flops_of_step is None:
            self._flops_of_step = cost.training_flops(self._live.model, self._example)
        if self.round == 0:
            return self._flops_of_step, self._flops_of_step
        mask = self.mask if self._smaller is None else None
        return self._flops_of_step, cost.training_flops(self._live.model, self._example, mask)


def _forward(dense: int | None, sparse: int | None) -> tuple[int, int] | None:
    """(surviving, dense) multiply-adds of a forward pass, from the FLOPs of a training step."""
    if dense is None or sparse is None:
        return None
    return sparse // (2 * cost.TRAINING_FACTOR), dense // (2 * cost.TRAINING_FACTOR)


def _traces(store: Store | None, rounds: int) -> Trace:
    """The traces of the first rounds, one after the other. Not a method: a kept result must not keep the model alive."""
    if store is None or rounds == 0:
        raise RuntimeError("no round is finished yet, so there is no trace to show")
    return joined(Trace.from_plain(store.trace(index)) for index in range(rounds))
