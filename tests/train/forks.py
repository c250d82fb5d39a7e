"""Commands as processes of their own, without the time of their imports, in conditions that a test chooses.

One server process imports what training needs and forks every start from itself. A test talks to it
through `Forks`; what is tested stays real: separate processes, real signals, limits and mounts. What acts on imports or
on a launcher (the home folder, the locale, OMP_NUM_THREADS, torchrun's restarts) needs fresh processes instead:
`tests.train.conftest.command`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.leave import leave
from tests.processes import free_port
from tests.train.conftest import ROOT, TIMEOUT_S, environment

# What a start that cannot have its conditions here ends with.
IMPOSSIBLE = 77
_NEW_MOUNTS, _NEW_USERS, _PRIVATE = 0x20000, 0x10000000, (1 << 18) | (1 << 14)


class Start:
    """A started stage: one process a rank."""

    def __init__(self, forks: Forks, pids: list[int], words: list[str], log: Path) -> None:
        self._forks = forks
        self.pids = pids
        self.folder = next((Path(word[8:]) for word in words if word.startswith("run.dir=")), Path())
        self.stdout, self.stderr = log.with_suffix(".out"), log.with_suffix(".err")
        self.stdout.touch()
        self.stderr.touch()

    @property
    def steps(self) -> int:
        """Steps that metrics.jsonl holds."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def over(self) -> bool:
        """Whether every rank has ended."""
        return None not in [self._forks.ask(poll=pid) for pid in self.pids]

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

    def each(self, number: int) -> None:
        """Send a signal to all ranks, such as SIGSTOP while a test looks at them."""
        for rank in range(len(self.pids)):
            self.kill(rank, number)

    def codes(self, seconds: float = TIMEOUT_S) -> list[int]:
        """The exit codes of all ranks; a failure if they do not come in time."""
        deadline = time.monotonic() + seconds
        while None in (found := [self._forks.ask(poll=pid) for pid in self.pids]):
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"no end within {seconds} s: {found}\n{self.said()}")
            time.sleep(0.02)
        return [int(code) for code in found if code is not None]

    def code(self) -> int:
        """As torchrun: the exit code of the first rank that fails, whereupon the others are ended; 0 if none does."""
        deadline = time.monotonic() + TIMEOUT_S
        while None in (found := [self._forks.ask(poll=pid) for pid in self.pids]) and not any(found):
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"no end within {TIMEOUT_S} s: {found}\n{self.said()}")
            time.sleep(0.02)
        self.end()
        return next((int(code) for code in found if code), 0)

    def end(self) -> None:
        """Kill what still runs."""
        for pid in self.pids:
            self._forks.ask(end=pid)

    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.stdout.read_text(errors="replace") + self.stderr.read_text(errors="replace")


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

    def start(
        self,
        words: list[str],
        *,
        ranks: int = 1,
        program: Path | None = None,
        under: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> Start:
        """Give a command (with ``program``: to this Python file, not to qa-train); ``under``: see `_condition`."""
        self._count += 1
        log = self._folder / f"start-{self._count}"
        port = free_port()
        announced = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if ranks > 1 else {}
            for rank in range(ranks)
        ]  # fmt: skip
        request = {"words": words, "program": program and str(program), "log": str(log), "under": under or {}}
        pids = [self.ask(**request, env=(env or environment()) | each) for each in announced]
        return Start(self, pids, words, log)

    def close(self) -> None:
        """End the server and with it, by the kernel, whatever it started."""
        self._server.kill()
        self._server.communicate()


@cache
def forks() -> Forks:
    """The server of this test process."""
    folder = tempfile.TemporaryDirectory()
    made = Forks(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(made.close)
    return made


def _condition(name: str, value: Any) -> None:
    """Put this process under a condition: see the branches."""
    libc = ctypes.CDLL(None, use_errno=True)
    if name == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(value))
    elif name == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))
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


def _fork(words: list[str], program: str | None, env: dict[str, str], log: str, under: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        leave(lambda: _start(words, program, env, log, under))
    return pid


def _start(words: list[str], program: str | None, env: dict[str, str], log: str, under: dict[str, Any]) -> None:
    gc.enable()
    from qa_train.cli import main
    from qa_train.utils.process import end_with_parent

    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    end_with_parent()
    os.environ.clear()
    os.environ |= env
    for name, value in under.items():
        _condition(name, value)
    if program is None:
        main(words)
    else:
        sys.argv = [program, *words]
        runpy.run_path(program, run_name="__main__")


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on stdout
    gc.disable()  # and no fork looks through what is imported here: see `tests.conftest`
    # The first as DeepSpeed's engine does; it brings torch's compiler.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import hydra.main  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from hydra.core.plugins import Plugins

    import qa_train.callbacks.held_out
    import qa_train.commands.train_stage
    import qa_train.config.compose
    import qa_train.train.dpo
    import qa_train.train.first_screen
    import qa_train.train.opening
    import qa_train.train.pretrain
    import qa_train.train.sft  # noqa: F401

    Plugins.instance()

    gc.freeze()
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if "words" in request:
            answer = _fork(**request)
        elif "end" in request:
            if request["end"] not in codes:
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
