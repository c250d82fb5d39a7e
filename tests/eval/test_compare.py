"""Paired comparison: sees a real difference, keeps its error rate without one, refuses other items."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from qa_train.eval.compare import compare_folders, compare_predictions, comparison_table
from qa_train.eval.prediction import Prediction


def noisy(count: int, share: float, seed: int) -> list[Prediction]:
    draw = random.Random(seed)
    reference = "one two three four"
    return [
        Prediction(reference if draw.random() > share else "one two five four", (f"{reference} {i}",), "fr")
        for i in range(count)
    ]


def test_difference_interval_and_verdict() -> None:
    good, bad = noisy(300, 0.1, 1), noisy(300, 0.4, 2)
    found = compare_predictions("wer", bad, good)
    assert found["difference"] == pytest.approx(found["second"] - found["first"], abs=0.002)
    assert found["ci_low"] <= found["difference"] <= found["ci_high"] < 0
    assert found["p_value"] < 0.01
    assert found["better"] == "second"
    assert compare_predictions("wer", good, bad)["better"] == "first"
    same = compare_predictions("wer", good, good)
    assert (same["difference"], same["p_value"], same["better"]) == (0, 1.0, None)


def test_p_value_of_shares_equals_the_exact_sign_test() -> None:
    # 12 items differ, 10 of them in favour of the second: the exact two-sided sign test says 0.0386.
    right = [(True, True)] * 30 + [(False, True)] * 10 + [(True, False)] * 2
    sides = [[Prediction("x" if pair[k] else "y", ("x",)) for pair in right] for k in (0, 1)]
    found = compare_predictions("accuracy", sides[0], sides[1], resamples=4000)
    assert found["p_value"] == pytest.approx(0.0386, abs=0.012)
    assert found["better"] == "second"


def test_no_difference_is_rarely_called_one() -> None:
    calls = 0
    for seed in range(60):
        a, b = noisy(80, 0.3, seed), noisy(80, 0.3, 1000 + seed)
        calls += compare_predictions("wer", a, b, resamples=200, seed=seed)["better"] is not None
    assert calls <= 8


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare_predictions("wer", noisy(3, 0, 0), noisy(4, 0, 0))


def write(folder: Path, texts: dict[str, str]) -> Path:
    path = folder / "mine" / "predictions.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"id": i, "prediction": t, "gt": "cat", "metric": "accuracy"} for i, t in texts.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_folders_are_matched_by_id(tmp_path: Path) -> None:
    keys = [str(i) for i in range(40)]
    a = write(tmp_path / "a", dict.fromkeys(keys, "dog"))
    b = write(tmp_path / "b", dict.fromkeys(reversed(keys), "cat"))
    found = compare_folders(a, b)["mine"]
    assert (found["first"], found["second"], found["better"]) == (0, 100, "second")
    assert "| mine | accuracy | 40 | 0.00 | 100.00 |" in comparison_table({"mine": found}, "a", "b")
    files = compare_folders(a / "mine" / "predictions.jsonl", b / "mine" / "predictions.jsonl")
    assert files["predictions"]["difference"] == 100
    c = write(tmp_path / "c", dict.fromkeys(keys[:30], "cat"))
    with pytest.raises(ValueError, match="10 items are only in"):
        compare_folders(a, c)
    with pytest.raises(ValueError, match="no benchmark in common"):
        compare_folders(a, tmp_path / "none")


def test_classes_are_those_of_both_sides() -> None:
    names = ["a", "b"]
    first = [Prediction(names[i % 2], (names[i % 2],)) for i in range(10)]
    second = [Prediction("a", p.references) for p in first]
    found = compare_predictions("macro_f1", first, second)
    assert found["first"] == 100
    assert found["second"] == pytest.approx(100 * np.mean([2 / 3, 0]), abs=0.01)
