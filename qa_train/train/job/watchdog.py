"""A hanging rank dumps its stacks and exits, so that torchrun can restart the run.

The clock is faulthandler's own thread, which runs without Python's lock: it also sees a rank that is stuck inside
C code (a collective whose partner is gone, a blocked read) or that never gives the lock back. A rank that the system
stopped (SIGSTOP) cannot report itself; the others wait for it in a collective, report that, and exit.
"""

from __future__ import annotations

import faulthandler
from contextlib import suppress
from pathlib import Path
from typing import TextIO


class Watchdog:
    """One rank's clock. ``start``, then `beat` at every sign of progress, then ``stop``."""

    def __init__(self, folder: Path, rank: int, timeout_s: float | None) -> None:
        """Args:
        folder: where ``stacks-rank-R.txt`` is written if needed.
        rank: this process's number.
        timeout_s: longest time between two beats, in seconds; None switches the clock off, not the report of crashes.
        """
        self._path = folder / f"stacks-rank-{rank}.txt"
        self._timeout_s = timeout_s
        self._file: TextIO | None = None

    def start(self) -> None:
        """Start the clock; from now on a crash in C code (SIGSEGV, SIGABRT) writes the stacks too."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        faulthandler.enable(self._file, all_threads=True)
        self.beat()

    def beat(self) -> None:
        """This rank made progress: the time starts again."""
        if self._file is not None and self._timeout_s is not None:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def stop(self) -> None:
        """Stop the clock; an empty file is deleted."""
        faulthandler.cancel_dump_traceback_later()
        if self._file is None:
            return
        faulthandler.enable()
        self._file.close()
        self._file = None
        with suppress(FileNotFoundError):  # the run folder may have been removed
            if self._path.stat().st_size == 0:
                self._path.unlink()
