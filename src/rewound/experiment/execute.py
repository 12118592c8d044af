"""Arms side by side in processes of their own; progress comes back by one queue; one failure is only one.

    execute(arms, work, workers=2, report=print)    work(arm, report) -> dict, in a fresh (spawned) process

An arm that raises is an answer ({"status": "failed", "error": ...}), not an exception. A process that dies
(killed, out of memory) takes its whole pool with it, so the arms that were left over are tried once more,
each alone; resuming is the Run's business and costs nothing here. Ctrl-C ends the workers at once: a Run may
be killed at any instant.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

Event = dict[str, Any]
Report = Callable[[Event], None]
Outcome = dict[str, Any]


class Arm(Protocol):
    """What ``execute`` needs to know of an arm: its number. The rest is between caller and ``work``."""

    @property
    def index(self) -> int: ...


Work = Callable[[Any, Report], Outcome]


def execute(
    arms: Sequence[Arm],
    work: Work,
    *,
    workers: int = 1,
    threads: int = 1,
    report: Report = lambda event: None,
) -> dict[int, Outcome]:
    """Run every arm and return index -> outcome. ``work`` must be importable (a module's function).

    One worker, or one arm, stays in this process. KeyboardInterrupt passes, once the workers are gone.
    """
    workers = min(workers, len(arms))
    if workers <= 1:
        if arms:
            _set_threads(threads)
        return {arm.index: _told(report, arm, _attempt(work, arm, report)) for arm in arms}
    outcomes = _pooled(arms, work, workers, threads, report)
    for arm in arms:
        if arm.index not in outcomes:  # its pool broke: alone, an arm can only bring down itself
            died: Outcome = {
                "status": "failed",
                "error": "its process died twice (killed, or out of memory?)",
            }
            outcomes |= _pooled([arm], work, 1, threads, report)
            outcomes.setdefault(arm.index, died)
            if outcomes[arm.index] is died:
                _told(report, arm, died)
    return outcomes


def _pooled(
    arms: Iterable[Arm], work: Work, workers: int, threads: int, report: Report
) -> dict[int, Outcome]:
    """Run arms on a pool; arms whose process died, or never came to start, are missing in the answer."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (queue, threads))
    outcomes: dict[int, Outcome] = {}
    try:
        waiting: dict[Future[Outcome], Arm] = {pool.submit(_in_worker, work, arm): arm for arm in arms}
        while waiting:
            done, _ = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            while not queue.empty():
                report(queue.get())
            for future in done:
                arm = waiting.pop(future)
                try:
                    outcomes[arm.index] = _told(report, arm, future.result())
                except BrokenProcessPool:
                    continue
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
            process.join()
        raise
    pool.shutdown()
    return outcomes


def _attempt(work: Work, arm: Arm, report: Report) -> Outcome:
    try:
        return work(arm, report)
    except Exception as error:
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }


def _told(report: Report, arm: Arm, outcome: Outcome) -> Outcome:
    report({"arm": arm.index, "kind": outcome["status"], "error": outcome.get("error")})
    return outcome


# ---- inside a worker ------------------------------------------------------------------------------
_queue: Any = None


def _start_worker(queue: Any, threads: int) -> None:
    global _queue
    _queue = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _set_threads(threads)


def _die_with_parent() -> None:
    """A killed parent must not leave a worker behind that trains on and holds the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(work: Work, arm: Arm) -> Outcome:
    return _attempt(work, arm, _queue.put)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
