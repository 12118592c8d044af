"""What a measurement must say about the machine it was made on. No host names, no paths."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

RUNTIMES = ("onnxruntime", "onnx", "onnxscript", "openvino")  # named where they are installed


def facts() -> dict[str, Any]:
    """Return processor, cores, threads of torch, memory, system, versions and the load at this moment."""
    import numpy as np
    import torch

    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: found for name in RUNTIMES if (found := _version(name)) is not None},
        "load_average": [round(value, 2) for value in load],
    }


@contextmanager
def on_cores(count: int) -> Iterator[list[int]]:
    """Keep this thread, and those it starts inside, on the first ``count`` cores that it may use; yield their numbers.

    Where a system knows no affinity, nothing is pinned and the list is empty.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[:count]
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def resident() -> int | None:
    """Return the bytes of this process that are in memory now, mapped files among them; None where no /proc tells."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """Return the most bytes that this process had in memory since its start or the last :func:`forget_peak`."""
    if (found := _status("VmHWM")) is not None:
        return found
    with suppress(ImportError):  # not on Windows
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return None


def forget_peak() -> None:
    """Let :func:`peak_resident` count from now on, where the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
