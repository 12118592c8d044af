"""Run inside Lightning: ``Trainer(max_epochs=T, callbacks=[RewindCallback(until=0.2)])``, then ``fit`` as ever.

The Trainer's arguments describe the original run: ``max_epochs`` is T, and ``configure_optimizers`` builds its schedule for
T epochs. Then the callback makes the loop as long as the plan of all rounds, and drives a Run by the Trainer's own events:

    on_fit_start            make the Run; ``estimated_stepping_batches`` was that of T epochs until now
    on_train_epoch_start    log the last epoch's metrics; the run's next epoch begins (between rounds: prune, rewind)
    on_train_end            the last round is closed

Metrics are those of ``self.log``. Samplers with ``set_epoch`` get the run's epoch, so a seeded data order rewinds too. To go
on after a kill, give a ``folder`` and start the same script again, without ``ckpt_path``. Fabric needs no adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewound.plan import Plan
from rewound.result import Result
from rewound.run import Run

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "the Lightning integration needs lightning: pip install 'rewound[lightning]'"
    ) from error


class RewindCallback(Callback):
    """Train, prune, rewind and retrain in ``Trainer.fit``; ``run``, ``plan`` and ``result`` are there once it began.

    Args:
        options: what :class:`rewound.Run` takes (``technique``, ``rate``, ``until``, ``folder``, ...), without model,
            optimizer, epochs and scheduler, which are the Trainer's. A metric in ``until`` is named as it was logged.

    Raises ``ValueError`` from ``fit`` for a Trainer or a module that contradicts a run, before anything is trained.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._run: Run | None = None
        self._epochs: Iterator[int] | None = None

    @property
    def run(self) -> Run:
        """The Run, once ``fit`` has begun."""
        if self._run is None:
            raise RuntimeError(
                "the run begins with trainer.fit(...): it needs the optimizer that your module builds"
            )
        return self._run

    @property
    def plan(self) -> Plan:
        """What the run will do."""
        return self.run.plan

    @property
    def result(self) -> Result:
        """The finished rounds so far."""
        return self.run.result

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            raise RuntimeError("a RewindCallback serves one fit(); make another one")
        _require_epochs(trainer)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        extras = (*self._options.get("extras", ()), *([] if scaler is None else [scaler]))
        self._run = Run(
            pl_module,
            trainer.optimizers[0],
            epochs=trainer.max_epochs,
            scheduler=schedulers[0] if schedulers else None,
            **{**self._options, "extras": extras},
        )
        trainer.fit_loop.max_epochs = self.plan.total_epochs
        self._epochs = iter(self._run)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._epochs is not None
        first = self.run.epoch is None
        self._log(trainer)
        # StopIteration ends Lightning's loop as well: the run is over before the planned epochs are.
        epoch = next(self._epochs)
        loop = trainer.fit_loop
        for loader in loop._combined_loader.flattened:
            for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
                if sampler is not None and hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)
        if first and (
            self.run.round or epoch
        ):  # the loop's first iterator was made before the run's state came back
            iter(loop._data_fetcher)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._epochs is not None
        self._log(trainer)
        if self.run.round == self.plan.rounds and self.run.epoch == self.plan.epochs - 1:
            next(self._epochs, None)  # closes the last round; no epoch follows
        else:  # over already, or stopped by somebody else
            self._epochs.close()  # type: ignore[attr-defined]  # a generator

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._epochs is not None:
            self._epochs.close()  # type: ignore[attr-defined]  # lets others into the folder

    def _log(self, trainer: Trainer) -> None:
        # As late as can be: the module's own on_train_epoch_end comes after that of the callbacks.
        if self.run.epoch is not None and not self.result.finished:
            self.run.log(**trainer.callback_metrics)


def _require_epochs(trainer: Trainer) -> None:
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"the module has {len(trainer.optimizers)} optimizers, and a schedule is recorded and replayed on one; "
            "give configure_optimizers one optimizer with parameter groups, or use rewound.Run in your own loop"
        )
    if len(trainer.lr_scheduler_configs) > 1:
        raise ValueError(
            f"the module has {len(trainer.lr_scheduler_configs)} schedulers; join them with "
            "torch.optim.lr_scheduler.SequentialLR or ChainedScheduler"
        )
    if trainer.max_steps != -1 or not trainer.max_epochs or trainer.max_epochs < 1:
        raise ValueError(
            "a run is counted in epochs; give the Trainer max_epochs and no max_steps "
            f"(got max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps})"
        )
    if trainer.ckpt_path is not None:
        raise ValueError(
            "a Lightning checkpoint knows nothing of rounds; call fit() without ckpt_path, and give RewindCallback a folder: "
            "the run goes on from there by itself"
        )
