"""Weights & Biases; offline with ``mode="offline"``, where nothing leaves the machine until ``wandb sync``."""

from __future__ import annotations

from typing import Any

from rewound.integrations.trackers.entries import epochs_trained, is_first, scalars, settings
from rewound.run import Run


class WandB:
    """Log to ``project``; ``options`` are those of ``wandb.init``: ``mode="offline"``, ``name``, ``dir``, ``id`` and ``resume``.

    ``wandb.init`` is called with the first epoch, with the plan as its config. Raises ``ImportError`` where wandb is missing.
    """

    def __init__(self, project: str, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "the Weights & Biases tracker needs wandb: pip install 'rewound[wandb]'"
            ) from error
        self._init = wandb.init
        self._options = {"project": project, **options}
        self._run: Any = None

    def __call__(self, run: Run) -> None:
        """Note the epoch that just ended."""
        if not is_first():
            return
        if self._run is None:
            config = {**settings(run), **(self._options.get("config") or {})}
            self._run = self._init(**{**self._options, "config": config})
        self._run.log(scalars(run), step=epochs_trained(run))

    def close(self, exit_code: int = 0) -> None:
        """End the run of Weights & Biases."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def __enter__(self) -> WandB:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(0 if kind is None else 1)
