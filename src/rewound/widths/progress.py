"""One line on a terminal that says what takes so long; silence anywhere else."""

from __future__ import annotations

import sys
import time

_EVERY = 0.1  # seconds
_last = 0.0


def tell(text: str) -> None:
    """Write ``text`` over the last line told, ten times a second at most; an empty text wipes it."""
    global _last
    stream = sys.stderr
    if stream is None or not stream.isatty() or (text and time.monotonic() - _last < _EVERY):
        return
    _last = time.monotonic()
    stream.write(f"\r\x1b[K{text}")
    stream.flush()
