"""Caption metrics beside the package's own pipeline, and beside plain ones by their formulas."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.compare import compare_predictions
from qa_train.eval.scores.caption_metrics import (
    _aligned,
    caption_rows,
    meteor_points,
    meteor_rows,
    ptb_tokenize,
    tokenised,
)
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import score
from qa_train.eval.scoring import breakdown, score_rows

pytest.importorskip("pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs Java")

WORDS = "a dog barks loudly while the rain falls on roof of car; birds' song, isn't it? people talk (far away)".split()


def captions(seed: int, count: int, references: int) -> list[Prediction]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(3, 12))) + rng.choice(["", ".", "!"])

    made = []
    for _ in range(count):
        wanted = tuple(text() for _ in range(references))
        made.append(Prediction(str(rng.choice([text(), wanted[0], wanted[-1][: len(wanted[-1]) // 2]])), wanted))
    return made


@needs_java
def test_tokens_and_scores_equal_the_packages_own_pipeline() -> None:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    items = captions(0, 60, 5)
    answers = PTBTokenizer().tokenize({i: [{"caption": p.text}] for i, p in enumerate(items)})
    wanted = PTBTokenizer().tokenize({i: [{"caption": r} for r in p.references] for i, p in enumerate(items)})
    assert ptb_tokenize(tuple(p.text for p in items)) == [answers[i][0] for i in range(60)]
    value, each = Cider().compute_score(wanted, answers)
    np.testing.assert_allclose(caption_rows("cider", items)[:, 0], 100 * each)
    assert score("cider", items).value == pytest.approx(100 * value)
    value, each = Rouge().compute_score(wanted, answers)
    np.testing.assert_allclose(caption_rows("rouge_l", items)[:, 0], 100 * np.asarray(each))


def plain_cider_d(answers: list[str], wanted: list[list[str]]) -> list[float]:
    """CIDEr-D (arXiv 1411.5726) by its formula, one n-gram at a time; the Gaussian of lengths as in the COCO code."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def rarity(gram: tuple[str, ...]) -> float:
        holding = sum(any(gram in grams(r, len(gram)) for r in group) for group in wanted)
        return math.log(len(wanted)) - math.log(max(1, holding))

    def bigrams(text: str) -> int:
        return max(0, len(text.split()) - 1)

    scores = []
    for answer, group in zip(answers, wanted, strict=True):
        total = 0.0
        for n in range(1, 5):
            for reference in group:
                said = {g: c * rarity(g) for g, c in grams(answer, n).items()}
                meant = {g: c * rarity(g) for g, c in grams(reference, n).items()}
                norms = math.hypot(*said.values()) * math.hypot(*meant.values())
                common = sum(min(v, meant.get(g, 0.0)) * meant.get(g, 0.0) for g, v in said.items())
                penalty = math.exp(-((bigrams(answer) - bigrams(reference)) ** 2) / (2 * 6.0**2))
                total += penalty * common / norms if norms else 0.0
        scores.append(10 * total / (4 * len(group)))
    return scores


@needs_java
@pytest.mark.slow
def test_cider_equals_the_formula() -> None:
    items = captions(1, 12, 3)
    answers = ptb_tokenize(tuple(p.text for p in items))
    wanted = [ptb_tokenize(p.references) for p in items]
    np.testing.assert_allclose(caption_rows("cider", items)[:, 0], 100 * np.array(plain_cider_d(answers, wanted)))


@needs_java
def test_odd_answers_stay_in_the_denominator_and_in_comparisons() -> None:
    items = captions(2, 10, 5)
    odd = [Prediction("", items[0].references), Prediction("x", items[1].references, error="no clip"), *items[2:]]
    found = score("cider", odd)
    assert (found.n, found.empty, found.failed) == (10, 1, 1)
    assert caption_rows("cider", odd)[:2, 0].tolist() == [0.0, 0.0]
    compared = compare_predictions("cider", items, odd)
    assert compared["first"] == pytest.approx(score("cider", items).value, abs=1e-3)
    assert compared["second"] == pytest.approx(found.value, abs=1e-3)


@needs_java
def test_classes_share_the_weights_of_all_items() -> None:
    items = captions(4, 8, 3)
    rows = [{"prediction": p.text, "gt": list(p.references), "language": "ab"[i % 2]} for i, p in enumerate(items)]
    found = breakdown("cider", rows, lambda row: row["language"])
    each = caption_rows("cider", items)[:, 0]
    assert [found[name]["value"] for name in "ab"] == [round(each[k::2].mean(), 2) for k in (0, 1)]
    assert found["a"]["n"] == 4


# Words and what METEOR takes for nearly the same: stems, synonyms, paraphrases.
NEARLY = {
    "dog": "hound", "barks": "barking", "car": "automobile", "loudly": "loud", "falls": "falling", "people": "persons",
    "speak": "talk", "in front of": "ahead of", "quickly": "fast", "is": "was", "birds": "bird", "engine": "engines",
    "starts": "begins", "big": "large", "a lot of": "many",
}  # fmt: skip
ODD = (
    "", " ", "|||", "a ||| dog ||| barks", "a |||| dog", "dog\nbarks\r\nloudly", "SCORE ||| a", "dog " * 250, "...",
    "le chien aboie \u00e0 midi", "\u72d7\u5728\u53eb", "a\u2028dog\x85barks", "<|en|>the dog", "EVAL", "\U0001f415 it",
)  # fmt: skip


def meanings(seed: int, count: int) -> list[Prediction]:
    """Answers of five references each: one of them, parts of one with words that are nearly the same, and odd ones."""
    rng = np.random.default_rng(seed)
    words = [*NEARLY, *NEARLY.values(), "the", "a", "and", "rain", "on", "roof", "don't", "3"]
    made = []
    for i in range(count):
        wanted = [[str(w) for w in rng.choice(words, rng.integers(1, 14))] for _ in range(5)]
        part = [NEARLY.get(w, w) if rng.random() < 0.5 else w for w in wanted[2] if rng.random() < 0.9]
        texts = tuple(" ".join(group) + rng.choice(["", "."]) for group in wanted)
        answer = rng.choice([" ".join(part), " ".join([*part, "and", "more"]), texts[1]])
        made.append(Prediction(ODD[i] if i < len(ODD) else str(answer), texts))
    return made


@pytest.mark.slow
@needs_java
def test_meteor_equals_the_packages_own_program() -> None:
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    items = meanings(5, 160)
    # Its reader takes a line at a time: line breaks of an answer are spaces for both, and tags are no words.
    said = [" ".join(p.text.removeprefix("<|en|>").split()) for p in items]
    answers = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(said)})
    wanted = PTBTokenizer().tokenize({i: [{"caption": r} for r in p.references] for i, p in enumerate(items)})
    whole, each = Meteor().compute_score(wanted, answers)
    rows = meteor_rows(items)
    assert rows.shape == (160, 23)
    np.testing.assert_allclose(meteor_points(rows), 100 * np.array(each), atol=1e-9)
    assert score("meteor", items).value == pytest.approx(100 * whole)
    # The cases are worth something: matches of all four kinds, perfect ones, none; the mean is another number.
    assert (rows[:, 4:20].reshape(-1, 4, 4).sum((0, 2)) > 10).all()
    assert {0.0, 1.0} <= set(each)
    assert abs(float(np.mean(each)) - whole) > 0.01


@pytest.mark.slow
@needs_java
def test_meteor_by_hand() -> None:
    # The function words of the jar's list weigh 1/4, other words 3/4.
    items = [
        Prediction("a dog barks", ("a dog barks",)),
        # One of two content words, and the function word: P = R = 1 / 1.75 of weights; 2 words in one chunk.
        Prediction("a dog sings", ("a dog barks", "rain")),
        # Two chunks of three words, all matched: 1 - 0.6 * (2/3) ** 0.2.
        Prediction("barks a dog", ("a dog barks",)),
        # A stem counts 0.6: (3 * 0.6 + 1) / (3 + 1).
        Prediction("the barking", ("the barks",)),
        Prediction("rain", ("a dog barks",)),
        Prediction("", ("a dog barks",)),
    ]
    pieces = 1 - 0.6 * 0.5**0.2
    shares = [1, 1 / 1.75 * pieces, 1 - 0.6 * (2 / 3) ** 0.2, 0.7, 0, 0]
    assert meteor_points(meteor_rows(items)) == pytest.approx(100 * np.array(shares))


@pytest.mark.slow
@needs_java
def test_meteor_counts_odd_answers_and_breaks_down() -> None:
    items = meanings(6, 24)
    items[23] = Prediction("the dog barks", items[23].references, error="no clip")
    found = score("meteor", items)
    # "" and " " are empty.
    assert (found.n, found.empty, found.failed) == (24, 2, 1)
    each = meteor_rows(items)
    assert meteor_points(each)[[0, 1, 23]].tolist() == [0, 0, 0]
    rows = [{"id": i, "prediction": p.text, "error": p.error, "gt": list(p.references), "group": "ab"[i % 2]}
            for i, p in enumerate(items)]  # fmt: skip
    started = _aligned.cache_info().misses
    benchmark = Benchmark("own", "cider", "jsonl", "own.jsonl", also=["meteor"])
    beside = score_rows(benchmark, rows)[0]["by_metric"]
    assert [*beside] == ["cider", "meteor"]
    assert beside["meteor"] == {k: found.as_dict()[k] for k in ("value", "ci_low", "ci_high", "n")}
    classes = breakdown("meteor", rows, lambda row: row["group"])
    assert _aligned.cache_info().misses == started
    assert [classes[name]["value"] for name in "ab"] == [
        round(float(meteor_points(each[k::2].sum(0, keepdims=True))[0]), 2) for k in (0, 1)
    ]
    better = [Prediction(p.references[0], p.references) for p in items]
    compared = compare_predictions("meteor", items, better)
    assert (compared["first"], compared["second"]) == (round(found.value, 3), 100)
    assert compared["better"] == "second"


@needs_java
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("exit 3", r"gave 0 lines for 2 items.*exit code 3.*out of memory"),
        ("exec head -n 1", "gave 1 lines for 2 items"),
        ("exec cat", "other things than 23 numbers"),
        ("exec sed s/.*/1/", "other things than 23 numbers"),
    ],
)
def test_what_meteors_program_gets_wrong_is_no_score(
    reply: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Items of each case differ: what was aligned before is kept.
    items = [Prediction(f"a dog {reply}", ("a dog",)), Prediction("", ("rain",))]
    tokenised("meteor", items)
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho out of memory >&2\n{reply}\n")
    java.chmod(0o755)
    monkeypatch.setattr("qa_train.eval.scores.caption_metrics.find_java", lambda: str(java))
    with pytest.raises(ValueError, match=message):
        meteor_rows(items)


@needs_java
def test_a_missing_jar_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.METEOR_JAR", "meteor-0.jar")
    with pytest.raises(ValueError, match=r"gave 0 lines for 1 items.*meteor-0\.jar"):
        score("meteor", [Prediction("a lost jar", ("a dog",))])


def test_meteor_is_for_english() -> None:
    with pytest.raises(ValueError, match="items are in fr, zh: use metric: chrf"):
        score("meteor", [Prediction("a", ("a",), language=code) for code in ("zh", "en", "fr")])


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="need Java"):
        score("rouge_l", captions(3, 2, 1))
    with pytest.raises(ValueError, match="need Java"):
        score("meteor", captions(3, 2, 1))
    monkeypatch.setattr("qa_train.eval.scores.caption_metrics.find_spec", lambda name: None)
    for metric in ("cider", "meteor"):
        with pytest.raises(ValueError, match=rf"the metric {metric} needs .* pip install 'qa-train\[captions\]'"):
            score(metric, captions(3, 2, 1))
