"""Where jobs run on one machine: in this process, or in others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock, Thread
from typing import Any, Protocol

# Jobs handed out per process before the first result is taken: results wait in memory no longer than that.
_AHEAD = 4
# Which GPUs a process sees. Ray sets it anew for each job; a fork server's own is that of its first.
_GPUS = "CUDA_VISIBLE_DEVICES"
# What pyarrow imports at its first table: 0.2 s, once and not in every process.
_LATE = ("pandas",)


class Died(Exception):
    """The process of a job ended without an answer."""


class NodeLost(Exception):
    """The machine of a job, or its result there, is gone; the job itself is not to blame."""


class Pool(Protocol):
    """Where jobs run."""

    @property
    def ahead(self) -> int:
        """How many jobs are to be handed in at a time."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a job as soon as there is room."""

    def result(self, future: Future[Any]) -> Any:
        """The result of a finished job. Raises what the job raised, `Died` or `NodeLost`."""

    def close(self) -> None:
        """End all jobs, finished or not."""


class Here:
    """This process, one job after the other."""

    ahead = 1

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do it now; what it raises comes from here."""
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future

    def result(self, future: Future[Any]) -> Any:
        """The job's result."""
        return future.result()

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class _Worker:
    """A process that answers jobs until its pipe is closed, with the GPUs that it sees."""

    process: BaseProcess
    pipe: Connection
    gpus: str | None


class Processes:
    """Processes of this machine: a thread for each that may run at a time, which starts one per job.

    ``keep``: it goes on to the next job instead, and what it has loaded stays.
    """

    def __init__(self, num_workers: int, modules: Sequence[str], *, keep: bool = False) -> None:
        # Children of a fork server start from a clean process with the libraries already imported:
        # cheap, safe with threads, and with a speech engine that has spoken nothing yet.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*modules, *_LATE])
        self._threads = ThreadPoolExecutor(num_workers)
        self._alive: set[BaseProcess] = set()
        self._idle: list[_Worker] = []
        self._lock, self._keep, self._closed = Lock(), keep, False
        self.ahead = _AHEAD * num_workers

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a job."""
        return self._threads.submit(self.run, work, *arguments)

    def result(self, future: Future[Any]) -> Any:
        """The job's result."""
        return future.result()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do one job now, in another process. Raises what it raises, or `Died`."""
        worker = self._begin()
        try:
            worker.pipe.send((work, arguments))
            good, answer = worker.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise Died(f"its process died (exit code {self._end(worker)})") from None
        except BaseException:
            self._end(worker)
            raise
        if self._keep:
            with self._lock:
                self._idle.append(worker)
        else:
            self._end(worker)
        if not good:
            raise answer
        return answer

    def _begin(self) -> _Worker:
        """A process that waits and sees the GPUs that this one does, or a new one."""
        gpus = os.environ.get(_GPUS)
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            if kept.gpus == gpus:
                return kept
            self._end(kept)
        with self._lock:
            if self._closed:
                raise Died("it was not started")
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, gpus), daemon=True)
            with theirs:
                process.start()
            self._alive.add(process)
            return _Worker(process, ours, gpus)

    def _end(self, worker: _Worker) -> int | None:
        """The exit code of a process that gets no more jobs."""
        worker.pipe.close()
        # Its exit code can be read once, and starting a process reads those of all that ended.
        wait([worker.process.sentinel])
        with self._lock:
            worker.process.join()
            self._alive.discard(worker.process)
            return worker.process.exitcode

    def close(self) -> None:
        """Kill what runs; those that wait end of themselves."""
        with self._lock:
            self._closed = True
            waiting, self._idle = self._idle, []
            for process in self._alive - {worker.process for worker in waiting}:
                process.kill()
        for worker in waiting:
            self._end(worker)
        self._threads.shutdown(cancel_futures=True)


def _serve(pipe: Connection, gpus: str | None) -> None:
    os.environ.pop(_GPUS, None)
    os.environ.update({} if gpus is None else {_GPUS: gpus})
    # A process that outlives a killed command would keep writing next to the next one.
    Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole group: the command alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError):
        while True:
            pipe.send(_answer(*pipe.recv()))


def _answer(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """(True, result) or (False, what was raised)."""
    try:
        return True, work(*arguments)
    except Exception as error:
        # For faults of the program; a user's mistake is one line, and notes are no part of it.
        error.add_note(traceback.format_exc())
        return False, error


def _end_with_parent() -> None:
    # The kernel's own signal (qa_train.utils.process) would come from the fork server, which lives as long as this.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
