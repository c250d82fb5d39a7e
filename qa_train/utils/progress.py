"""How far a long command is: a bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from qa_train.utils.masking import shown
from qa_train.utils.terminal import STANDARD, layout

# Between two lines in a log file. A shorter job prints no progress.
EVERY_S = 30.0


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str,
    unit: str = "it",
    disable: bool = False,
) -> Any:
    """tqdm on stderr if that is a terminal, else ``Lines``: both iterate, ``update``, ``close``, and work in ``with``.

    total: how many there will be, None if that is not known; initial: how many were done before.
    """
    if not disable and sys.stderr.isatty():
        return tqdm(items, total=total, initial=initial, desc=desc, unit=f" {unit}", **bar_width())
    return Lines(items, total, initial, desc, unit, EVERY_S if not disable else float("inf"))


def bar_width() -> dict[str, Any]:
    """tqdm's arguments for a bar as wide as the terminal, also of one that does not say how wide it is."""
    told = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return {"dynamic_ncols": True} if told else {"ncols": STANDARD}


def say(line: object, *, error: bool = False) -> None:
    """Print a line to stdout (stderr) while a bar may be on the screen: above it, not behind it; masked and folded."""
    file = sys.stderr if error else sys.stdout
    line = layout(file).fold(shown(line))
    if sys.stderr.isatty() and file.isatty():
        tqdm.write(line, file=file)
    else:
        print(line, file=file, flush=True)


def duration(seconds: float) -> str:
    """A time, or a length of audio, for people: "0 s", "40 s", "12 min" or "3.4 hours"."""
    if seconds < 90:
        return f"{max(int(seconds > 0), round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def rough(number: float) -> str:
    """A measured number for people, never with an exponent above 1: "0.0046", "3.2", "1,250"."""
    return f"{number:,.0f}" if abs(number) >= 10 else f"{number:.2g}"


def amount(number: float) -> str:
    """A large count for people: "980", "26.1 k", "12.0 M"."""
    if number < 1e5:
        return f"{number:,.0f}" if number < 1e3 else f"{number / 1e3:.1f} k"
    return f"{number / 1e6:,.1f} M"


def counted(number: int, unit: str) -> str:
    """A number for people: "1 shard", "2,000 shards"."""
    return f"{number:,} {unit}{'s' * (number != 1)}"


class Lines:
    """Counts like a bar of tqdm, and prints "desc: 120 of 300 clips, 4.2/s, 43 s left" to stderr."""

    def __init__(
        self, items: Iterable[Any] | None, total: int | None, initial: int, desc: str, unit: str, every_s: float
    ) -> None:
        self.total, self.n = total, initial
        self._items, self._initial, self._desc, self._unit, self._every_s = items, initial, desc, unit, every_s
        self._start = self._last = time.monotonic()
        # The count in the newest line.
        self._told: int | None = None

    def __iter__(self) -> Iterator[Any]:
        for item in self._items or ():
            yield item
            self.update()
        self.close()

    def update(self, n: int = 1) -> None:
        """``n`` more are done."""
        self.n += n
        if time.monotonic() - self._last >= self._every_s:
            self._say()

    def close(self) -> None:
        """The last line, if there was one before it with another count."""
        if self._told not in (None, self.n):
            self._say()
        self._told = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self) -> None:
        self._last, self._told = time.monotonic(), self.n
        rate = (self.n - self._initial) / max(self._last - self._start, 1e-9)
        text = f"{self._desc}: {self.n:,}"
        if self.total is not None:
            text += f" of {self.total:,}"
        text += f" {self._unit}, {rough(rate)}/s"
        if self.total is not None and rate > 0:
            text += f", {duration(max(0, self.total - self.n) / rate)} left"
        print(text, file=sys.stderr, flush=True)
