"""Trying again what may pass: one rule for remote files, language models and speech endpoints, on tenacity. And a
limit of time for calls that have none.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from qa_train.utils.masking import masked

Result = TypeVar("Result")
# Longest wait that a server may ask for.
_MOST_ASKED_S = 300.0
# A separate generator: jitter must not move the random numbers of the training, and tenacity's own jitter draws from
# them.
_jitter = random.SystemRandom()


class TryAgain(Exception):
    """A failure that may pass."""


def retried(
    call: Callable[[], Result],
    *,
    may_pass: Callable[[Exception], bool],
    attempts: int,
    first_wait_s: float,
    longest_wait_s: float,
    what: str,
    tell: Callable[[str], None],
) -> Result:
    """The result of ``call``, which is called up to ``attempts`` times while its errors may pass.

    The wait is ``first_wait_s`` at first and doubles up to ``longest_wait_s``, times a random factor between 0.5 and
    1.5 so that many processes do not retry at once; it is at least what an HTTP server asks for (Retry-After), up to
    300 s.

    Args:
        call: what may fail.
        may_pass: whether trying again after this error may help; other errors are raised at once.
        attempts: calls in all, the first included.
        first_wait_s: seconds before the second call.
        longest_wait_s: bound of the doubling.
        what: the call's name in messages.
        tell: called with one line about every failed attempt before a retry.

    Raises:
        Exception: the last error of ``call``, unchanged.
    """
    # The machinery of trying again costs 0.1 ms: it is for what has failed.
    failed: list[Exception] = []
    try:
        return call()
    except Exception as error:
        failed.append(error)
    grown = wait_exponential(multiplier=first_wait_s, max=longest_wait_s)

    def wait(state: RetryCallState) -> float:
        return max(grown(state) * _jitter.uniform(0.5, 1.5), min(_asked_s(_error(state)), _MOST_ASKED_S))

    def before_sleep(state: RetryCallState) -> None:
        error = _error(state)
        why = str(error) if isinstance(error, TryAgain) else f"{type(error).__name__}: {error}"
        tell(masked(f"{what}: attempt {state.attempt_number} failed ({why}); again in {state.upcoming_sleep:.1f} s"))

    def attempt() -> Result:
        if failed:
            raise failed.pop()
        return call()

    again = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and may_pass(error)),
        stop=stop_after_attempt(attempts),
        wait=wait,
        before_sleep=before_sleep,
        reraise=True,
    )
    return again(attempt)


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The call's result, or TimeoutError: its thread is left behind, for no library call can be ended from outside."""
    out: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            out.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if errors:
        raise errors[0]
    return out[0]


def _asked_s(error: BaseException | None) -> float:
    """Seconds of the header Retry-After, if ``error`` or its cause has an answer's ``headers``; a date counts as 0."""
    for each in (error, error.__cause__ if error else None):
        if headers := getattr(each, "headers", None):
            with suppress(ValueError):
                return max(0.0, float(headers.get("Retry-After") or 0))
    return 0.0


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
