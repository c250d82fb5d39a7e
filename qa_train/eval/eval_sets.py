"""Evaluation straight from shards: held-out records, asked as training would ask them.

Used by the quickstart after each stage and by training for its own held-out curves. Records are
chosen by a hash of their key and worded by epoch 0 of the prompt bank, so that every checkpoint
is asked the same questions in the same words.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qa_train.config import EvalSetConfig, StorageConfig
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio
from qa_train.data.clips import Clip, ClipReader, SkipSample
from qa_train.data.shards.catalog import shard_paths
from qa_train.data.shards.index import load_index
from qa_train.data.text.counting import UNQUALIFIED
from qa_train.data.text.prompts import PromptBank, Unqualified
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.eval.answers import Limits, Outcome, answer, predictions
from qa_train.eval.questions import Question, accepted_answers, into_language, part_text, split_answer, task_metric
from qa_train.eval.scores.normalise import transcript_words
from qa_train.eval.scores.prediction import answer_of
from qa_train.eval.scores.task_metrics import (
    Prediction,
    check_references,
    is_metric,
    label_contained,
    label_matches,
    score,
    unknown_metric,
)
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.generate import Decoding, Generator, prompt_tokens
from qa_train.utils import draws

log = logging.getLogger(__name__)

# No single number is theirs: one is chosen by name.
_NO_DEFAULT = {"transcribe_translate": "first_line_wer (of the transcript) or rest_bleu (of the translation)"}


def evaluate_shards(
    model: Any,
    processor: Any,
    sets: Mapping[str, EvalSetConfig],
    *,
    decoding: Decoding | None = None,
    keep_samples: int = 0,
    clips: EncodedClips | None = None,
    clips_dir: Path | str | None = None,
) -> dict[str, dict[str, Any]]:
    """Answer and score each set: ``{set name: result}``.

    A result holds the fields of ``scores.Score`` (metric, value, ci_low, ci_high, n, empty,
    truncated, failed), ``seconds``, and
    with ``keep_samples`` > 0 that many ``samples`` (key, task, prompt, reference, answer, right and,
    with ``clips_dir``, the ``audio`` path of an Ogg Opus copy). A record may
    carry ``answers`` to its question (all accepted), or in a chat ``answer`` (the part of the reply that must be
    right), and ``choices`` (all labels of its question).

    ``clips``: encoder states kept from one call to the next, so that a frozen encoder encodes each held-out clip once
    over all stages; by default they are shared by the sets of this call.

    Raises:
        ValueError: a set without any qualifying record.
    """
    bank, limits = PromptBank.load(), Limits(64, 32768)
    decoding = decoding or Decoding(max_new_tokens=96)
    generator = Generator(model, processor, clips=clips)
    results = {}
    for name, chosen in sets.items():
        started = time.perf_counter()
        questions = record_questions(name, chosen, bank)
        outcomes = answer(questions, generator, decoding, limits=limits)
        found = predictions(questions, outcomes)
        result: dict[str, Any] = score(questions[0].metric, found).as_dict()
        if keep_samples:
            folder = Path(clips_dir) if clips_dir is not None else None
            picks = np.unique(np.linspace(0, len(questions) - 1, keep_samples).round().astype(int))
            result["samples"] = [_sample(i, questions[i], outcomes[i], found[i], folder) for i in picks]
        result["seconds"] = round(time.perf_counter() - started, 2)
        results[name] = result
        log.info("%s: %s %.1f (n = %d)", name, result["metric"], result["value"], result["n"])
    return results


def record_questions(
    set_name: str, chosen: EvalSetConfig, bank: PromptBank, storage: StorageConfig | None = None
) -> list[Question]:
    """The questions of a set: its qualifying records, at most ``limit`` of them, in order of a hash of the key.

    ``chosen``: one of ``evaluation.sets``; without ``template`` it is asked in the base format. ``storage``: how remote
    shards are read.

    Raises:
        ValueError: no record qualifies, an unknown metric, or a record without a reference.
    """
    if chosen.metric is None and chosen.task in _NO_DEFAULT:
        raise ValueError(
            f"evaluation set {set_name!r}: task {chosen.task} has no default metric: give metric: "
            f"{_NO_DEFAULT[chosen.task]}, or two sets with one each"
        )
    metric = chosen.metric or task_metric(chosen.task)
    if not is_metric(metric):
        raise ValueError(f"evaluation set {set_name!r}: {unknown_metric(metric)}")
    # Waveforms are read here; the number of mel bins is the generator's business.
    reader = ClipReader(num_mel_bins=0, storage=storage)
    found: list[tuple[bytes, Question]] = []
    skipped: Counter[str] = Counter()
    for path in shard_paths(chosen.shards, storage):
        for row in load_index(path, storage).table.to_pylist():
            record = json.loads(row["meta"])
            reason = _unwanted(record, chosen)
            if reason is None:
                try:
                    sample = bank.sample(record, chosen.task, chosen.template or "base", row["key"], 0, 0)
                except Unqualified:
                    reason = UNQUALIFIED
                else:
                    clips = clips_of(path, row)
                    order = draws.digest(row["key"], 64)
                    question = _question(set_name, chosen, metric, sample, record, partial(_load, reader, clips))
                    tokens = prompt_tokens(question.sample, sum(clip.num_tokens for clip in clips))
                    found.append((order, replace(question, tokens=tokens)))
                    continue
            skipped[reason] += 1
    if not found:
        raise ValueError(
            f"evaluation set {set_name!r}: no record of {list(chosen.shards)} can be asked "
            f"({dict(skipped) or 'the shards are empty'}): check its shards, task and where"
        )
    _one_tokenizer(set_name, metric, [question for _, question in found])
    try:
        check_references(metric, [question.references for _, question in found])
    except ValueError as error:
        raise ValueError(f"evaluation set {set_name!r}: {error}") from error
    found.sort(key=lambda entry: (entry[0], entry[1].sample.key))
    return [question for _, question in found[: chosen.limit]]


def _one_tokenizer(name: str, metric: str, questions: Sequence[Question]) -> None:
    """ValueError now, not after the first step, where BLEU cannot be computed over the languages of a set."""
    languages = sorted({question.language or "unknown" for question in questions})
    if metric == "bleu" and len(languages) > 1 and {"zh", "ja"} & {*languages}:
        raise ValueError(
            f"evaluation set {name!r}: its answers are in {', '.join(languages)}, which BLEU tokenises differently: "
            "make one set of each with where: {language: ...}"
        )


def _unwanted(record: dict[str, Any], chosen: EvalSetConfig) -> str | None:
    """Why a record is not part of the set, or None."""
    for name, wanted in chosen.where.items():
        if record.get(name) not in (wanted if isinstance(wanted, list) else [wanted]):
            return "filtered by where"
    if len((record.get("text") or "").split()) < chosen.min_words:
        return "fewer than min_words"
    return None


def clips_of(path: str, row: dict[str, Any]) -> list[Clip]:
    """The clips of a row of the index of the shard at ``path``."""
    key = row["key"]
    columns = zip(row["names"], row["offsets"], row["sizes"], row["crc32c"], row["num_samples"], strict=True)
    return [Clip(f"{key}.{name}", path, f"{key}.{name}", *place) for name, *place in columns]


def _question(
    set_name: str, chosen: EvalSetConfig, metric: str, sample: Sample, record: dict[str, Any], load: Any
) -> Question:
    messages, answer = split_answer(sample.messages)
    if sample.chosen is not None:
        answer = "".join(part.text for part in sample.chosen)
    references = _references(record, chosen.task, metric, answer)
    if not references:
        raise ValueError(f"{sample.key}: no reference answer; end its messages with an assistant turn")
    if chosen.prompt is not None:
        clips = tuple(p for m in messages for p in m.content if isinstance(p, AudioPart))
        text = chosen.prompt.replace("{language}", record.get("language") or "unknown")
        messages = (Message("user", (*clips, TextPart(text, trusted=True))),)
    asked = Sample(sample.key, messages, sample.num_clips, sample.task, sample.language, sample.template)
    language = _reference_language(chosen.task, record, sample) if metric in ("bleu", "chrf") else sample.language
    choices = tuple(record.get("choices") or ())
    said = str(record.get("text") or "")
    return Question(asked, load, references, metric, set_name, language, choices, transcript=said)


def _references(record: dict[str, Any], task: str, metric: str, answer: str | None) -> tuple[str, ...]:
    """The task's own answer and what the record accepts as well; of a chat, what its reply must hold."""
    if task == "chat" and (said := record.get("answers") or [record[name] for name in ("answer",) if name in record]):
        return tuple(said)
    return accepted_answers(record, metric, answer)


def _reference_language(task: str, record: dict[str, Any], sample: Sample) -> str | None:
    """Of a translation or caption: the one translated into; of a chat, whose answer may be in any, the record's own."""
    if task == "chat":
        return record.get("language") or sample.language
    return into_language(task) or "en"


def read_wave(reader: ClipReader, clip: Clip) -> np.ndarray:
    """A clip of a shard, float32 [n] at 16 kHz. BadAudio: it cannot be read, whatever the reason."""
    try:
        return reader.wave(clip)
    except SkipSample as error:
        raise BadAudio(str(error)) from error


def _load(reader: ClipReader, clips: Sequence[Clip]) -> tuple[np.ndarray, ...]:
    return tuple(read_wave(reader, clip) for clip in clips)


def is_right(metric: str, prediction: Prediction) -> bool | None:
    """Whether one answer is right; None where that is not a yes-or-no question (BLEU)."""
    if metric in ("wer", "cer"):
        answer, wanted = (
            transcript_words(t, prediction.language) for t in (answer_of(prediction), prediction.references[0])
        )
        return answer == wanted
    return {"accuracy": label_matches, "contains": label_contained}.get(metric, lambda p: None)(prediction)


def _sample(
    number: int, question: Question, outcome: Outcome, prediction: Prediction, clips_dir: Path | None
) -> dict[str, Any]:
    """One answer for the report, with a copy of its clip."""
    row: dict[str, Any] = {
        "key": question.sample.key,
        "task": question.source,
        "prompt": part_text(question.sample.messages[-1]),
        "reference": question.references[0],
        "answer": outcome.text,
        "right": is_right(question.metric, prediction),
    }
    if question.transcript:
        row["transcript"] = question.transcript
    if clips_dir is not None and question.sample.num_clips and outcome.error is None:
        row["audio"] = str(keep_clip(question, number, clips_dir))
    return row


def keep_clip(question: Question, number: int, folder: Path) -> Path:
    """Write a question's clips, one after the other, as one Ogg Opus file into ``folder``; BadAudio if unreadable.

    ``number`` is that of the question in its set: records of two shards may share a key.
    """
    digest = hashlib.sha256(f"{question.source}/{number}/{question.sample.key}".encode()).hexdigest()
    path = folder / f"{digest[:16]}.ogg"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(question.load()), SAMPLE_RATE, format="OGG", subtype="OPUS")
    return path
