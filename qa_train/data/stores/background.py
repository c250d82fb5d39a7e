"""Calls that run in the background: a few threads of this process that wait for remote files.

They are daemons: a request that hangs does not keep a process that ends. concurrent.futures' own would be waited for.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from qa_train.data.stores.web_ranges import MAX_CONNECTIONS
from qa_train.utils.retry import Result

_Job = tuple[Future, Callable[[], object]]


class _Threads:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()

    def put(self, job: _Job) -> None:
        with self._lock:
            if self._started < MAX_CONNECTIONS:
                self._started += 1
                threading.Thread(target=self._work, daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            future, call = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            # A waiting thread must not hold the bytes of its last answer.
            del future, call


def submit(call: Callable[[], Result]) -> Future[Result]:
    """Run ``call`` in the background, first come, first served, at most `MAX_CONNECTIONS` at once."""
    future: Future[Result] = Future()
    _threads.put((future, call))
    return future


def _renew() -> None:
    global _threads
    _threads = _Threads()


_threads = _Threads()
# Threads do not follow into a forked process.
os.register_at_fork(after_in_child=_renew)
