"""Paired comparison: sees a real difference, keeps its error rate without one, refuses other items."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.eval.benchmarks.benchmark import from_dict
from qa_train.eval.benchmarks.judged import judged_statistics
from qa_train.eval.compare import compare_folders, compare_predictions, comparison_table
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scoring import score_folder
from qa_train.llm.judge import Judge, Verdict
from qa_train.report.scores_page import render_benchmarks


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
    assert "| mine | accuracy | 40 | 0.00 | 100.00 | +100.00 [–] |" in comparison_table({"mine": found}, "a", "b")
    files = compare_folders(a / "mine" / "predictions.jsonl", b / "mine" / "predictions.jsonl")
    assert files["predictions"]["difference"] == 100
    c = write(tmp_path / "c", dict.fromkeys(keys[:30], "cat"))
    with pytest.raises(ValueError, match="10 items are only in"):
        compare_folders(a, c)
    with pytest.raises(ValueError, match=r"none holds no NAME/predictions.jsonl"):
        compare_folders(a, tmp_path / "none")


def test_other_prompts_are_named_beside_the_difference(tmp_path: Path) -> None:
    keys = [str(i) for i in range(9)]
    for name, prompt in (("a", "Say:"), ("b", "Say it:")):
        write(tmp_path / name, dict.fromkeys(keys, "cat"))
        run = {
            "benchmark": {"prompt": prompt, "template": "base"},
            "identity": {"decoding": {"max_new_tokens": len(name)}},
        }
        (tmp_path / name / "mine" / "run.json").write_text(json.dumps(run))
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    assert found["mine"]["differs"] == "prompt"
    assert "may be chance (another prompt)" in comparison_table(found, "a", "b")


def test_other_clips_are_named_beside_the_difference(tmp_path: Path) -> None:
    for name, clips in (("a", "1"), ("b", "2"), ("c", "2"), ("old", None)):
        write(tmp_path / name, {"1": "cat", "2": "cat"})
        run = {"benchmark": {}, "identity": {}} | ({"clips_sha256": clips} if clips else {})
        (tmp_path / name / "mine" / "run.json").write_text(json.dumps(run))
    differs = [compare_folders(tmp_path / "a", tmp_path / other)["mine"].get("differs") for other in ("b", "old")]
    assert differs == ["clips", None]
    assert "differs" not in compare_folders(tmp_path / "b", tmp_path / "c")["mine"]


def test_options_in_another_order_are_named_beside_the_difference(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, {"1": "cat", "2": "cat"})
        run = {"benchmark": {"shuffle_options": 7 if name == "b" else None}, "identity": {}}
        (tmp_path / name / "mine" / "run.json").write_text(json.dumps(run))
    assert compare_folders(tmp_path / "a", tmp_path / "b")["mine"]["differs"] == "shuffle options"
    assert "differs" not in compare_folders(tmp_path / "a", tmp_path / "c")["mine"]
    path = tmp_path / "c" / "mine" / "predictions.jsonl"
    # One item, whatever differs in it.
    path.write_text(path.read_text().replace('"id": "2"', '"id": "2", "prompt": "?", "choices": ["dog", "cat"]'))
    assert compare_folders(tmp_path / "a", tmp_path / "c")["mine"]["differs"] == "prompt or order of options in 1 items"


def test_answers_that_were_changed_are_not_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"1": "cat"})
    run = {"benchmark": {}, "identity": {}, "predictions_sha256": "0" * 64}
    (tmp_path / "b" / "mine" / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="was changed after the model wrote it"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    # Nor are those of which nobody can tell.
    for text in ("{", "{}", "[]"):
        (tmp_path / "b" / "mine" / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json is damaged .*: run the prediction step again"):
            compare_folders(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "mine" / "run.json").unlink()
    (tmp_path / "b" / "mine" / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"scores\.json is damaged .*: run step=score again"):
        compare_folders(tmp_path / "a", tmp_path / "b")


def test_items_without_an_answer_and_many_tests_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(5):
            write(tmp_path / name, {"1": "cat", "2": "dog"})
            (tmp_path / name / "mine").rename(tmp_path / name / f"mine{i}")
    path = tmp_path / "b" / "mine3" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"id": "2"', '"id": "2", "error": "no such file"'))
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    assert [r.get("failed") for r in found.values()] == [None, None, None, [0, 1], None]
    table = comparison_table(found, "a", "b")
    assert table.count("2 (0 and 1 unanswered)") == 1
    assert "Of 5 such comparisons 0.2 have p < 0.05 by chance alone." in table


def test_bleu_over_languages_with_other_tokenizers_is_refused() -> None:
    items = [Prediction("a b c d", ("a b c d",), "en"), Prediction("一二三四", ("一二三四",), "zh")]
    with pytest.raises(ValueError, match="BLEU needs one tokenizer for all references, and they are in en, zh"):
        compare_predictions("bleu", items, items)


def test_classes_are_those_of_both_sides() -> None:
    names = ["a", "b"]
    first = [Prediction(names[i % 2], (names[i % 2],)) for i in range(10)]
    second = [Prediction("a", p.references) for p in first]
    found = compare_predictions("macro_f1", first, second)
    assert found["first"] == 100
    assert found["second"] == pytest.approx(100 * np.mean([2 / 3, 0]), abs=0.01)


class Scripted(Judge):
    """Says the answer itself: "3" is rated 3, "?" is not rated."""

    def ask(self, prompts: Sequence[str]) -> list[Verdict]:
        return [Verdict(re.findall(r"\[Response\]: (.*)\n", prompt)[-1]) for prompt in prompts]


def judged_folder(folder: Path, answers: Sequence[str], judge: str = "stub") -> dict[str, Any]:
    """An evaluation of one judged benchmark whose answers are the scores they get."""
    here = folder / "opinions"
    here.mkdir(parents=True)
    rows = [
        {"id": str(i), "prediction": text, "gt": "", "metric": "voicebench_open", "question": f"q {i}", "prompt": "",
         "audio": "", "duration_s": 3.0 + 4 * (i % 2), "group": "abc"[i % 3]}
        for i, text in enumerate(answers)
    ]  # fmt: skip
    (here / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = {
        "name": "opinions",
        "metric": "voicebench_open",
        "reader": "voicebench",
        "path": "x",
        "group_by": "group",
    }
    run = {"benchmark": benchmark, "identity": {}, "n": len(rows), "answered_by": "x", "data_root": ""}
    (here / "run.json").write_text(json.dumps(run))
    return score_folder(here, Scripted(judge, folder / "cache.jsonl"))


def test_judged_benchmarks_are_compared_by_the_scores_of_their_items(tmp_path: Path) -> None:
    draw = random.Random(0)
    low = [str(draw.choice([1, 2, 3])) for _ in range(80)]
    high = [str(min(5, int(text) + draw.choice([0, 1, 2]))) for text in low]
    high[7] = "?"
    judged_folder(tmp_path / "a", low)
    judged_folder(tmp_path / "b", high)
    found = compare_folders(tmp_path / "a", tmp_path / "b")["opinions"]
    kept = [i for i in range(80) if i != 7]
    means = [np.mean([int(side[i]) for i in kept]) for side in (low, high)]
    assert (found["n"], found["left_out"], found["judge"]) == (79, 1, "stub")
    assert [found["first"], found["second"]] == pytest.approx(means, abs=0.001)
    assert found["ci_low"] > 0
    assert found["better"] == "second"
    assert "79 (1 unrated, skipped)" in comparison_table({"opinions": found}, "a", "b")
    same = compare_folders(tmp_path / "a", tmp_path / "a")["opinions"]
    assert (same["difference"], same["better"]) == (0, None)


def test_ratings_of_other_judges_and_of_other_answers_are_not_compared(tmp_path: Path) -> None:
    judged_folder(tmp_path / "a", ["1", "2"])
    judged_folder(tmp_path / "b", ["2", "3"], judge="another")
    with pytest.raises(ValueError, match="different judges \\(judge 'stub' and 'another'\\)"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    judged_folder(tmp_path / "c", ["2", "3"])
    path = tmp_path / "c" / "opinions" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"prediction": "2"', '"prediction": "5"'))
    with pytest.raises(ValueError, match="rated other answers than are there now"):
        compare_folders(tmp_path / "a", tmp_path / "c")
    (tmp_path / "b" / "opinions" / "judgements.jsonl").unlink()
    assert "no judge has rated" in compare_folders(tmp_path / "a", tmp_path / "b")["opinions"]["why"]


def test_judged_benchmarks_have_breakdowns_and_worst_cases(tmp_path: Path) -> None:
    result = judged_folder(tmp_path, ["5", "4", "?", "1", "5", "<3"])
    assert {k: (v["value"], v["n"]) for k, v in result["by_length"].items()} == {
        "0-5 s": (5.0, 3),
        "5-10 s": (2.6667, 3),
    }
    assert result["by_group"]["c"] == {"value": 3.0, "n": 2, "ci_low": 3.0, "ci_high": 3.0}
    assert (result["value"], result["strict"], result["judge_unread"]) == (3.6, 3.0, 1)
    assert [(case["id"], case["judge"]) for case in result["worst"]] == [
        ("2", ["unread: '?'"]), ("3", ["1"]), ("5", ["<3"]), ("1", ["4"])
    ]  # fmt: skip
    page = render_benchmarks({"opinions": result | {"benchmark": from_dict(result["benchmark"]).as_dict()}})
    assert "<dt>judge</dt><dd>&lt;3</dd>" in page
    assert '<p class="prompt">q 2</p>' in page


def test_airbench_chat_weighs_its_categories_equally() -> None:
    tasks = ["speech_QA"] * 6 + ["sound_QA", "music_QA", "speech_and_sound_QA", "speech_and_music_QA"]
    rows, value = judged_statistics("airbench_chat", [{"task_name": t} for t in tasks], [9] * 6 + [5, 6, 1, 3])
    assert value(rows.sum(0, keepdims=True))[0] == pytest.approx((9 + 5 + 6 + (1 + 3) / 2) / 4)
    # A resample without music or one of the mixed ones averages what is there.
    assert value(rows[[0, 6, 8]].sum(0, keepdims=True))[0] == pytest.approx((9 + 5 + 1) / 3)


def foundation_folder(folder: Path, answers: Sequence[str]) -> dict[str, Any]:
    """AIR-Bench Foundation with one large and one small task; the right option is always A."""
    here = folder / "airbench_foundation"
    here.mkdir(parents=True)
    rows = [
        {"id": str(i), "prediction": answer, "gt": "dog", "choices": ["dog", "cat"], "metric": "choice", "prompt": "",
         "audio": "", "task_name": "large" if i < 90 else "small", "dataset_name": "d"}
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    (here / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = {"name": "airbench_foundation", "metric": "choice", "reader": "airbench_foundation", "path": "x"}
    run = {"benchmark": benchmark, "identity": {}, "n": len(rows), "answered_by": "x", "data_root": ""}
    (here / "run.json").write_text(json.dumps(run))
    return score_folder(here)


def test_airbench_foundation_is_compared_by_the_number_of_its_report(tmp_path: Path) -> None:
    one = foundation_folder(tmp_path / "a", ["A"] * 90 + ["B"] * 10)
    other = foundation_folder(tmp_path / "b", ["A"] * 60 + ["B"] * 30 + ["A"] * 10)
    found = compare_folders(tmp_path / "a", tmp_path / "b")["airbench_foundation"]
    assert (one["value"], other["value"]) == (50.0, 83.33)
    assert (found["first"], found["second"]) == (50.0, pytest.approx(83.333, abs=1e-3))
    assert found["better"] == "second"
    assert one["groups"]["small"]["ci_high"] == pytest.approx(27.75, abs=0.01)
    # Ten of 100 items are easily missed by a draw: a task without one is left out, it is not 0.
    assert foundation_folder(tmp_path / "c", ["A"] * 91)["ci_low"] == 100.0


def test_a_reference_system_that_was_changed_is_refused(tmp_path: Path) -> None:
    judged_folder(tmp_path / "a", ["3", "4"])
    judged_folder(tmp_path / "b", ["5", "5"])
    run = tmp_path / "b" / "opinions" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"predictions_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"b/opinions/predictions.jsonl was changed after the model wrote it"):
        score_folder(tmp_path / "a" / "opinions", Scripted("stub", tmp_path / "c"), tmp_path / "b" / "opinions")
