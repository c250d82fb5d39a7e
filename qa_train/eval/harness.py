"""Evaluation from end to end: ask, write the predictions, score them per source, probe.

1. Read the questions (a JSONL file, or records of shards with the data layer's own prompts).
2. Answer those that the journal does not hold yet.
3. ``predictions.jsonl`` in the order of the questions, ``scores.json`` per source.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qa_train.eval.answers import (
    Journal,
    Outcome,
    answer_questions,
    listening_probe,
    predictions,
    write_atomically,
)
from qa_train.eval.questions import UNSCORED, Question, read_questions
from qa_train.eval.scores import LOWER_IS_BETTER, score
from qa_train.infer.generate import Decoding, Generator
from qa_train.model import load_model
from qa_train.model.weights import weights_digest
from qa_train.progress import progress as progress_bar

log = logging.getLogger(__name__)


def evaluate_file(
    checkpoint: str,
    data: Path | str,
    out_dir: Path | str,
    *,
    decoding: Decoding | None = None,
    batch_size: int = 32,
    token_budget: int = 16384,
    device: str = "cpu",
    probe: int = 32,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a JSONL file (format: ``qa_train.eval.questions``).

    Writes in ``out_dir``: ``predictions.jsonl`` (every line of the data, in order, with
    ``prediction``, ``truncated`` and, where there is none, ``error``), ``scores.json`` (returned),
    and ``journal.jsonl``, from which a killed evaluation of the same weights, data and decoding
    continues. ``probe``: how many questions to ask again with silence (0: none).

    Raises:
        ValueError: unreadable checkpoint or data, with the line at fault.
    """
    data, out_dir, decoding = Path(data), Path(out_dir), decoding or Decoding()
    questions = read_questions(data)
    model, processor = load_model(checkpoint, device=device)
    identity = {
        "weights": weights_digest(model),
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "decoding": asdict(decoding),
    }
    journal = Journal(out_dir / "journal.jsonl", identity)
    if journal.outcomes:
        log.info("%d of %d answers are already in %s", len(journal.outcomes), len(questions), journal.path)
    generator = Generator(model, processor, batch_size=batch_size, token_budget=token_budget)
    with progress_bar(
        total=len(questions), initial=len(journal.outcomes), desc="answers", unit="questions", disable=not progress
    ) as bar:

        def keep(new: dict[int, Outcome]) -> None:
            journal.add(new)
            bar.update(len(new))

        outcomes = answer_questions(generator, questions, decoding, known=journal.outcomes, on_answers=keep)
    write_predictions(out_dir / "predictions.jsonl", data, outcomes)
    result = {
        "checkpoint": str(checkpoint),
        **identity,
        "sources": score_sources(questions, outcomes),
        "probe": _probe(generator, questions, outcomes, decoding, probe),
    }
    write_atomically(out_dir / "scores.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _probe(
    generator: Generator, questions: Sequence[Question], outcomes: Sequence[Outcome], decoding: Decoding, count: int
) -> dict[str, Any] | None:
    """The silence probe's figures, with ``other_clip`` and ``listens`` of ``answers.listening_probe`` beside."""
    found = listening_probe(generator, questions, outcomes, decoding, count)
    if found is None:
        return None
    return {**found["silence"], "other_clip": found["other_clip"], "listens": found["listens"]}


def write_predictions(path: Path, data: Path, outcomes: Sequence[Outcome]) -> None:
    """The lines of ``data`` with what the model said, in the same order."""
    lines = [line for line in data.read_text(encoding="utf-8").split("\n") if line.strip()]
    rows = []
    for line, outcome in zip(lines, outcomes, strict=True):
        row = json.loads(line) | {"prediction": outcome.text, "truncated": outcome.truncated}
        rows.append(row | ({"error": outcome.error} if outcome.error is not None else {}))
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def score_sources(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """{source: score with counts}. A source with several metrics or languages gets one entry for each."""
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for i, question in enumerate(questions):
        if question.metric != UNSCORED:
            # BLEU tokenises the corpus by language; the other metrics take it item by item.
            language = question.language if question.metric == "bleu" else None
            groups.setdefault((question.source, question.metric, language), []).append(i)
    names = [source for source, _, _ in groups]
    scores = {}
    for (source, metric, language), members in groups.items():
        found = score(metric, predictions([questions[i] for i in members], [outcomes[i] for i in members]))
        name = source if names.count(source) == 1 else "/".join(filter(None, (source, metric, language)))
        scores[name] = found.as_dict() | {"higher_is_better": metric not in LOWER_IS_BETTER}
    return scores
