"""Jobs side by side, on any executor: one failure is only one, who dies is tried again, nobody waits for nothing.

    execute(jobs, work, workers=2, report=print)    work(job, report) -> dict, in a fresh (spawned) process

A job that raises is an answer ({"status": "failed", "error": ...}), not an exception. Where a process dies under it (killed, out
of memory, a machine gone), the job is tried again, as long as each try gets further than the one before; resuming is the
Run's business. Ctrl-C ends the workers at once: a Run may be killed at any instant.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, Protocol

from rewound.experiment.apart import DiedError
from rewound.experiment.executors import Engine, engine
from rewound.experiment.lease import LostLeaseError
from rewound.experiment.mailbox import Event, Mailbox, Post

Report = Callable[[Event], None]
Outcome = dict[str, Any]


class Job(Protocol):
    """What ``execute`` needs to know of a job: its number, and (``after``, where it has that) which other must be finished
    before. The rest is between caller and ``work``."""

    @property
    def index(self) -> int: ...


Work = Callable[[Any, Report], Outcome]


def execute(
    jobs: Sequence[Job],
    work: Work,
    *,
    workers: int = 1,
    threads: int = 1,
    report: Report = lambda event: None,
    on: str = "local",
    folder: Path | None = None,
) -> dict[int, Outcome]:
    """Run every job and return index -> outcome. ``work`` must be importable (a module's function).

    On this machine one worker, or one job, stays in this process. ``on``: see :mod:`rewound.experiment.executors`; elsewhere
    than "local" workers and this process must both see ``folder``. KeyboardInterrupt passes, once the workers are gone.
    """
    workers = min(workers, len(jobs))
    if not jobs:
        return {}
    if workers <= 1 and on == "local":
        _set_threads(threads)
        return _one_by_one(jobs, work, report)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".events-", dir=folder) as events,
        engine(on, workers=workers, threads=threads, folder=folder or Path(events)) as opened,
    ):
        return _Crew(jobs, work, threads, report, opened, Path(events)).run()


def _one_by_one(jobs: Sequence[Job], work: Work, report: Report) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    for job in jobs:
        outcome = _prevented(job, outcomes)
        try:
            outcome = outcome or _attempt(work, job, report)
        except LostLeaseError as error:
            report({"arm": job.index, "kind": "warning", "says": f"{error}; tried again, from where it was"})
            outcome = _attempt(work, job, report)
        outcomes[job.index] = _told(report, job, outcome)
    return outcomes


class _Crew:
    """The jobs of one call, and where each of them stands."""

    def __init__(
        self, jobs: Sequence[Job], work: Work, threads: int, report: Report, engine: Engine, events: Path
    ) -> None:
        self._waiting, self._running = list(jobs), dict[Future[Outcome], Job]()
        self._outcomes: dict[int, Outcome] = {}
        self._work, self._threads, self._engine = work, threads, engine
        self._tell, self._mailbox, self._post = report, Mailbox(events), Post(events)
        self._reached: dict[int, int] = {}  # epochs, by job
        self._died_at: dict[int, list[int]] = {}

    def run(self) -> dict[int, Outcome]:
        try:
            while self._waiting or self._running:
                self._hand_out()
                done, _ = wait(self._running, timeout=self._engine.interval, return_when=FIRST_COMPLETED)
                self._mailbox.deliver([job.index for job in self._running.values()], self._hear)
                for future in done:
                    self._take(future, self._running.pop(future))
        except BaseException:
            self._engine.end()
            raise
        return self._outcomes

    def _hand_out(self) -> None:
        """Give the executor what can begin: all whose forerunner is finished, as far as there is room."""
        if not self._waiting:
            return
        at_once, later = self._engine.at_once(), []
        for job in self._waiting:
            after = getattr(job, "after", None)
            ready = after is None or after in self._outcomes
            if not ready or len(self._running) >= at_once:
                later.append(job)
            elif prevented := _prevented(job, self._outcomes):
                self._outcomes[job.index] = _told(self._tell, job, prevented)
            else:
                future = self._engine.submit(_in_worker, self._work, job, self._post, self._threads)
                self._running[future] = job
        self._waiting = later

    def _hear(self, event: Event) -> None:
        if event["kind"] == "epoch":
            self._reached[event["arm"]] = max(self._reached.get(event["arm"], 0), event.get("done", 0))
        self._tell(event)

    def _take(self, future: Future[Outcome], job: Job) -> None:
        try:
            outcome = future.result()
        except Exception as error:  # not the job's own: that would be an outcome
            deaths = self._died_at.setdefault(job.index, [])
            deaths.append(self._reached.get(job.index, 0))
            why = (
                str(error)
                if isinstance(error, (LostLeaseError, DiedError))
                else f"killed, or out of memory? {type(error).__name__}"
            )
            if deaths.count(deaths[-1]) < 2:
                says = f"its process died ({why}); tried again, from where it was"
                self._tell({"arm": job.index, "kind": "warning", "says": says})
                self._waiting.insert(0, job)
                return
            outcome = {"status": "failed", "error": f"its process died twice without getting further ({why})"}
        self._outcomes[job.index] = _told(self._tell, job, outcome)


def _prevented(job: Job, outcomes: dict[int, Outcome]) -> Outcome | None:
    """Return the outcome of a job whose forerunner failed."""
    after = getattr(job, "after", None)
    if after is None or outcomes[after]["status"] == "finished":
        return None
    return {"status": "failed", "error": f"what it begins from failed: {outcomes[after]['error']}"}


def _attempt(work: Work, job: Job, report: Report) -> Outcome:
    try:
        return work(job, report)
    except LostLeaseError:
        raise
    except Exception as error:
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }


def _told(report: Report, job: Job, outcome: Outcome) -> Outcome:
    report({"arm": job.index, "kind": outcome["status"], "error": outcome.get("error")})
    return outcome


# ---- inside a worker ------------------------------------------------------------------------------
def _in_worker(work: Work, job: Job, post: Post, threads: int) -> Outcome:
    _set_threads(threads)
    return _attempt(work, job, post)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
