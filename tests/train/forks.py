"""Starts of training without the time of their imports, in conditions that a test chooses.

One server process imports what training needs and forks every start from itself. A test talks to it through `Forks`;
what is tested stays real: processes of their own, real signals, limits and mounts. Faults that act on imports (the
home folder, the locale) need a fresh process instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.conftest import ROOT, TIMEOUT_S, environment

# What a start that cannot have its conditions here ends with.
IMPOSSIBLE = 77
_NEW_MOUNTS, _NEW_USERS, _PRIVATE = 0x20000, 0x10000000, (1 << 18) | (1 << 14)


class Start:
    """A started stage: one process a rank."""

    def __init__(self, forks: Forks, pids: list[int], folder: Path, log: Path) -> None:
        self._forks = forks
        self.pids = pids
        self.folder = folder
        self.log = log

    @property
    def steps(self) -> int:
        """Steps that metrics.jsonl holds."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that a running start does."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self._forks.ask(poll=self.pids[0]) is None, f"{what}: it ended\n{self.said()}"
            assert time.monotonic() < deadline, f"{what}: not in {TIMEOUT_S} s\n{self.said()}"
            time.sleep(0.02)

    def kill(self, rank: int = 0, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank."""
        os.kill(self.pids[rank], number)

    def codes(self, seconds: float = TIMEOUT_S) -> list[int]:
        """The exit codes of all ranks; a failure if they do not come in time."""
        deadline = time.monotonic() + seconds
        found = [self._forks.ask(poll=pid) for pid in self.pids]
        while None in found:
            if time.monotonic() > deadline:
                for pid in self.pids:
                    self._forks.ask(end=pid)
                raise AssertionError(f"no end within {seconds} s: {found}\n{self.said()}")
            time.sleep(0.02)
            found = [self._forks.ask(poll=pid) for pid in self.pids]
        return [int(code) for code in found if code is not None]

    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")


class Forks:
    """The server's client. Every start gets a log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.train.forks"], env=environment(), cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """One request, one answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, stage: str, *words: str, folder: Path, ranks: int = 1, under: dict[str, Any] | None = None,
              **env: str) -> Start:  # fmt: skip
        """Start a stage of run.dir ``folder``; ``under``: see `_condition`."""
        self._count += 1
        log = self._folder / f"start-{self._count}.txt"
        log.touch()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        announced = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if ranks > 1 else {}
            for rank in range(ranks)
        ]  # fmt: skip
        pids = [
            self.ask(words=[stage, *words, f"run.dir={folder}"], env=each | env, log=str(log), under=under or {})
            for each in announced
        ]
        return Start(self, pids, folder, log)

    def close(self) -> None:
        """End the server and with it, by the kernel, whatever it started."""
        self._server.kill()
        self._server.communicate()


def _condition(name: str, value: Any) -> None:
    """Put this process under a condition: files ([soft, hard]), shm (size of /dev/shm), powerless (rights apply)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if name == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(value))
    elif name == "shm":
        inside = os.getuid() != 0
        if libc.unshare(_NEW_MOUNTS | (_NEW_USERS if inside else 0)) or libc.mount(b"none", b"/", None, _PRIVATE, None):
            os._exit(IMPOSSIBLE)
        if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={value}".encode()):
            os._exit(IMPOSSIBLE)
    elif name == "powerless" and os.getuid() == 0:
        # Root without its powers: an owner whom a read-only folder stops (capset(2), version 3, all sets empty).
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        if libc.capset(header, (ctypes.c_uint32 * 6)()):
            os._exit(IMPOSSIBLE)


def _fork(words: list[str], env: dict[str, str], log: str, under: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from qa_train.cli import main
        from qa_train.utils.launch import end_with_parent

        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        end_with_parent()
        os.environ |= env
        for name, value in under.items():
            _condition(name, value)
        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on stdout
    import deepspeed  # noqa: F401

    import qa_train.callbacks.held_out
    import qa_train.train.dpo
    import qa_train.train.opening
    import qa_train.train.pretrain
    import qa_train.train.sft  # noqa: F401

    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if "words" in request:
            answer = _fork(**request)
        elif "end" in request:
            os.kill(request["end"], signal.SIGKILL)
        else:
            pid = request["poll"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
