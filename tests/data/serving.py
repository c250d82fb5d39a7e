"""Servers of remote shards for tests and benchmarks: processes of their own, with latency and faults on request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running server: its URL, the folder that it serves, and its plan of faults."""

    url: str
    folder: Path
    plan: Path

    def fail(self, *faults: str) -> None:
        """The next requests end so; those after them are served."""
        self.plan.write_text("\n".join(faults))
        Path(f"{self.plan}.log").unlink(missing_ok=True)

    @property
    def requests(self) -> list[str]:
        """One line for each request since the last call of ``fail``; see the servers for its words."""
        log = Path(f"{self.plan}.log")
        return log.read_text().splitlines() if log.exists() else []

    @property
    def connections(self) -> int:
        """How many connections these requests came over (not of s3_server.py)."""
        return len({line.split()[2] for line in self.requests})


@contextmanager
def http_server(folder: Path, latency_s: float = 0.0) -> Iterator[Server]:
    """A server of a folder; every answer is ``latency_s`` late."""
    with _running("http_server.py", folder, [str(folder)], latency_s) as server:
        yield server


@contextmanager
def s3_server(folder: Path, latency_s: float = 0.0) -> Iterator[Server]:
    """An S3 server without buckets; its plan lies next to ``folder``."""
    with _running("s3_server.py", folder, [], latency_s) as server:
        yield server


@contextmanager
def late_relay(folder: Path, port: int, latency_s: float) -> Iterator[Server]:
    """A way to a server of this machine whose answers are ``latency_s`` late; its log lies next to ``folder``."""
    with _running("late_relay.py", folder, [str(port)], latency_s) as server:
        yield server


@contextmanager
def _running(script: str, folder: Path, words: list[str], latency_s: float) -> Iterator[Server]:
    plan = folder.with_name(f"{folder.name}.plan")
    plan.write_text("")
    command = [sys.executable, str(Path(__file__).with_name(script)), *words, str(plan), str(latency_s)]
    # moto creates its accounts with whatever keys there are.
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | keys
    ) as child:
        assert child.stdout is not None
        try:
            yield Server(f"http://127.0.0.1:{child.stdout.readline().strip()}", folder, plan)
        finally:
            child.kill()
