"""A metric of the user's own: a function of predictions, found by name where the command line allows it.

It returns the points of each item (n numbers, 0 to 100 like all others), or, for a score of the whole corpus, what the
built-in metrics give: ``(rows [n, k], value)``, where ``value`` turns sums of rows [r, k] into scores [r]. Both get
intervals, classes and comparisons as the built-in ones do. Two attributes of the function are read:
``lower_is_better`` and ``without_reference`` (it looks at the answer alone).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from qa_train.eval.scores.prediction import Prediction, answer_of
from qa_train.utils import plugins

Function = Callable[[Sequence[Prediction]], Any]


def own_metric(name: str) -> Function | None:
    """The function of that name; None: there is none.

    Raises:
        ValueError: the command line does not name its package, or it is no function of predictions.
    """
    if plugins.place_of(plugins.METRICS, name) is None:
        return None
    function: Function = plugins.load(plugins.METRICS, name, takes=("predictions",))
    return function


@lru_cache(maxsize=4)
def own_statistics(name: str, predictions: tuple[Prediction, ...]) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
    """Rows [n, k] of a metric of one's own and the function from their sums to its value; once for the same items.

    Raises:
        ValueError: it returned something else, or a number that is not finite.
        RuntimeError: it failed.
    """
    function = own_metric(name)
    if function is None:
        raise ValueError(f"there is no metric {name!r}")
    try:
        # As the built-in ones see them: an answer that failed is an empty one.
        found = function([replace(p, text=answer_of(p)) for p in predictions])
    except Exception as error:
        # Whatever it raises: the user needs the place in their code.
        raise RuntimeError(f"the metric {name} failed on {len(predictions)} predictions") from error
    if isinstance(found, tuple) and len(found) == 2 and callable(found[1]):
        rows, value = _numbers(name, found[0], len(predictions), 2), found[1]
        for sums in (rows.sum(0, keepdims=True), rows):
            _numbers(f"{name}: its second result", value(sums), len(sums), 1)
        return rows, value
    points = _numbers(name, found, len(predictions), 1)
    return np.stack([points, np.ones(len(points))], 1), lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)


def _numbers(name: str, found: Any, n: int, dims: int) -> np.ndarray:
    try:
        array = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        array = np.empty(0)
    shape = "one number" if dims == 1 else "a row of numbers"
    if array.ndim != dims or len(array) != n:
        text = repr(found)
        raise ValueError(
            f"{name} returned {text[:120]}{' ...' * (len(text) > 120)}: expected {shape} for each of {n} items"
        )
    wrong = np.flatnonzero(~np.isfinite(array.reshape(n, -1)).all(1))
    if len(wrong):
        raise ValueError(
            f"{name} gave {array[wrong[0]]} for item {wrong[0] + 1} of {n} ({len(wrong)} such items): every item needs "
            "a finite number; give an empty or wrong answer the worst score"
        )
    return array
