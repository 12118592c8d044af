"""Where arms run: executors of ``concurrent.futures``, with what the one who waits must know of each.

    engine("local", ...)                        processes of this machine, each by itself
    engine("dask:tcp://10.0.0.1:8786", ...)     the workers of a Dask cluster            (pip install 'rewound[dask]')
    engine("slurm:partition=gpu,mem_gb=8", ...) one job of Slurm an arm, by submitit     (pip install 'rewound[slurm]')

On other machines the experiment's folder must lie under the same path, on a file system that knows locks, and the same
versions must be installed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rewound.experiment.apart import call_apart

KINDS = ("local", "dask:ADDRESS", "slurm:KEY=VALUE,...")


@dataclass(frozen=True)
class Engine:
    """``submit``: as an executor's; ``at_once()``: how many arms it can run now; seconds between two looks at it; ``end``: what
    makes its workers stop where they are."""

    submit: Callable[..., Future[Any]]
    at_once: Callable[[], int]
    interval: float
    end: Callable[[], None]


@contextmanager
def engine(on: str, *, workers: int, threads: int, folder: Path) -> Iterator[Engine]:
    """Open the engine that ``on`` names, and close it again. ``folder`` is for files of its own (of Slurm: logs).

    Raises ValueError for another name, ImportError naming the extra that is missing, OSError where no cluster answers.
    """
    kind, _, rest = on.partition(":")
    if kind == "local" and not rest:
        opened = _local(workers)
    elif kind == "dask" and rest:
        opened = _dask(rest)
    elif kind == "slurm":
        opened = _slurm(rest, workers, threads, folder)
    else:
        raise ValueError(f"arms run on one of {', '.join(KINDS)} (got {on!r})")
    with opened as found:
        yield found


# ---- this machine --------------------------------------------------------------------------------


class Processes(Executor):
    """Processes of this machine, each a pool of its own: one that is killed takes only its own work along.

    (All processes of one ProcessPoolExecutor are ended when one of them dies, and nobody knows which arm it was.)
    """

    def __init__(self, workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._threads = ThreadPoolExecutor(workers)
        self._mine = threading.local()
        self._ended = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn`` in the first process that is free; BrokenProcessPool is the future's error where that one died."""
        return self._threads.submit(self._run, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes go, when they are done."""
        self._ended = cancel_futures
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._ended:
            raise BrokenProcessPool("ended")
        pool = getattr(self._mine, "pool", None)
        if pool is None:  # one for each thread, and with one process
            pool = self._mine.pool = ProcessPoolExecutor(1, self._context, _start_worker)
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            self._mine.pool = None
            pool.shutdown(wait=False)
            raise


@contextmanager
def _local(workers: int) -> Iterator[Engine]:
    before = set(multiprocessing.active_children())
    executor = Processes(workers)

    def end() -> None:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
            process.join()

    # No more than there are workers: the first in order are the first to run.
    yield Engine(executor.submit, lambda: workers, 0.1, end)
    executor.shutdown()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed parent must not leave a worker behind that trains on and holds the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# ---- Dask ----------------------------------------------------------------------------------------


@contextmanager
def _dask(address: str) -> Iterator[Engine]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("'--on dask:...' needs dask.distributed: pip install 'rewound[dask]'") from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"no Dask scheduler answers at {address!r} ({error}); 'dask scheduler' starts one and prints its address"
        ) from error

    def at_once() -> int:
        """The threads of all workers there are now (and one arm where there are none yet: Dask keeps it for the first).

        No more than can run, because Dask gives up a task after some deaths of workers that had it, were it only in their
        queue (``distributed.scheduler.allowed-failures``).
        """
        try:
            return max(1, sum(client.nthreads().values()))
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"the Dask scheduler at {address!r} is gone ({error}); nothing is lost: once one answers there, the same command "
                "goes on"
            ) from error

    with client:
        executor = client.get_executor(pure=False)
        # What runs already goes on to its end there; it holds its folder's lease until then, and nothing is lost.
        yield Engine(
            partial(executor.submit, call_apart), at_once, 0.5, lambda: executor.shutdown(wait=False)
        )
        executor.shutdown()


# ---- Slurm ---------------------------------------------------------------------------------------


class Submitted(Executor):
    """Jobs of submitit as futures, looked after by one thread."""

    def __init__(self, executor: Any, interval: float) -> None:
        self._executor, self._interval = executor, interval
        self._jobs: dict[Future[Any], Any] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a job; submitit's own error is the future's where the job died."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        job = self._executor.submit(fn, *args, **kwargs)
        with self._lock:
            self._jobs[future] = job
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is still there, if asked to, and look no longer."""
        with self._lock:
            left = list(self._jobs.values())
        if cancel_futures:
            for job in left:
                job.cancel()
        self._ended.set()
        if wait:
            self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(self._interval):
            with self._lock:
                jobs = list(self._jobs.items())
            for future, job in jobs:
                if not job.done():
                    continue
                try:
                    future.set_result(job.result())
                except Exception as error:
                    future.set_exception(error)
                with self._lock:
                    del self._jobs[future]


@contextmanager
def _slurm(text: str, workers: int, threads: int, folder: Path) -> Iterator[Engine]:
    try:
        import submitit
    except ImportError as error:
        raise ImportError("'--on slurm' needs submitit: pip install 'rewound[slurm]'") from error
    given = _parameters(text)
    cluster = given.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
        # A job that is ended by its time limit goes on in the next one, so the limit need not fit the run.
        executor.update_parameters(
            **{"timeout_min": 24 * 60, "cpus_per_task": threads, "name": "rewound", **given}
        )
    except (RuntimeError, NameError, TypeError) as error:
        raise ValueError(f"--on slurm:{text}: {error}") from error
    interval = 0.2 if cluster == "local" else 5.0
    submitted = Submitted(executor, interval)
    yield Engine(
        submitted.submit,
        lambda: workers,
        interval,
        lambda: submitted.shutdown(wait=False, cancel_futures=True),
    )
    submitted.shutdown()


def _parameters(text: str) -> dict[str, Any]:
    """Read ``partition=gpu,mem_gb=8`` as parameters of submitit; what it does not know of all clusters is Slurm's own.

    >>> _parameters("partition=gpu,timeout_min=90,cluster=local")
    {'slurm_partition': 'gpu', 'timeout_min': 90, 'cluster': 'local'}
    """
    shared = (
        "cluster",
        "timeout_min",
        "mem_gb",
        "nodes",
        "cpus_per_task",
        "gpus_per_node",
        "tasks_per_node",
        "name",
    )
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise ValueError(f"'--on slurm:' takes KEY=VALUE, separated by commas (got {part!r})")
        name = key if key in shared or key.startswith("slurm_") else f"slurm_{key}"
        found[name] = int(value) if value.isdigit() else value
    return found
