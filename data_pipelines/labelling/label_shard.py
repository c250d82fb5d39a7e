"""The labels of one shard: its clips as questions, a model's answers, and the records that they make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator  # noqa: F401 (pdoc looks up inherited annotations here)
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.importing.import_shard import CountedJob, LeftOut, Made
from data_pipelines.labelling.answer_form import AnswerForm
from data_pipelines.labelling.label_filters import compression_ratio, repeats, windows, word_difference
from data_pipelines.labelling.label_options import LabelConfig, Labeller
from qa_train.data.audio.waveform import BadAudio, audio_tokens
from qa_train.data.clips import Clip, ClipReader
from qa_train.data.shards.index import Placed, ShardIndex, index_places, load_index, placed
from qa_train.data.shards.sidecar import write_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.storage import RangeReader
from qa_train.data.text.prompts import PromptBank, Unqualified
from qa_train.data.text.records import BadRecord
from qa_train.data.text.sample import Message, Sample
from qa_train.data.text.tasks import Task, parse
from qa_train.data.tools.clean import silent_share
from qa_train.eval.answers import Answerer, Journal, Limits, Outcome, answer, load_answerer
from qa_train.eval.endpoint import EndpointModel
from qa_train.eval.eval_sets import clips_of, read_wave
from qa_train.eval.questions import Question, part_text, task_metric
from qa_train.eval.scores.normalise import CHARACTER_LANGUAGES, label_form, transcript_words
from qa_train.infer.generate import Decoding, prompt_tokens
from qa_train.llm.client import CallFailed, Endpoint
from qa_train.utils.digests import sha256_of
from qa_train.utils.masking import masked

# In the index of a shard whose audio stays where it is.
ORIGIN = "labels"


@dataclass(frozen=True)
class LabelJob(CountedJob):
    """The shard at ``source``, of so many ``hours``, with labels.

    ``answers``: a folder for what was answered before the shard is whole, where there is a local one.
    """

    source: str = ""
    hours: float = 0.0
    options: LabelConfig = field(default_factory=LabelConfig)
    answers: Path | None = None

    @property
    def journals(self) -> tuple[str, str]:
        """Names of the journals in ``answers``: of the first model and of the second."""
        return f"{self.path.stem}.first", f"{self.path.stem}.second"

    def write(self) -> int:
        """Write the labelled shard; returns the number of its records.

        Raises:
            ValueError: more than ``max_bad`` clips cannot be read or are refused, or an endpoint that does not answer.
        """
        return write_labels(self)


class Asking:
    """How a task is asked about a record, and its answer read."""

    def __init__(self, options: LabelConfig) -> None:
        """ValueError for a task or prompt that cannot be used."""
        self.options = options
        self.bank = PromptBank.load(options.prompt_files)
        task = self.bank.task(options.task)
        self.form = AnswerForm(task)
        self.metric = task_metric(task.name)
        # What the answer tells need not be known.
        needed = tuple(name for name in task.requires if name not in self.form.fields)
        prompts = task.prompts if options.prompt is None else (parse(options.prompt),)
        self._asks = PromptBank({task.name: replace(task, requires=needed, prompts=prompts)})
        self.task: Task = task

    @property
    def in_windows(self) -> bool:
        """Whether the answers to parts of a clip make that to the clip."""
        return self.form.fields == ("text",)

    def question(self, key: str, record: dict[str, Any]) -> Message:
        """The user's turn. Raises LeftOut for a record that cannot be asked about."""
        try:
            asked = self._asks.question(record, self.task.name, pair=True, key=key)
        except Unqualified as error:
            raise LeftOut(str(error), "does not fit the task") from error
        wordings = asked.options()
        if self.options.template == "chat":
            # Tags are for pretrained models.
            wordings = [each for each in wordings if not any("<|" in piece.literal for piece in each[0])]
        if not wordings:
            raise LeftOut(f"{key}: the record lacks a field that the prompt names", "does not fit the prompt")
        return asked.user(wordings[0])


class ShardLabels:
    """Questions about the records of a shard, and what becomes of the answers."""

    def __init__(self, job: LabelJob, index: ShardIndex) -> None:
        """Reads clips and asks the models. Raises ValueError where `LabelJob.write` does."""
        self._job, self._options, self._asking = job, job.options, Asking(job.options)
        self._left: dict[str, Exception] = {}
        self._ready: dict[str, dict[str, Any]] = {}
        # Of the records that are asked about: their fields, prompt, and the numbers of their questions.
        self._asked: dict[str, tuple[dict[str, Any], str, range]] = {}
        self._questions: list[Question] = []
        # Of each question: whether no answer is one.
        self._may_be_empty: list[bool] = []
        reader = ClipReader(0, self._options.storage)
        # An endpoint is asked about the windows of a clip one after the other; a checkpoint by their length.
        self._wave = lru_cache(maxsize=8)(partial(read_wave, reader))
        with closing(reader):
            for row in index.table.to_pylist():
                try:
                    self._ask(row)
                except (BadAudio, BadRecord) as error:
                    # Without the frames, which hold waveforms.
                    self._left[row["key"]] = error.with_traceback(None)
            models = [by for by in (self._options, self._options.second) if by.name and self._questions]
            self._answers = [self._answered(by) for by in models]

    def record(self, key: str) -> dict[str, Any]:
        """The record with its label. Raises LeftOut, BadAudio or BadRecord for one that gets none."""
        if key in self._left:
            raise self._left[key]
        if key in self._ready:
            return self._ready[key]
        record, prompt, places = self._asked[key]
        language = record.get("language")
        said = [
            self._said([(outcomes[i], self._may_be_empty[i]) for i in places], language)
            for outcomes, _ in self._answers
        ]
        filled = [self._asking.form.filled(record, text) for text in said]
        told = {"prompt": prompt, "date": self._options.date, "model": self._options.name, **self._answers[0][1]}
        if len(said) > 1:
            found = self._difference(said, filled, language)
            if found > self._options.max_difference:
                raise LeftOut(f"difference {found:.2f}: {said[0][:200]!r} and {said[1][:200]!r}", "the models differ")
            told["second"] = {"model": self._options.second.name, **self._answers[1][1], "difference": round(found, 3)}
        task = self._asking.task.name
        labelled = filled[0]
        labelled |= {"task": task, "labelled": {**(record.get("labelled") or {}), task: told}}
        if not self._asking.bank.qualifies(labelled, task):
            raise LeftOut(f"{key}: a field that the task needs is missing", "does not fit the task")
        return labelled

    def _difference(self, said: list[str], filled: list[dict[str, Any]], language: str | None) -> float:
        """Of two answers: that of their words, or of labels 0 or 1."""
        if self._asking.metric == "wer":
            return word_difference(said[0], said[1], language)
        one, other = ([label_form(str(record.get(name))) for name in record] for record in filled)
        return float(one != other)

    def _ask(self, row: dict[str, Any]) -> None:
        options, key = self._options, row["key"]
        record = json.loads(row["meta"]) | options.fields
        if any(record.get(name) != value for name, value in options.where.items()):
            raise LeftOut("", "other by where")
        if not (options.relabel or self._asking.form.missing(record)):
            self._ready[key] = record
            return
        clips = clips_of(self._job.source, row)
        if len(clips) != 1:
            raise LeftOut(f"{len(clips)} clips", "not exactly one clip")
        (clip,) = clips
        if clip.duration_s > options.max_duration_s:
            raise LeftOut(f"{clip.duration_s:.1f} s", "longer than max_duration_s")
        user = self._asking.question(key, record)
        sample = Sample(key, (user,), 1, self._asking.task.name, record.get("language"), str(options.template))
        first = len(self._questions)
        for start, stop, silent in self._windows(clip):
            self._may_be_empty += [silent]
            tokens = prompt_tokens(sample, audio_tokens(stop - start))
            load = partial(self._window, clip, start, stop)
            self._questions.append(Question(sample, load, (), "", f"{clip.id} {start}-{stop}", tokens=tokens))
        if len(self._questions) == first:
            raise LeftOut("nothing but silence", "silence")
        self._asked[key] = record, part_text(user), range(first, len(self._questions))

    def _windows(self, clip: Clip) -> Iterator[tuple[int, int, bool]]:
        """[start, stop) of the parts to ask about, not the silent ones, and whether one is silent but for a moment."""
        options = self._options
        parts, most = [(0, clip.num_samples)], options.max_silence
        if self._asking.in_windows and clip.duration_s > options.window_s:
            parts = windows(self._wave(clip), options.window_s)
        for start, stop in parts:
            share = 0.0 if most is None else silent_share(self._wave(clip)[start:stop], options.silence_db)
            # A word in a window of a long clip belongs to the transcript.
            if most is None or share <= most or (len(parts) > 1 and share < 1):
                yield start, stop, most is not None and share > most

    def _window(self, clip: Clip, start: int, stop: int) -> tuple[np.ndarray]:
        # A part alone does not keep the whole clip in memory.
        return (self._wave(clip)[start:stop].copy(),)

    def _answered(self, by: Labeller) -> tuple[list[Outcome], dict[str, Any]]:
        """The answers to all questions, and what names their model."""
        options = self._options
        answerer, who, limits = _answerer(by, options)
        decoding = Decoding(max_new_tokens=options.max_new_tokens)
        journal = None
        if self._job.answers is not None:
            asked = [[q.source, part_text(q.sample.messages[0])] for q in self._questions]
            identity = who | {
                "model": by.name, "shard": self._job.arguments, "asked": sha256_of(asked),
                "decoding": asdict(decoding), "limits": None if by.checkpoint is None else asdict(limits),
            }  # fmt: skip
            journal = Journal(self._job.answers, self._job.journals[by is options.second], identity)
        try:
            said = answer(self._questions, answerer, decoding, limits=limits, journal=journal, all_may_fail=True)
        except CallFailed as error:
            raise ValueError(f"{masked(by.url)}: {error}; the same command again continues from here") from error
        return said, who

    def _said(self, outcomes: list[tuple[Outcome, bool]], language: str | None) -> str:
        """The answers to the windows of a clip in one; (outcome, whether it may be empty) each.

        Raises LeftOut or BadRecord where one cannot be used, or all are empty.
        """
        options, texts = self._options, list[str]()
        for number, (each, may_be_empty) in enumerate(outcomes, 1):
            text = each.text.strip()
            if each.error is not None:
                raise BadRecord(each.error, "no answer")
            if each.truncated:
                raise LeftOut(f"max_new_tokens={options.max_new_tokens}: {text[:200]!r}", "answer cut short")
            if not text and not may_be_empty:
                raise LeftOut(f"part {number} of {len(outcomes)}", "empty answer")
            if options.max_repeats and (times := repeats(transcript_words(text, language))) > options.max_repeats:
                raise LeftOut(f"{times} times in a row: {text[:200]!r}", "repeated words")
            if options.max_compression and (ratio := compression_ratio(text)) > options.max_compression:
                raise LeftOut(f"compression ratio {ratio:.1f}: {text[:200]!r}", "repeated words")
            texts += [text] if text else []
        if not texts:
            raise LeftOut(f"all of {len(outcomes)} parts", "empty answer")
        return ("" if language in CHARACTER_LANGUAGES else " ").join(texts)


def write_labels(job: LabelJob) -> int:
    """Write a job's shard, and what it leaves out; returns the number of records."""
    index = load_index(job.source, job.options.storage)
    labels, made = ShardLabels(job, index), Made(job.max_bad)
    linked: list[Placed] = []
    with (
        ShardWriter(job.path, max_samples=1 << 40, max_bytes=1 << 50) as writer,
        closing(RangeReader(job.options.storage)) as files,
    ):
        for each, sums in zip(placed(index), index.table["crc32c"].to_pylist(), strict=True):
            with made.counting(each.key):
                record = labels.record(each.key)
                if job.options.audio == "in_place":
                    linked.append(replace(each, record=record))
                    continue
                places = zip(each.clips, sums, strict=True)
                raw = [files.read(job.source, clip.offset, clip.size, checksum) for clip, checksum in places]
                kinds = [clip.name.rpartition(".")[2] for clip in each.clips]
                writer.write(writer.free_key(each.key), record, raw, extension=kinds)
        indexes = writer.close()
    if linked:
        job.path.symlink_to(Path(job.source).resolve())
        indexes.append(index_places(str(job.path), linked, ORIGIN))
        write_index(indexes[-1])
    made.note(problem for each in indexes for problem in each.problems)
    made.save(job.path)
    return made.number


def _answerer(by: Labeller, options: LabelConfig) -> tuple[Answerer, dict[str, Any], Limits]:
    """Who answers, what names its answers beside ``by.name``, and how much it is asked at a time."""
    if by.checkpoint is None:
        endpoint = Endpoint(str(by.url), by.model, by.key_env)
        # Each request is one clip: batches only keep all of them busy.
        return EndpointModel(endpoint, options.requests, refusals_fail=True), {}, Limits(4 * options.requests, 1 << 40)
    limits = Limits(options.batch_size, options.token_budget)
    return *_loaded(by.checkpoint, options.device, options.verify), limits


@lru_cache(maxsize=2)
def _loaded(checkpoint: str, device: str, verify: bool) -> tuple[Answerer, dict[str, Any]]:
    """Once in a process, which labels shard after shard."""
    return load_answerer(checkpoint, device, verify=verify, allow_missing=())
