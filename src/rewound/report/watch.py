"""A live view: the page of a grid while it runs, for this machine only.

The server listens on 127.0.0.1 and answers three paths; it reads the folders and writes nothing. A page asks every few seconds
whether its version is still the newest, and is made anew only when a run has got further and somebody looks.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = "127.0.0.1"
_PATIENCE = 5.0  # seconds that a version lasts at least,
_REST = 3.0  # and how many times as long as its page took to make
_TOLD_BY = (
    "grid.json",
    "results.json",
    "runs/*.json",
    "runs/*/result.json",
    "runs/*/error.json",
    "arms/*/*.json",
    "arms/*/*/result.json",
)
_CLOSED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Live:
    """The newest page of the folders ``paths``; ``make(version)`` makes it. ``patience`` is in seconds.

    ``page()`` never raises: where the folders hold nothing yet, or nothing sound, the page says so and goes on asking.
    """

    def __init__(
        self, paths: Sequence[Path], make: Callable[[str], str], patience: float = _PATIENCE
    ) -> None:
        self._paths, self._make, self._patience = paths, make, patience
        self._lock = threading.Lock()
        self._version, self._until, self._text, self._of = "", 0.0, "", ""

    def version(self) -> str:
        """Return what changes when a run has got further."""
        with self._lock:
            if time.monotonic() >= self._until:
                version = _state_of(self._paths)
                if version != self._version:
                    self._version, self._until = version, time.monotonic() + self._patience
            return self._version

    def page(self) -> str:
        """Return the page of the newest version, made anew where that is another one than before."""
        version = self.version()
        with self._lock:
            if self._of != version:
                began = time.monotonic()
                try:
                    self._text = self._make(version)
                except (
                    Exception
                ) as error:  # a run that is just beginning, a file half moved: the next version will do
                    self._text = _nothing_yet(error)
                self._of = version
                self._until = time.monotonic() + max(self._patience, _REST * (time.monotonic() - began))
            return self._text


def serve(live: Live, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of ``live`` on this machine's own address, not yet answering (``serve_forever``); port 0 takes a free one.

    Raises ``OSError`` naming the port where it is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "rewound", ""

        def do_GET(self) -> None:
            # A foreign page whose name was made to point here must not read what this machine's owner may.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (ADDRESS, "localhost"):
                self._answer(403, "text/plain", "This page is for its own machine.")
            elif self.path == "/":
                self._answer(200, "text/html", live.page())
            elif self.path == "/version":
                self._answer(200, "text/plain", live.version())
            else:
                self._answer(404, "text/plain", "There is only one page here: /")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            headers = {**_CLOSED, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a page that asks every few seconds would fill the terminal."""

    try:
        server = ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {ADDRESS}:{port} ({error}); choose another --port") from error
    server.daemon_threads = True
    return server


def url_of(server: ThreadingHTTPServer) -> str:
    """Return the server's address for a browser."""
    return f"http://{ADDRESS}:{server.server_address[1]}/"


def _state_of(paths: Sequence[Path]) -> str:
    """A hash of the names, times and sizes of all files that tell how far runs are."""
    digest = hashlib.sha256()
    for path in paths:
        for above in ("", "*/", "*/*/"):
            for pattern in _TOLD_BY:
                for file in sorted(path.glob(above + pattern)):
                    try:
                        found = file.stat()
                    except FileNotFoundError:  # replaced this moment
                        continue
                    digest.update(f"{file}\n{found.st_mtime_ns} {found.st_size}\n".encode())
    return digest.hexdigest()[:16]


def _nothing_yet(error: Exception) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>waiting</title>'
        f'<p role="status">Nothing to show yet: {escape(str(error))}. This page asks again by itself.</p></html>'
    )
