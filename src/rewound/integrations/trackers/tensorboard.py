"""TensorBoard: scalars in event files, ``tensorboard --logdir`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewound.integrations.trackers.entries import epochs_trained, is_first, scalars
from rewound.run import Run


class TensorBoard:
    """Write to ``folder``; ``options`` are those of ``torch.utils.tensorboard.SummaryWriter``.

    A run that goes on after a kill goes on in the same folder: what the killed process logged beyond that point is dropped.
    Raises ``ImportError`` where tensorboard is missing.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the TensorBoard tracker needs tensorboard: pip install 'rewound[tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self._folder, self._options = str(folder), options
        self._writer: Any = None

    def __call__(self, run: Run) -> None:
        """Note the epoch that just ended."""
        if not is_first():
            return
        step = epochs_trained(run)
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=step, **self._options)
            self._writer.add_text("plan", f"```\n{run.plan}\n```", step)
        for name, value in scalars(run).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
