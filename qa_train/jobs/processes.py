"""Where jobs run on one machine: in this process, or each in one of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock, Thread
from typing import Any, Protocol

# Jobs handed out per process before the first result is taken: results wait in memory no longer than that.
_AHEAD = 4


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


class Processes:
    """Processes of this machine: a thread for each that may run at a time, which starts one per job."""

    def __init__(self, num_workers: int, modules: Sequence[str]) -> None:
        # Children of a fork server start from a clean process with the libraries already imported:
        # cheap, safe with threads, and with a speech engine that has spoken nothing yet.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))
        self._threads = ThreadPoolExecutor(num_workers)
        self._alive: set[BaseProcess] = set()
        self._lock, self._closed = Lock(), False
        self.ahead = _AHEAD * num_workers

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a job."""
        return self._threads.submit(self.run, work, *arguments)

    def result(self, future: Future[Any]) -> Any:
        """The job's result."""
        return future.result()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do one job now, in a process of its own. Raises what it raises, or `Died`."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_answer, args=(sender, work, arguments), daemon=True)
        with self._lock, sender:
            if self._closed:
                raise Died("it was not begun")
            process.start()
            self._alive.add(process)
        try:
            with receiver:
                good, answer = receiver.recv()
        except EOFError:
            # Its exit code can be read once, and starting a process reads those of all that ended.
            wait([process.sentinel])
            with self._lock:
                process.join()
            raise Died(f"its process died (exit code {process.exitcode})") from None
        finally:
            with self._lock:
                self._alive.discard(process)
        process.join()
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        """Kill what runs."""
        with self._lock:
            self._closed = True
            for process in self._alive:
                process.kill()
        self._threads.shutdown(cancel_futures=True)


def _answer(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # A process that outlives a killed command would keep writing next to the next one.
    Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole group: the command alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer = True, work(*arguments)
    except Exception as error:
        # For faults of the program; a user's mistake is one line, and notes are no part of it.
        error.add_note(traceback.format_exc())
        answer = False, error
    sender.send(answer)


def _end_with_parent() -> None:
    # The kernel's own signal (qa_train.utils.process) would come from the fork server, which lives as long as this.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
