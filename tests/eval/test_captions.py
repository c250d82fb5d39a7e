"""Caption metrics beside the package's own pipeline, and beside a plain CIDEr-D by the formula."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import numpy as np
import pytest

from qa_train.eval.captions import caption_rows, ptb_tokenize
from qa_train.eval.compare import compare_predictions
from qa_train.eval.prediction import Prediction
from qa_train.eval.scores import score
from qa_train.eval.scoring import breakdown

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


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="need Java"):
        score("rouge_l", captions(3, 2, 1))
    monkeypatch.setattr("qa_train.eval.captions.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'qa-train\[captions\]'"):
        score("cider", captions(3, 2, 1))
