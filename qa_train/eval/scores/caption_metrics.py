"""Caption metrics through pycocoevalcap (the COCO caption evaluation): CIDEr-D, ROUGE-L and METEOR, several references.

Texts are tokenised as published results are: by Stanford's PTB tokenizer, which the package brings and Java runs, lower
case, without punctuation. METEOR 1.5 (Denkowski and Lavie 2014, English only) is the package's jar: it aligns an answer
with each reference by equal words, stems, synonyms and paraphrases, and gives the statistics of the best one; as in
published numbers a corpus has the score of its summed statistics, not the mean over its items. SPICE and FENSE need
models that are downloaded and are left to the tools that bring them: they take ``predictions.jsonl``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from qa_train.eval.scores.normalise import without_tags
from qa_train.eval.scores.prediction import Prediction, answer_of

# Words and function words of answer and reference; matches of content and of function words by each of four ways to
# match, on both sides; chunks; matched words of both sides. In the order in which the jar prints them.
STATISTICS, CHUNKS = 23, 20
# What a match counts by the word itself, its stem, a synonym, a paraphrase.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# The jar's parameters for English: weight of recall, of content words; exponent and weight of the penalty for chunks.
ALPHA, DELTA, BETA, GAMMA = 0.85, 0.75, 0.2, 0.6


def caption_rows(metric: str, predictions: Sequence[Prediction]) -> np.ndarray:
    """Rows of (score of the item x 100, 1) [n, 2]; CIDEr-D weighs n-grams by how many items' references hold them.

    Raises:
        ValueError: no pycocoevalcap, no Java, or a single item, over which CIDEr-D has no weights.
    """
    answers, wanted = tokenised(metric, predictions)
    if metric == "cider":
        from pycocoevalcap.cider.cider import Cider

        if len(predictions) < 2:
            raise ValueError("cider weights words by their rarity among the items: it needs at least two")
        _, scores = Cider().compute_score(dict(enumerate(wanted)), {i: [text] for i, text in enumerate(answers)})
    else:
        from pycocoevalcap.rouge.rouge import Rouge

        scores = [
            Rouge().calc_score([text], group) if text and any(group) else 0.0
            for text, group in zip(answers, wanted, strict=True)
        ]
    return np.stack([100.0 * np.asarray(scores, dtype=float), np.ones(len(predictions))], axis=1)


def tokenised(metric: str, predictions: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Answers and their references as PTB tokens. ValueError: no pycocoevalcap, no Java."""
    if find_spec("pycocoevalcap") is None:
        raise ValueError(f"the metric {metric} needs pycocoevalcap: pip install 'qa-train[captions]'")
    texts = [_one_line(without_tags(answer_of(p))) for p in predictions]
    references = [[_one_line(text) for text in p.references] for p in predictions]
    tokens = iter(ptb_tokenize((*texts, *(text for group in references for text in group))))
    return [next(tokens) for _ in texts], [[next(tokens) for _ in group] for group in references]


def find_java() -> str:
    """The java program. ValueError: there is none."""
    java = shutil.which("java")
    if java is None:
        raise ValueError(
            "caption metrics need Java (any from 8 on, no download) to run the programs behind the published numbers: "
            "install a JRE, or score with metric: chrf"
        )
    return java


def _one_line(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=4)
def ptb_tokenize(texts: tuple[str, ...]) -> list[str]:
    """Each text (one line) as PTB tokens joined by spaces: lower case, without punctuation.

    Raises:
        ValueError: there is no Java, or it failed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    java = find_java()
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(
        [java, "-Xmx512m", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options],
        input="".join(text + "\n" for text in texts), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    lines = done.stdout.split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        raise ValueError(
            f"the PTB tokenizer gave {len(lines)} lines for {len(texts)} texts (exit code {done.returncode}): "
            f"{done.stderr.strip()[-300:]}"
        )
    skipped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split(" ") if word and word not in skipped) for line in lines]


def meteor_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Statistics of each answer with the reference that fits it best, to be summed over items. [n, 23]

    Raises:
        ValueError: texts of another language, no pycocoevalcap, no Java, or the jar did not answer every line with
            statistics.
    """
    if others := sorted({p.language for p in predictions if p.language not in (None, "en")}):
        raise ValueError(f"meteor is for English only, and some items are in {', '.join(others)}: use metric: chrf")
    answers, wanted = tokenised("meteor", predictions)
    # Three bars part the texts of a line.
    lines = tuple(
        " ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*group, answer))])
        for answer, group in zip(answers, wanted, strict=True)
    )
    rows = np.array(_aligned(lines), dtype=float).reshape(len(lines), STATISTICS)
    # An answer that matches as a whole is not a chunk, alone or in a sum.
    whole = (_matches(rows).sum((1, 2)) == rows[:, :2]).all(1) & (rows[:, CHUNKS] == 1)
    rows[whole, CHUNKS] = 0
    return rows


def meteor_points(sums: np.ndarray) -> np.ndarray:
    """[r, 23] summed statistics -> [r] METEOR x 100."""
    words, function_words = sums[:, :2], sums[:, 2:4]
    length = DELTA * (words - function_words) + (1 - DELTA) * function_words
    weighted = np.einsum("rwcs,w,c->rs", _matches(sums), WEIGHTS, [DELTA, 1 - DELTA])
    # Nothing matches nothing: the score is 0.
    precision, recall = (weighted / np.where(length > 0, length, 1)).T
    divisor = (1 - ALPHA) * recall + ALPHA * precision
    mean = precision * recall / np.where(divisor > 0, divisor, 1)
    pieces = 2 * sums[:, CHUNKS] / np.maximum(sums[:, CHUNKS + 1 :].sum(1), 1)
    return 100 * np.maximum(mean * (1 - GAMMA * pieces**BETA), 0)


def _matches(rows: np.ndarray) -> np.ndarray:
    """[r, 4 ways to match, content or function words, answer or reference]."""
    return rows[:, 4:CHUNKS].reshape(-1, len(WEIGHTS), 2, 2)


@lru_cache(maxsize=4)
def _aligned(lines: tuple[str, ...]) -> list[list[float]]:
    """The jar's statistics of each line: one process, which takes seconds to start and ends with its input."""
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    done = subprocess.run(
        [find_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
        input="".join(line + "\n" for line in lines), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    found = done.stdout.splitlines()
    try:
        rows = [[float(number) for number in line.split()] for line in found]
    except ValueError:
        rows = []
    if done.returncode or len(rows) != len(lines) or any(len(row) != STATISTICS for row in rows):
        raise ValueError(
            f"METEOR gave {len(found)} lines for {len(lines)} items, or other things than {STATISTICS} numbers each "
            f"(exit code {done.returncode}): {(done.stderr.strip() or done.stdout.strip())[:300]}"
        )
    return rows
