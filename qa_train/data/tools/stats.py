"""Statistics of a corpus: hours by task, language and source, lengths of clips, and tokens by task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio, audio_tokens
from qa_train.data.shards.index import load_index
from qa_train.data.shards.sidecar import skipped
from qa_train.data.text.prompts import CHAT, PromptBank
from qa_train.data.text.template import IGNORE, encode
from qa_train.jobs.executor import HERE, Engine, each
from qa_train.utils.progress import counted, duration
from qa_train.utils.terminal import PLAIN, Layout

GROUPS = ("task", "language", "source", "split")
# Upper ends of the histogram's bins, in seconds.
BINS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 300.0, float("inf"))
_BAR = 40


@dataclass
class Stats:
    """Totals; ``groups`` counts records and seconds by (field, value), ``tokens`` by task."""

    shards: int = 0
    records: int = 0
    seconds: float = 0.0
    bytes: int = 0
    groups: dict[str, dict[str, list[float]]] = field(default_factory=lambda: {name: {} for name in GROUPS})
    lengths: Counter[float] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    # Per task: records that qualify, their seconds of audio, all tokens, audio tokens, supervised tokens.
    tokens: dict[str, list[float]] = field(default_factory=dict)

    def add(self, other: Stats) -> None:
        """Include the numbers of one more shard."""
        self.shards += other.shards
        self.records += other.records
        self.seconds += other.seconds
        self.bytes += other.bytes
        self.lengths.update(other.lengths)
        self.skipped.update(other.skipped)
        for name, values in other.groups.items():
            for value, (count, seconds) in values.items():
                entry = self.groups[name].setdefault(value, [0, 0.0])
                entry[0] += count
                entry[1] += seconds
        for task, counts in other.tokens.items():
            old = self.tokens.setdefault(task, [0.0] * 5)
            self.tokens[task] = [a + b for a, b in zip(old, counts, strict=True)]

    def __str__(self) -> str:
        return self.shown(PLAIN)

    def shown(self, page: Layout) -> str:
        """Tables for people, laid out for ``page``."""
        size = f"{self.bytes / 1e9:,.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:,.2f} MB"
        lines = [
            f"{counted(self.shards, 'shard')}, {counted(self.records, 'record')}, {duration(self.seconds)}, {size}"
        ]
        if self.skipped:
            lines.append("skipped by the index: " + ", ".join(f"{n} {r}" for r, n in self.skipped.most_common()))
        for name, values in self.groups.items():
            if set(values) - {"-"}:
                rows = []
                for value, (count, seconds) in sorted(values.items(), key=lambda item: -item[1][1]):
                    share = seconds / self.seconds if self.seconds else 0.0
                    rows.append([value, f"{count:.0f}", duration(seconds), f"{share:.1%}"])
                lines += ["", page.table([name, "records", "audio", "share"], rows)]
        lines += ["", self._histogram(page)]
        if self.tokens:
            head = ["task", "records", "audio", "tokens", "of audio", "supervised", "per record"]
            rows = []
            for task, (count, seconds, total, audio, learned) in sorted(self.tokens.items()):
                counts = [f"{number:.0f}" for number in (total, audio, learned)]
                mean = total / count if count else 0.0
                rows.append([task, f"{count:.0f}", duration(seconds), *counts, f"{mean:.1f}"])
            lines += ["", page.table(head, rows)]
        return page.fold("\n".join(lines))

    def _histogram(self, page: Layout) -> str:
        longest = max(self.lengths.values(), default=1)
        rows, bars = [], []
        for low, high in zip((0.0, *BINS), BINS, strict=False):
            count = self.lengths[high]
            rows.append([f"{low:g}-{high:g}" if high < BINS[-1] else f"> {low:g}", str(count)])
            bars.append("#" * (-(-count * _BAR // longest)))
        return page.table(["seconds", "records", ""], rows, notes=bars)


def stats(
    paths: Sequence[str],
    *,
    tokenizer: Any = None,
    tasks: Sequence[str] = (),
    engine: Engine = HERE,
    storage: StorageConfig | None = None,
) -> Stats:
    """Statistics of indexed shards, from their indexes alone.

    With a ``tokenizer``, exact rows are made of every record for every task of ``tasks`` that it qualifies for;
    with no ``tasks``, for the task named in the record, or for its own chat. ``storage``: how remote indexes are read.
    """
    bank = PromptBank.load() if tokenizer is not None else None
    for task in tasks:
        if bank is not None and task != CHAT:
            bank.task(task)
    total = Stats()
    given = (tokenizer, tuple(tasks), bank, storage)
    for one in each(shard_stats, paths, *given, engine=engine, what="stats"):
        total.add(one)
    return total


def shard_stats(
    path: str, tokenizer: Any, tasks: tuple[str, ...], bank: PromptBank | None, storage: StorageConfig | None = None
) -> Stats:
    """Numbers of one indexed shard."""
    index = load_index(path, storage)
    out = Stats(shards=1, records=len(index), bytes=index.shard_size)
    out.skipped.update(skipped(index.problems))
    columns = ("key", "meta", "duration_s", "num_samples")
    for key, meta, seconds, samples in zip(*(index.table[name].to_pylist() for name in columns), strict=True):
        record = json.loads(meta)
        out.seconds += seconds
        out.lengths[next(high for high in BINS if seconds <= high)] += 1
        for name in GROUPS:
            entry = out.groups[name].setdefault(str(record.get(name) or "-"), [0, 0.0])
            entry[0] += 1
            entry[1] += seconds
        if bank is not None:
            _count_tokens(out, record, key, seconds, samples, tokenizer, tasks, bank)
    return out


def _count_tokens(
    out: Stats,
    record: dict[str, Any],
    key: str,
    seconds: float,
    samples: list[int],
    tokenizer: Any,
    tasks: tuple[str, ...],
    bank: PromptBank,
) -> None:
    own = [record["task"]] if record.get("task") in bank.tasks else []
    for task in tasks or own or ([CHAT] if record.get("messages") else []):
        entry = out.tokens.setdefault(task, [0.0] * 5)
        if not bank.qualifies(record, task):
            continue
        try:
            clip_tokens = [audio_tokens(n) for n in samples]
        except BadAudio:
            continue
        template = "chat" if task == CHAT else "base"
        row = encode(bank.sample(record, task, template, key, 0, 0), tokenizer, clip_tokens)
        learned = sum(label != IGNORE for label in row.labels)
        found = (1, seconds, len(row.input_ids), sum(clip_tokens), learned)
        out.tokens[task] = [a + b for a, b in zip(entry, found, strict=True)]
