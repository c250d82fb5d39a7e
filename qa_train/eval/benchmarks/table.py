"""Benchmarks as a table: questions, scoring, published results. YAML in ``configs/benchmarks``.

A file holds ``benchmarks: {name: entry}``, and optionally ``suite`` (a name for all of them) and
``defaults`` (keys of every entry). A user's own file has the same form; its paths are relative to
its folder. The keys of an entry are the fields of ``Benchmark``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from qa_train.config import config_dir
from qa_train.eval.scores.task_metrics import is_metric, lower_is_better, unknown_metric
from qa_train.utils.closest import did_you_mean
from qa_train.utils.safe_yaml import read_yaml

# Scored by a judge instead of a metric: see qa_train.eval.benchmarks.judged.
JUDGED = ("airbench_chat", "voicebench_open", "voicebench_qa")
# No scorer is built in: answers are written for the benchmark's own script.
UNSCORED = "none"
READERS = (
    "jsonl",
    "librispeech",
    "common_voice",
    "fleurs",
    "aishell2",
    "covost2",
    "meld",
    "vocalsound",
    "clotho",
    "audiocaps",
    "earnings",
    "airbench_foundation",
    "airbench_chat",
    "mmau",
    "mmar",
    "mmsu",
    "voicebench",
    "sakura",
    "big_bench_audio",
    "muchomusic",
)
# Readers that can show options in another order.
SHUFFLED = ("mmau", "mmar", "mmsu", "muchomusic")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. Paths are relative to ``data_root``."""

    name: str
    metric: str
    # The layout of the data on disk (one of READERS) and their path.
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
    # Show the options in an order of each item's own that this seed decides (readers SHUFFLED); None: as published.
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
        if self.reader not in READERS:
            problems.append(f"reader {self.reader!r} is unknown: use one of {', '.join(READERS)}")
        if self.template not in ("base", "chat"):
            problems.append(f"template is {self.template!r}: use base or chat")
        if self.shuffle_options is not None and self.reader not in SHUFFLED:
            problems.append(f"shuffle_options has no effect on reader {self.reader!r}: it is for {', '.join(SHUFFLED)}")
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


def benchmarks_dir() -> Path:
    """The folder of the built-in tables."""
    return config_dir() / "benchmarks"


def read_table(path: Path) -> list[Benchmark]:
    """All benchmarks of one YAML file; paths of a user's file become absolute.

    Raises:
        ValueError: no such file, not YAML of the expected form, or a wrong entry, naming file and entry.
    """
    if not path.is_file():
        raise ValueError(f"no benchmark file {path}")
    try:
        table = read_yaml(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("benchmarks"), dict) or not table["benchmarks"]:
        raise ValueError(f"{path}: expected a mapping with benchmarks: {{name: {{reader, path, metric, ...}}}}")
    stray = sorted(table.keys() - {"benchmarks", "defaults", "suite"})
    if stray:
        raise ValueError(f"{path}: unknown keys {stray}; a file holds benchmarks, defaults and suite")
    common = {"suite": table.get("suite") or path.stem} | (table.get("defaults") or {})
    own = path.resolve().parent != benchmarks_dir().resolve()
    found = []
    for name, entry in table["benchmarks"].items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, {name}: expected a mapping, found {type(entry).__name__}")
        values = common | {"name": str(name), "title": str(name)} | entry
        if own and isinstance(values.get("path"), str):
            values["path"] = str(path.resolve().parent / values["path"])
        if own and isinstance(values.get("tables"), str):
            values["tables"] = str(path.resolve().parent / values["tables"])
        try:
            found.append(from_dict(values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by name, by suite (all of a table), or by a YAML file of one's own.

    Raises:
        ValueError: an unknown name, with those that exist, or two benchmarks of one name.
    """
    tables = [entry for path in sorted(benchmarks_dir().glob("*.yaml")) for entry in read_table(path)]
    found: list[Benchmark] = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            found += read_table(Path(name))
            continue
        matching = [entry for entry in tables if name in (entry.name, entry.suite)]
        if not matching:
            suites = sorted({entry.suite for entry in tables})
            known = [entry.name for entry in tables]
            raise ValueError(
                f"no benchmark {name!r}; {did_you_mean(name, [*known, *suites])}suites are {', '.join(suites)}; "
                f"benchmarks are {', '.join(known)}; or give a YAML file of your own"
            )
        found += matching
    names_found = [entry.name for entry in found]
    twice = sorted({name for name in names_found if names_found.count(name) > 1})
    if twice:
        raise ValueError(f"benchmarks named twice: {', '.join(twice)}")
    return found
