"""MLflow: metrics and parameters of one MLflow run, in a local folder or on a server."""

from __future__ import annotations

import re
import time
from typing import Any

from rewound.integrations.trackers.entries import epochs_trained, is_first, scalars, settings
from rewound.run import Run

_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")


class MLflow:
    """Log to ``experiment``, made where it is not there; ``uri`` is the tracking server or folder, else MLflow's own setting.

    ``name`` is shown for the run. To go on in an MLflow run after a kill, give its ``run_id``; left out, a new one begins.
    Raises ``ImportError`` where mlflow is missing.
    """

    def __init__(
        self, experiment: str, *, name: str | None = None, uri: str | None = None, run_id: str | None = None
    ) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise ImportError("the MLflow tracker needs mlflow: pip install 'rewound[mlflow]'") from error
        self._client, self._metric, self._param = MlflowClient(tracking_uri=uri), Metric, Param
        self._experiment, self._name = experiment, name
        self._goes_on, self.run_id = run_id is not None, run_id
        self._began = False

    def __call__(self, run: Run) -> None:
        """Note the epoch that just ended."""
        if not is_first():
            return
        params: list[Any] = []
        if not self._began:
            self._began = True
            self._begin()
            if not self._goes_on:  # MLflow lets no parameter change
                params = [self._param(key, str(value)) for key, value in settings(run).items()]
        step, now = epochs_trained(run), int(time.time() * 1000)
        found = {_NOT_IN_NAMES.sub("_", name): value for name, value in scalars(run).items()}
        self._client.log_batch(
            self.run_id, [self._metric(key, value, now, step) for key, value in found.items()], params
        )

    def close(self, status: str = "FINISHED") -> None:
        """End the MLflow run."""
        if self._began:
            self._client.set_terminated(self.run_id, status)
            self._began = False

    def __enter__(self) -> MLflow:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED")

    def _begin(self) -> None:
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        place = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(place, run_name=self._name).info.run_id
