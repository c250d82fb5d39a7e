"""One benchmark: its questions, how it is scored, and what was published of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from qa_train.eval.scores.task_metrics import is_metric, lower_is_better, unknown_metric

# Scored by a judge instead of a metric: see qa_train.eval.benchmarks.judged.
JUDGED = ("airbench_chat", "voicebench_open", "voicebench_qa")
# No scorer is built in: answers are written for the benchmark's own script.
UNSCORED = "none"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. Paths are relative to ``data_root``."""

    name: str
    metric: str
    # The layout of the data on disk (one of `layouts.READERS`) and their path.
    reader: str
    path: str
    # Parquet files (a pattern) in which the benchmark is published; used if ``path`` does not exist.
    tables: str | None = None
    title: str = ""
    suite: str = ""
    # The jsonl file released with Qwen2-Audio: used instead of ``path`` when it is there, and the
    # rows of it (a regular expression on their ``source``) that are this benchmark.
    released: str | None = None
    source: str | None = None
    # Asked of every item; None: each row brings its own.
    prompt: str | None = None
    # "base": clip + prompt, as a pretrained model is asked; "chat": ChatML, as a model after SFT is.
    template: str = "base"
    # Additional metrics of the same answers.
    also: Sequence[str] = field(default_factory=list)
    # Of the reference text: decides the normaliser and the tokenizer.
    language: str | None = None
    # The exact rule of scoring, in words, for the report.
    rule: str = ""
    max_new_tokens: int = 256
    # Published number of items; another number is reported.
    items: int | None = None
    # A field of the rows to break the score down by.
    group_by: str | None = None
    # Show the options in an order of each item's own that this seed decides (readers of `layouts.SHUFFLED`); None: as
    # published.
    shuffle_options: int | None = None
    # Keep only rows with these values.
    where: Mapping[str, Any] = field(default_factory=dict)
    # Published results: {"paper": .., "hf": .., any other system: ..}, in ``numbers_unit``.
    numbers: Mapping[str, float] = field(default_factory=dict)
    # {group: {system: number}} for benchmarks of several tasks.
    group_numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # What a number of ours may be compared with, and what not.
    comparable: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.metric not in (*JUDGED, UNSCORED) and not is_metric(self.metric):
            problems.append(unknown_metric(self.metric, (*JUDGED, UNSCORED)))
        if isinstance(self.also, str):
            problems.append(f"also is {self.also!r}: give a list of metrics")
        else:
            problems += [f"also: {unknown_metric(name)}" for name in self.also if not is_metric(name)]
        if self.also and self.metric in (*JUDGED, UNSCORED):
            problems.append(f"also has no effect with metric {self.metric!r}")
        if self.template not in ("base", "chat"):
            problems.append(f"template is {self.template!r}: use base or chat")
        if self.name in ("", ".", "..") or set(self.name) & {"/", "\\"}:
            problems.append("it names a folder of results: it must not be empty or contain / or \\")
        published = [self.numbers, *self.group_numbers.values()]
        if not all(isinstance(each, Mapping) for each in published) or not all(
            isinstance(number, int | float) for each in published for number in each.values()
        ):
            problems.append(f"numbers must be {{system: number}}, found {dict(self.numbers) or self.group_numbers!r}")
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if problems:
            raise ValueError(f"benchmark {self.name!r}: {'; '.join(problems)}")

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number is a better one."""
        return not lower_is_better(self.metric)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, as written next to the predictions."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def from_dict(values: Mapping[str, Any]) -> Benchmark:
    """The benchmark that ``as_dict`` wrote.

    Raises:
        ValueError: unknown, missing or mistyped keys.
    """
    known = {f.name for f in fields(Benchmark)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"benchmark {values.get('name')!r}: unknown keys {unknown}; known are {sorted(known)}")
    missing = [name for name in ("name", "metric", "reader", "path") if not isinstance(values.get(name), str)]
    if missing:
        raise ValueError(f"benchmark {values.get('name')!r}: {' and '.join(missing)} must be given as text")
    return Benchmark(**values)
