"""Trying again: how often, how long the waits are, what is not tried again, and what is said about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from email.message import Message
from urllib.error import HTTPError

import pytest

from qa_train.utils.closest import closest, did_you_mean
from qa_train.utils.retry import TryAgain, retried

URL = "https://store.example/a.tar?signature=0123456789abcdef"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited; nobody waits."""
    found: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", found.append)
    return found


def failing(*errors: BaseException) -> Callable[[], str]:
    """A call that raises these, one after another, and then returns."""
    left: Iterator[BaseException] = iter(errors)

    def call() -> str:
        for error in left:
            raise error
        return "done"

    return call


def run(call: Callable[[], str], attempts: int = 4, told: list[str] | None = None) -> str:
    return retried(
        call,
        may_pass=lambda error: isinstance(error, TryAgain | ConnectionError | HTTPError),
        attempts=attempts,
        first_wait_s=1.0,
        longest_wait_s=5.0,
        what=f"{URL}, size",
        tell=[].append if told is None else told.append,
    )


@pytest.mark.parametrize("failures", range(4))
def test_what_passes_in_time_is_returned(waits: list[float], failures: int) -> None:
    told: list[str] = []
    assert run(failing(*[TryAgain("busy")] * failures), told=told) == "done"
    assert len(waits) == len(told) == failures


def test_the_last_error_is_raised_as_it_is_after_the_attempts(waits: list[float]) -> None:
    errors = [ConnectionResetError(f"number {i}") for i in range(5)]
    with pytest.raises(ConnectionResetError, match="number 2"):
        run(failing(*errors), attempts=3)
    assert len(waits) == 2
    with pytest.raises(TryAgain):
        run(failing(TryAgain("once")), attempts=1)
    assert len(waits) == 2


def test_waits_double_up_to_a_bound_and_scatter(waits: list[float]) -> None:
    for _ in range(20):
        run(failing(*[TryAgain("busy")] * 5), attempts=6)
    for i, grown in enumerate((1.0, 2.0, 4.0, 5.0, 5.0)):
        of_this = waits[i::5]
        assert all(0.5 * grown <= wait <= 1.5 * grown for wait in of_this)
        assert max(of_this) - min(of_this) > 0.1 * grown


def http_error(asked: str, cause_of: type[Exception] | None) -> Exception:
    """The answer of a server that is too busy, as urllib raises it or as the cause of another error."""
    headers = Message()
    headers["Retry-After"] = asked
    error = HTTPError(URL, 429, "slow down", headers, None)
    if cause_of is None:
        return error
    wrapped = cause_of("slow down")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize("cause_of", [None, TryAgain, ConnectionError])
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [("30", 30.0, 30.0), ("299", 299.0, 299.0), ("7200", 300.0, 300.0), ("inf", 300.0, 300.0),
     # Not followed: the wait is its own.
     ("0", 0.5, 1.5), ("-5", 0.5, 1.5), ("nan", 0.5, 1.5), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5, 1.5)],
)  # fmt: skip
def test_a_server_may_ask_for_a_longer_wait_within_reason(
    waits: list[float], asked: str, least: float, most: float, cause_of: type[Exception] | None
) -> None:
    run(failing(http_error(asked, cause_of), TryAgain("again")))
    assert least <= waits[0] <= most
    assert waits[1] <= 3.0


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("gone"), KeyboardInterrupt(), SystemExit(3)])
def test_what_cannot_pass_is_raised_at_once(waits: list[float], error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run(failing(error))
    assert caught.value is error
    assert waits == []


def test_every_failed_attempt_is_told_without_secrets(waits: list[float]) -> None:
    told: list[str] = []
    run(failing(TryAgain("HTTP 429"), ConnectionResetError("by peer")), told=told)
    assert [line.partition("; again in ")[0] for line in told] == [
        "https://store.example/a.tar?***, size: attempt 1 failed (HTTP 429)",
        "https://store.example/a.tar?***, size: attempt 2 failed (ConnectionResetError: by peer)",
    ]


def test_random_numbers_of_the_training_stay(waits: list[float]) -> None:
    state = random.getstate()
    run(failing(TryAgain("busy"), TryAgain("busy")))
    assert random.getstate() == state


def test_the_closest_name() -> None:
    known = ["pretrain", "sft", "dpo", "data", "dashboard"]
    for word, meant in (("pretrian", "pretrain"), ("dat", "data"), ("dashbord", "dashboard"), ("sfd", "sft")):
        assert closest(word, known) == meant
        assert did_you_mean(word, dict.fromkeys(known), "{}=") == f"did you mean {meant}=? "
    for word in ("", "qqq", "xyzzy"):
        assert closest(word, known) is None
        assert did_you_mean(word, known) == ""
    assert closest("qqqa", ["aqq"], cutoff=0) == "aqq"
    assert closest("x", []) is None
