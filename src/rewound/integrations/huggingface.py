"""Run inside the Hugging Face Trainer: ``rewind = prepare(trainer, until=0.2)``, then ``trainer.train()`` as ever.

The Trainer's arguments describe the original run: its epochs are T, its schedule is built for T epochs. ``prepare`` makes
the Trainer's loop as long as the plan of all rounds, and a callback drives the Run by the Trainer's own events:

    on_train_begin     take over the optimizer and scheduler that the Trainer really uses
    on_epoch_begin     the run's next epoch begins (between rounds: prune, rewind)
    on_evaluate        the metrics go to run.log, without their prefix "eval_"
    on_train_end       the last round is closed

The data order is a function of the seed and of the run's epoch, so it rewinds too (with Accelerate's seedable sampler, the
Trainer's default). To go on after a kill, give a ``folder`` and start the same script again: the Trainer counts from 0 then,
the run does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewound.plan import Plan
from rewound.result import Result
from rewound.run import Run
from rewound.state import State, capture, restore

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "the Trainer integration needs transformers: pip install 'rewound[huggingface]'"
    ) from error

_TIMINGS = (
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "model_preparation_time",
    "jit_compilation_time",
)


def prepare(trainer: Trainer, **options: Any) -> RewindCallback:
    """Let ``trainer.train()`` train, prune, rewind and retrain; return the callback, which has ``run`` and ``result``.

    Args:
        trainer: made as for the original run alone: ``num_train_epochs`` is T, its scheduler is built for T epochs.
            ``num_train_epochs`` is then set to the number of epochs that the plan needs.
        options: what :class:`rewound.Run` takes (``technique``, ``rate``, ``until``, ``folder``, ...), without model,
            optimizer, epochs and scheduler, which are the Trainer's. A metric in ``until`` is called as the Trainer's
            evaluation calls it without "eval_" and needs ``eval_strategy="epoch"``.

    Raises ``ValueError`` for arguments of the Trainer that contradict a run, before anything is trained.

    When a metric ends the run, the model in memory has the last good round's weights, and the newest checkpoint has not:
    save it with ``trainer.save_model()``.
    """
    _require_epochs(trainer)
    epochs = int(trainer.args.num_train_epochs)
    optimizer = trainer.create_optimizer() or trainer.optimizer  # older versions return nothing
    scaler = getattr(trainer.accelerator, "scaler", None)
    extras = (*options.pop("extras", ()), *([] if scaler is None else [scaler]))
    run = Run(
        trainer.model, optimizer, epochs=epochs, scheduler=trainer.lr_scheduler, extras=extras, **options
    )
    if run.plan.until.metric and _text(trainer.args.eval_strategy) != "epoch":
        raise ValueError(
            f"the run stops by {run.plan.until.metric!r}, so every epoch must be evaluated; "
            f"give the Trainer eval_strategy='epoch' (got {_text(trainer.args.eval_strategy)!r})"
        )
    total, create = run.plan.total_epochs, trainer.create_scheduler

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer asks for all rounds; the schedule is that of the original run."""
        return create(num_training_steps * epochs // total, optimizer)

    trainer.create_scheduler = create_scheduler
    trainer.args.num_train_epochs = total
    callback = RewindCallback(run)
    trainer.add_callback(callback)
    return callback


class RewindCallback(TrainerCallback):
    """Drives a Run by the Trainer's events; made by :func:`prepare`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._epochs: Iterator[int] | None = None
        self._training = False
        self._is_last = False
        self._undo: State | None = None

    @property
    def plan(self) -> Plan:
        """What the run will do; printable before training."""
        return self.run.plan

    @property
    def result(self) -> Result:
        """The finished rounds so far."""
        return self.run.result

    def on_train_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        if self._epochs is not None:
            raise RuntimeError("a prepared Trainer trains once; make another Trainer and prepare it")
        if state.global_step:
            raise ValueError(
                "the Trainer goes on from one of its own checkpoints, which knows nothing of rounds; call train() without "
                "resume_from_checkpoint, and give prepare() a folder: the run goes on from there by itself"
            )
        self._epochs = iter(self.run)
        self._live = live["model"], live["optimizer"], live["lr_scheduler"]
        self.run.attach(live["optimizer"], live["lr_scheduler"])
        loader = live["train_dataloader"]
        if hasattr(loader, "set_epoch"):
            set_epoch = loader.set_epoch
            loader.set_epoch = lambda epoch: set_epoch(epoch if self.run.epoch is None else self.run.epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        assert self._epochs is not None
        self._training = False  # between two epochs, an evaluation is no epoch's
        try:
            next(self._epochs)
            self._training = True
        except (
            StopIteration
        ):  # the folder holds a finished run; the Trainer takes a step before it asks whether to stop
            self._undo = capture(*self._live)
            control.should_training_stop = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **live: Any
    ) -> None:
        if not self._training:  # an evaluation of the user's own, before or after training
            return
        named = {
            name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")
        }
        timings = tuple(name for name in named if name.endswith(_TIMINGS))
        self.run.log(**{name: value for name, value in named.items() if name not in timings})
        result, run = self.run.result, self.run
        if run.round and run.epoch == self.plan.epochs - 1:
            self._is_last |= self.plan.until.stopped_by(run.logged, result.rounds[0].metrics)
            control.should_training_stop |= self._is_last

    def on_epoch_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        if self._undo is not None:
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.run.round == self.plan.rounds and self.run.epoch == self.plan.epochs - 1:
            self._is_last = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        assert self._epochs is not None
        self._training = False
        if self._undo is not None:
            restore(self._undo, *self._live)
        elif self._is_last:
            next(self._epochs, None)  # closes the last round; no epoch follows
        else:  # stopped by somebody else
            self._epochs.close()  # type: ignore[attr-defined]  # a generator


def _require_epochs(trainer: Trainer) -> None:
    args = trainer.args
    if args.max_steps > 0:
        raise ValueError(
            f"a run is counted in epochs; give num_train_epochs and no max_steps (got {args.max_steps})"
        )
    if args.num_train_epochs != int(args.num_train_epochs):
        raise ValueError(f"'num_train_epochs' must be a whole number (got {args.num_train_epochs!r})")
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end=True would put the best, hence usually the unpruned, checkpoint in the pruned model's "
            "place; leave it out, and stop by a metric with until='accuracy drops 0.01'"
        )
    if trainer.model_init is not None:
        raise ValueError(
            "model_init builds the model anew in train(), after the run has seen it; pass model= instead"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "under FSDP or DeepSpeed the Trainer replaces the parameters; use rewound.Run in your own loop"
        )


def _text(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))
