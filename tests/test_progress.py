"""Progress in a log file: plain lines with rate and time left, none for what is quick."""

from __future__ import annotations

import re
import sys

import pytest

from qa_train.utils import progress as module
from qa_train.utils.progress import amount, duration, progress, rough
from tests.pseudo_terminal import in_terminal


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_lines_tell_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=300, initial=20, desc="making shards", unit="clips") as bar:
        bar.update(10)
        clock.now = 40.0
        bar.update(70)
        clock.now = 50.0
        bar.update(200)
    assert capsys.readouterr().err.splitlines() == [
        "making shards: 100 of 300 clips, 2/s, 2 min left",
        "making shards: 300 of 300 clips, 5.6/s, 0 s left",
    ]


def test_a_count_is_told_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=10, desc="making shards", unit="clips") as bar:
        clock.now = 40.0
        bar.update(10)
        clock.now = 41.0
    assert capsys.readouterr().err == "making shards: 10 of 10 clips, 0.25/s, 0 s left\n"


def test_what_is_quick_or_switched_off_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), desc="listing")) == [0, 1, 2]
    with progress(total=5, desc="answers", disable=True) as bar:
        clock.now = 1000.0
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_total_that_is_not_known(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(2), desc="listing", unit="items"):
        clock.now += 31.0
    assert capsys.readouterr().err.splitlines() == ["listing: 1 items, 0.032/s", "listing: 2 items, 0.032/s"]


@pytest.mark.parametrize("columns", [100, 0])
def test_a_terminal_shows_a_bar_with_rate_and_time_left(columns: int) -> None:
    """In a pseudo terminal of its own, also in one that does not say how wide it is."""
    program = (
        "import time; from qa_train.utils.progress import progress\n"
        "for _ in progress(range(4), desc='listing', unit='items'): time.sleep(0.15)"
    )
    code, shown = in_terminal([sys.executable, "-c", program], columns)
    assert code == 0
    assert re.search(r"listing:  50%\|.*2/4 \[00:00<00:00, +[\d.]+ items/s\]", shown), shown


def test_numbers_for_people_have_no_exponents_and_no_empty_digits() -> None:
    assert [duration(s) for s in (0, 0.2, 89, 100, 6000)] == ["0 s", "1 s", "89 s", "2 min", "1.7 hours"]
    assert [rough(n) for n in (0.0046, 3.21, 120, 1_254)] == ["0.0046", "3.2", "120", "1,254"]
    assert [amount(n) for n in (980, 26_112, 12_000_000)] == ["980", "26.1 k", "12.0 M"]
