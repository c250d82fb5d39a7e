"""Evaluation data as questions: prompt, accepted answers, and metric.

A line of an evaluation file is either the released format of Qwen2-Audio's evaluation,
``{"audio": path, "prompt": text, "gt": text, "source": name}``, asked in the base format, or a
chat, ``{"messages": [...], "audios": [...]}``, asked in ChatML; a chat's last assistant turn, or
its ``gt``, is the reference. Optional fields of both: ``metric``, ``language`` (of the reference),
``choices`` (all labels of the question), ``gt`` as a list of accepted labels, ``task`` as ``data to-jsonl`` writes it.
Of a chat without ``gt``, the ``captions`` and ``answers`` of its last turn are accepted too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.audio.table_clip import clip_source
from qa_train.data.audio.waveform import BadAudio, audio_tokens, read_clip
from qa_train.data.shards.clip_files import clip_bytes, located, refuse_parts
from qa_train.data.text.chat_rows import chat_record, is_chat
from qa_train.data.text.content import Source, shown, source_of, user_message
from qa_train.data.text.json_rows import objects
from qa_train.data.text.prompts import chat_messages
from qa_train.data.text.records import LANGUAGE_CODES, language_code
from qa_train.data.text.sample import Message, Sample, TextPart
from qa_train.eval.benchmarks.benchmark import JUDGED, UNSCORED
from qa_train.eval.benchmarks.judged import NEEDED
from qa_train.eval.scores.task_metrics import (
    ONE_REFERENCE,
    check_references,
    is_metric,
    unknown_metric,
    without_reference,
)

# Longer clips are failed answers: the longest of Earnings-22 has 2 h 4 min.
MAX_CLIP_S = 3 * 3600.0
# The rules of the report's sets, by source name; then by what the prompt asks for.
SOURCE_METRICS = (
    (re.compile(r"librispeech|cv15|common_?voice|fleurs|aishell", re.I), "wer"),
    (re.compile(r"covost", re.I), "bleu"),
    (re.compile(r"meld|vocal_?sound", re.I), "accuracy"),
)
PROMPT_METRICS = (
    (re.compile(r"\btranslate\b", re.I), "bleu"),
    (re.compile(r"\brecogni[sz]e the speech\b|\btranscribe\b|\btranscript", re.I), "wer"),
)
# Tasks whose answers are sentences; translate_zh and the like are scored by BLEU, any other task by accuracy.
TASK_METRICS = {
    "asr": "wer",
    "asr_lid": "wer",
    "dialect_asr": "wer",
    "asr_hotwords": "wer",
    "ask_transcript": "wer",
    "translate": "bleu",
    "ask_translation": "bleu",
    "sound_caption": "chrf",
    "music_caption": "chrf",
    "ask_caption": "chrf",
    "diarized_asr": "cp_wer",
    "word_timestamps": "word_times",
    "segment_timestamps": "boundary_f1",
}
_TAG_CODE = re.compile(r"<\|([a-z]{2,3})\|>")
_INTO = re.compile(r"\binto ([A-Z][a-z]+)")


@dataclass(frozen=True)
class Question:
    """One item to answer and score. ``sample`` holds no answer; ``load`` reads its clips when needed."""

    sample: Sample
    load: Callable[[], tuple[np.ndarray, ...]]
    references: tuple[str, ...]
    metric: str
    source: str
    language: str | None = None
    choices: tuple[str, ...] = ()
    # The files that ``load`` reads, where it reads any.
    clips: tuple[Path, ...] = ()
    # About as many as the prompt has, where that is known without reading the clips: for planning batches.
    tokens: int = 0
    # What is said in the clip, where the record has it.
    transcript: str = ""

    def __post_init__(self) -> None:
        """Scores have rules for languages by their short codes."""
        object.__setattr__(self, "language", language_code(self.language) if self.language else None)


def read_questions(path: Path | str) -> list[Question]:
    """Every row of an evaluation file (JSONL or a JSON array), in order. Clip paths are relative to the file's folder.

    Raises:
        ValueError: a row that is not JSON or lacks a field, with its number. Clips are not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no evaluation file at {path}: expected JSONL, one question per line")
    questions = []
    for number, where, row in objects(path):
        try:
            questions.append(_question(row, str(number), path.parent))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, {where}: {error}") from error
    if not questions:
        raise ValueError(f"{path} holds no questions: expected one JSON object per line")
    return questions


def load_clips(clips: Sequence[Path | Source]) -> tuple[np.ndarray, ...]:
    """Read clips (files, addresses, or bytes of files) as 16 kHz mono waveforms; BadAudio names the file."""
    waves = []
    for clip in clips:
        try:
            raw = clip_source(clip) if isinstance(clip, Path) else clip_bytes(clip)
            if isinstance(raw, Path) and not raw.is_file():
                raise BadAudio("no such file")
            waves.append(read_clip(raw, max_duration_s=MAX_CLIP_S))
            audio_tokens(len(waves[-1]))
        except BadAudio as error:
            raise BadAudio(f"{shown(clip) if isinstance(clip, bytes) else str(clip)}: {error}") from error
    return tuple(waves)


def metric_of(source: str, prompt: str) -> str:
    """The metric of a source by the tables above; a short labelled answer is scored by accuracy."""
    for table, text in ((SOURCE_METRICS, source), (PROMPT_METRICS, prompt)):
        for pattern, metric in table:
            if pattern.search(text):
                return metric
    return "accuracy"


def task_metric(task: str) -> str:
    """The metric of a task of ``configs/prompts``."""
    return TASK_METRICS.get(task, "bleu" if into_language(task) else "accuracy")


def into_language(task: str) -> str | None:
    """The language into which translate_zh and the like translate; None for other tasks."""
    return task.removeprefix("translate_") if task.startswith("translate_") else None


def language_of(metric: str, prompt: str) -> str | None:
    """Language of the reference: of a translation the one translated into, else the tag of the prompt."""
    if metric == "bleu":
        names = _INTO.findall(prompt)
        return LANGUAGE_CODES.get(names[-1].lower()) if names else None
    codes = _TAG_CODE.findall(prompt)
    return codes[-1] if codes else None


def accepted_answers(record: dict[str, Any], metric: str, answer: str | None) -> tuple[str, ...]:
    """What a record accepts instead of the answer that a task makes of it: references for ``metric``.

    All captions of a clip, and all ``answers`` to its question, where the answer is one of them (a transcript is not)
    and the metric takes several; for ``map`` the ``labels`` that the answer lists.
    """
    if answer is None:
        return ()
    labels = record.get("labels") or []
    if metric == "map" and labels and all(label in answer for label in labels):
        return tuple(labels)
    several = (record.get(name) or [] for name in ("answers", "captions"))
    return next((tuple(texts) for texts in several if answer in texts and metric not in ONE_REFERENCE), (answer,))


def _question(row: dict[str, Any], key: str, folder: Path) -> Question:
    # The released format has a prompt too, and the reference in gt.
    chat = is_chat({name: value for name, value in row.items() if name != "prompt" or "gt" not in row})
    if chat:
        sample, clips, prompt, answer = _chat(row, key)
    else:
        sample, clips, prompt, answer = _base(row, key)
    gt = row.get("gt", answer)
    references = tuple(gt) if isinstance(gt, list) else () if gt is None else (gt,)
    if not all(isinstance(reference, str) for reference in references):
        raise ValueError(f"gt must be text or a list of texts, found {gt!r}")
    source = str(row.get("source") or "unnamed")
    task = str(row.get("task") or "")
    # A known task tells more than the words of a prompt drawn for it.
    known = task in TASK_METRICS or into_language(task) is not None
    guess = task_metric(task) if known else metric_of(source, prompt)
    metric = row.get("metric") or (guess if references else UNSCORED)
    if "gt" not in row:
        references = accepted_answers(row, metric, answer)
    language = row.get("language") or language_of(metric, prompt)
    if known and metric in ("bleu", "chrf"):
        # Of a translation or caption; the line's own is that of the clip.
        language = into_language(task) or language_of("bleu", prompt) or "en"
    if metric not in (*JUDGED, UNSCORED) and not is_metric(metric):
        raise ValueError(unknown_metric(metric, (*JUDGED, UNSCORED)))
    if missing := [name for name in NEEDED.get(metric, ()) if not row.get(name)]:
        raise ValueError(f"metric {metric!r} needs {' and '.join(missing)}, which the judge is shown")
    if not references and metric not in (UNSCORED, "voicebench_open") and not without_reference(metric):
        raise ValueError(f"metric {metric!r} needs a reference: give gt, or metric {UNSCORED!r}")
    check_references(metric, [references])
    found = tuple(located(clip, folder) for clip in clips)
    if chat:
        refuse_parts(row, found)
    return Question(
        sample,
        partial(load_clips, found),
        references,
        metric,
        source,
        language,
        tuple(row.get("choices") or ()),
        tuple(clip for clip in found if isinstance(clip, Path)),
    )


def _base(row: dict[str, Any], key: str) -> tuple[Sample, list[Source], str, str | None]:
    clip, prompt = source_of(row.get("audio")), row.get("prompt")
    if clip is None or not isinstance(prompt, str):
        missing = [name for name, given in (("audio", clip), ("prompt", prompt)) if not isinstance(given, str | bytes)]
        raise ValueError(f"{' and '.join(missing)} must be text; a line holds audio, prompt, gt and source, or a chat")
    # The prompt is the benchmark's own, so a language tag in it is meant as one.
    user = user_message(prompt, 1, trusted=True)
    return Sample(key, (user,), 1, "eval", row.get("language"), "base"), [clip], prompt, None


def _chat(row: dict[str, Any], key: str) -> tuple[Sample, list[Source], str, str | None]:
    record, clips = chat_record(row)
    messages, count = chat_messages({"messages": record["messages"], "audios": [""] * len(clips)})
    messages, answer = split_answer(messages)
    if not messages or messages[-1].role != "user":
        raise ValueError("a chat must end with a user turn, or with the user's turn and its reference answer")
    prompt = part_text(messages[-1])
    sample = Sample(key, messages, count, "eval", row.get("language"), "chat")
    return sample, clips, prompt, record.get("chosen", answer)


def part_text(message: Message) -> str:
    """The text of a turn without its clips."""
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def split_answer(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
    """(messages without a final assistant turn, that turn's text or None)."""
    if messages and messages[-1].role == "assistant":
        return messages[:-1], part_text(messages[-1])
    return messages, None
