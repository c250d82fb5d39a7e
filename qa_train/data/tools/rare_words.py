"""The rare words of a corpus' transcripts, one a line: names and terms, which prompts list as hotwords."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qa_train.config import StorageConfig
from qa_train.data.shards.index import load_index
from qa_train.data.text.hotwords import MAX_FILE_BYTES, spaced_words
from qa_train.jobs.executor import HERE, Engine, each
from qa_train.utils.atomic import whole


def write_rare_words(
    paths: Sequence[str],
    out: Path,
    *,
    at_most: int,
    shortest: int,
    engine: Engine = HERE,
    storage: StorageConfig | None = None,
) -> tuple[int, int]:
    """Write the words of 1 to ``at_most`` transcripts with ``shortest`` letters or more; how many, and of how many.

    A word is written as it is most often spelled. Of scripts without spaces (Chinese, Japanese) no words are found.

    Raises:
        ValueError: ``out`` exists, there is no such word, or they are too many for a task.
    """
    if out.exists():
        raise ValueError(f"data words: {out} exists: choose another out=, or remove it")
    records: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    for found in each(_of_shard, paths, storage, engine=engine, what="words"):
        for word, (count, forms) in found.items():
            records[word] += count
            spellings.setdefault(word, Counter()).update(forms)
    kept = sorted(word for word, count in records.items() if count <= at_most and len(word) >= shortest)
    if not kept:
        raise ValueError(
            f"data words: of {len(records)} words, none has {shortest} letters or more and is in at most {at_most} "
            "transcripts: change at_most= or shortest="
        )
    # Of spellings that are as frequent, the first by its letters, in whatever order the shards were read.
    text = "".join(f"{min(spellings[word].items(), key=lambda form: (-form[1], form[0]))[0]}\n" for word in kept)
    if len(text.encode()) > MAX_FILE_BYTES:
        raise ValueError(
            f"data words: {len(kept):,} words, more than the {MAX_FILE_BYTES:,} bytes that a task reads: lower at_most="
        )
    with whole(out) as part:
        part.write_text(text, encoding="utf-8")
    return len(kept), len(records)


def _of_shard(path: str, storage: StorageConfig | None) -> dict[str, tuple[int, Counter[str]]]:
    """Of each word the number of transcripts with it, and its spellings."""
    made: dict[str, tuple[int, Counter[str]]] = {}
    for meta in load_index(path, storage).table["meta"].to_pylist():
        text = json.loads(meta).get("text")
        forms: dict[str, list[str]] = {}
        for word, form in spaced_words(text) if isinstance(text, str) else ():
            forms.setdefault(word, []).append(form)
        for word, shown in forms.items():
            count, known = made.setdefault(word, (0, Counter()))
            known.update(shown)
            made[word] = (count + 1, known)
    return made
