"""The dashboard served on this machine: the page, its data as they grow, and the clips of held-out questions.

Only requests that name this machine are answered, nothing can be changed, and no file is sent but Ogg files that
lie in the run folders.
"""

from __future__ import annotations

import hashlib
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qa_train.dashboard.overview import board, page
from qa_train.dashboard.samples import Clips, is_ogg
from qa_train.report.curves import curves_of
from qa_train.report.document import json_block
from qa_train.report.runs import Run, Steps, find_runs, read_run
from qa_train.utils.loopback import is_trusted

HOST = "127.0.0.1"
# Seconds between two questions of a page for new values, at least; an answer may take a tenth of the time.
POLL_S, _SHARE = 5.0, 10
# How many versions are remembered: pages that ask in turn are at different ones.
_VERSIONS = 16
# The first one grows; the others are written when a run starts and ends.
_FILES = ("metrics.jsonl", "config.yaml", "environment.json", "finished.json")
_RANGE = re.compile(r"bytes=([0-9]{1,12})-([0-9]{0,12})")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Live:
    """The runs below ``folders`` as they are now; a run is read again only where its files have changed."""

    def __init__(self, folders: Sequence[Path], title: str) -> None:
        self._folders, self._title = list(folders), title
        self._known: dict[Path, tuple[list[str], Run, Steps]] = {}
        # Version -> what it was of each run, for the newest versions: pages are sent what they lack.
        self._sent: dict[str, dict[str, tuple[object, int]]] = {}
        self._lock = Lock()
        self.clips = Clips(None, 0.0)

    def page(self) -> bytes:
        """The whole page."""
        with self._lock:
            started = time.monotonic()
            runs, version = self._runs()
            return page(runs, self._title, self.clips, self._shown(runs, version, started)).encode()

    def data(self, since: str) -> bytes | None:
        """What the page's scripts show, as JSON; None if that is still the version ``since``.

        Of a run that a page of that version has in part, the points that were final then are left out.
        """
        with self._lock:
            started = time.monotonic()
            runs, version = self._runs()
            return None if version == since else json_block(self._shown(runs, version, started, since)).encode()

    def _runs(self) -> tuple[list[Run], str]:
        """The runs, and the version that they are."""
        runs = find_runs(self._folders, self._read)
        # Without those that are gone.
        self._known = {run.folder: self._known[run.folder] for run in runs}
        marks = "\n".join(f"{run.name} {self._known[run.folder][0]}" for run in runs)
        return runs, hashlib.sha256(marks.encode("utf-8", "replace")).hexdigest()[:16]

    def _read(self, folder: Path, name: str) -> Run:
        marks = [_mark(folder / file) for file in _FILES]
        known, run, steps = self._known.get(folder) or ([], None, Steps(folder / "metrics.jsonl"))
        if run is None or known[1:] != marks[1:]:
            run = read_run(folder, name, steps)
        elif known != marks:
            run = run.grown()
        self._known[folder] = (marks, run, steps)
        return run

    def _shown(self, runs: Sequence[Run], version: str, started: float, since: str = "") -> dict[str, Any]:
        """What the page's scripts show, and when they may ask again: making it took from ``started`` until now."""
        places, had = {run.name: curves_of(run).place for run in runs}, self._sent.get(since, {})
        kept = {name: had[name][1] for name, place in places.items() if name in had and had[name][0] == place[0]}
        found = board(runs, kept)
        self._sent = dict([*self._sent.items(), (version, places)][-_VERSIONS:])
        return found | {"version": version, "poll_s": max(POLL_S, _SHARE * (time.monotonic() - started))}


def _mark(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "-"
    return f"{found.st_size}:{found.st_mtime_ns}"


class LiveServer(ThreadingHTTPServer):
    """The server on a bound socket; ``serve_forever`` runs it."""

    daemon_threads = True

    def __init__(self, live: Live, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.live = live
        self.socket.close()
        self.socket, self.server_port = listener, listener.getsockname()[1]
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    server: LiveServer

    def do_GET(self) -> None:
        """The page, its data or a clip."""
        live = self.server.live
        if not is_trusted(self.headers.get("Host"), HOST):
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"only requests to this machine are answered\n")
            return
        try:
            asked = urlsplit(self.path)
        except ValueError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", f"no address: {error}\n".encode())
            return
        if asked.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", live.page())
        elif asked.path == "/data.json":
            found = live.data(parse_qs(asked.query).get("since", [""])[0])
            status = HTTPStatus.NO_CONTENT if found is None else HTTPStatus.OK
            self._send(status, "application/json", found or b"")
        elif (clip := _clip(live.clips, asked.path)) is not None:
            self._send_part("audio/ogg", clip)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here\n")

    def _send_part(self, kind: str, body: bytes) -> None:
        """All of it or the part that is asked for: players look at the end to learn how long a clip is."""
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)) if asked else (0, -1)
        if first <= last:
            where = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            self._send(HTTPStatus.PARTIAL_CONTENT, kind, body[first : last + 1], where)
        else:
            self._send(HTTPStatus.OK, kind, body, {"Accept-Ranges": "bytes"})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
        for name, value in {**_HEADERS, **own}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not reported."""


def _clip(clips: Clips, path: str) -> bytes | None:
    """A clip that the page named; None for others, and for one that something else has replaced since."""
    number = path.removeprefix("/clips/")
    if not path.startswith("/clips/") or not number.isdecimal() or not number.isascii() or len(number) > 9:
        return None
    served = list(clips.served)
    if int(number) >= len(served):
        return None
    file = served[int(number)]
    try:
        return file.read_bytes() if file.resolve() == file and is_ogg(file) else None
    except (OSError, RuntimeError):
        return None
