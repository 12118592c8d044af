"""Running native programs: threads, groups, forks."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from tests.runtime.programs import (
    network,
    random,
)


def test_bits_do_not_depend_on_threads_or_groups(isa: str) -> None:
    program = network()
    x = random(np.random.default_rng(21), 7, 3, 20, 20)
    one = np.empty((7, 10), np.float32)
    for i in range(7):
        program.run([x[i]], [one[i]])
    for threads, groups in itertools.product((1, 2, 3, 5), (1, 2, 7)):
        out = np.full((groups, 10), np.nan, np.float32)
        for _ in range(5):
            program.run([x[:groups].copy()], [out], groups=groups, threads=threads)
            np.testing.assert_array_equal(out, one[:groups])
    program.trim()
    program.run([x], [out], groups=7, threads=2)
    np.testing.assert_array_equal(out, one)
    times = program.profile([x[0]], [out[0]], threads=2)
    assert len(times) == len(program.operators())
    assert all(t >= 0 for t in times)
    assert program.weight_bytes > 0
    assert program.arena_bytes > 0


def test_engines_in_threads() -> None:
    programs = [network(), network(8, 9)]
    x = [random(np.random.default_rng(22), 3, 20, 20), random(np.random.default_rng(23), 3, 9, 9)]
    expected = [np.empty(10, np.float32) for _ in programs]
    for i, p in enumerate(programs):
        p.run([x[i]], [expected[i]])
    failures: list[str] = []

    def work(index: int, threads: int) -> None:
        out = np.empty(10, np.float32)
        for _ in range(40):
            programs[index].run([x[index]], [out], threads=threads)
            if not np.array_equal(out, expected[index]):
                failures.append(f"{index} with {threads} threads")

    workers = [threading.Thread(target=work, args=a) for a in ((0, 1), (0, 2), (1, 2), (1, 1), (0, 3))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs() -> None:
    code = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore")
        import numpy as np
        from tests.runtime.programs import network
        program = network(8, 9)
        x = np.ones((3, 9, 9), np.float32)
        out, theirs = np.empty(10, np.float32), np.empty(10, np.float32)
        program.run([x], [out], threads=2)
        stop = False
        def busy():
            mine = np.empty(10, np.float32)
            while not stop:
                program.run([x], [mine], threads=2)
        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                program.run([x], [theirs], threads=2)
                os._exit(0 if np.array_equal(out, theirs) else 3)
            assert os.waitpid(pid, 0)[1] == 0
        stop = True
        thread.join()
        print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "fine\n", done.stderr
