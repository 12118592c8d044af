"""Calls in a process of their own, from any process: that of a cluster's worker, say, which trains badly itself.

A worker of Dask draws from Python's random generator whenever it sends or keeps anything (``dask.sizeof`` takes samples), so a
run in one of its threads is not the run that it would be elsewhere, to the bit; other tasks draw from the same generators; and
a worker that has a nanny may have no children, which a DataLoader with workers needs. ``multiprocessing`` refuses such a
worker too, hence a plain subprocess, kept for the calls to come: it costs seconds to import torch.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_BEGIN = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer)"
_SERVE = "from rewound.experiment.apart import _serve; _serve()"
_PATIENCE = 60.0  # seconds that a process without work stays: it holds memory, perhaps that of a GPU

_idle: list[subprocess.Popen[bytes]] = []
_lock = threading.Lock()


class DiedError(RuntimeError):
    """The process of a call ended without an answer."""


def call_apart(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """Return ``function(*arguments)``, called in another process, which does nothing else then and ends with this one.

    What it raises is raised here. Function, arguments and answer are pickled; what it prints goes to standard error. Any number
    of threads may call. Raises DiedError where the process ends without an answer: killed, or out of memory.

    >>> call_apart(divmod, 7, 3)
    (2, 1)
    """
    call = pickle.dumps(pickle.dumps((function, arguments)))  # bytes, unpickled where errors are caught
    child = _take()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(call)
        child.stdin.flush()
        returned, answer = pickle.load(child.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise DiedError(f"ended by {_ending(_end(child))}") from None
    except BaseException:
        _end(child)
        raise
    _keep(child)
    if not returned:
        raise answer
    return answer


def _take() -> subprocess.Popen[bytes]:
    """Return a process that has nothing to do; a new one where there is none."""
    with _lock:
        while _idle:
            child = _idle.pop()
            if child.poll() is None:
                return child
            _end(child)
    command = [sys.executable, "-c", f"{_BEGIN}; {_SERVE}"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(pickle.dumps(sys.path))
    return child


def _keep(child: subprocess.Popen[bytes]) -> None:
    """Keep a process for the next call, but not for ever."""
    with _lock:
        _idle.append(child)
    timer = threading.Timer(_PATIENCE, _let_go, (child,))
    timer.daemon = True
    timer.start()


def _let_go(child: subprocess.Popen[bytes]) -> None:
    with _lock:
        if child not in _idle:
            return
        _idle.remove(child)
    _end(child)


@atexit.register
def _let_all_go() -> None:
    for child in (*_idle,):
        _let_go(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Make a process end, if it has not ended, and return with which code it did."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):  # something was still to be written
        child.stdin.close()
    try:
        code = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    child.stdout.close()
    return code


def _ending(code: int) -> str:
    """Say how a process ended.

    >>> _ending(-9), _ending(1)
    ('SIGKILL', 'exit code 1')
    """
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


# ---- in the child ---------------------------------------------------------------------------------


def _serve() -> None:
    """Do the calls that come, one by one, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    calls: queue.Queue[bytes | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(calls, busy), daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a call prints is no answer
        while call := calls.get():
            try:
                function, arguments = pickle.loads(call)
                answer = pickle.dumps((True, function(*arguments)))
            except Exception as error:
                answer = pickle.dumps((False, error))
            busy.clear()
            answers.write(answer)
            answers.flush()


def _listen(calls: queue.Queue[bytes | None], busy: threading.Event) -> None:
    """Take what is asked. A killed parent must not leave a child behind that trains on and holds the folder."""
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):
            if busy.is_set():
                os._exit(1)
            calls.put(None)
            return
        busy.set()
        calls.put(call)
