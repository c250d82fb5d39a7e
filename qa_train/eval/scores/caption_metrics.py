"""Caption metrics through pycocoevalcap (the COCO caption evaluation): CIDEr-D and ROUGE-L, several references each.

Texts are tokenised as published results are: by Stanford's PTB tokenizer, which the package brings and Java runs, lower
case, without punctuation. METEOR is in ``meteor.py``. SPICE and FENSE need models that are downloaded and are left to
the tools that bring them: they take ``predictions.jsonl``.
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


def caption_rows(metric: str, predictions: Sequence[Prediction]) -> np.ndarray:
    """Rows of (score of the item x 100, 1) [n, 2]; CIDEr-D weighs n-grams by how many items' references hold them.

    Raises:
        ValueError: no pycocoevalcap, no Java, or a single item, over which CIDEr-D has no weights.
    """
    answers, wanted = tokenised(metric, predictions)
    if metric == "cider":
        from pycocoevalcap.cider.cider import Cider

        if len(predictions) < 2:
            raise ValueError("cider weighs words by how rare they are among the items: it needs at least two")
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
            "caption metrics need Java (any from 8 on, no download) for the programs that published numbers use: "
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
