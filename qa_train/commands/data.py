"""`qa-train data ...`: index foreign shards, convert JSONL, and show the order of training."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qa_train.commands.data_tools import ShardOptions, StorageOptions, ToJsonlOptions, WorkerOptions
from qa_train.config import OrderConfig, StorageConfig
from qa_train.jobs.executor import each
from qa_train.utils.progress import say

if TYPE_CHECKING:
    from qa_train.data.shards.sidecar import ShardIndex


@dataclass
class IndexOptions(ShardOptions):
    """Options of `qa-train data index`."""

    # Decode every clip: truncated audio, or audio with a wrong length, is skipped now instead of in training.
    decode: bool = False
    # Index what precedes the damage of a broken tar instead of refusing it.
    keep_damaged: bool = False
    # Skip shards with an index of matching size, to continue after an interruption. Not after a change of options or
    # for rewritten shards.
    missing: bool = False
    # Folder (or s3://, gs://) for the indexes of shards that nothing can be written next to.
    out: str = ""


def index(paths: list[str], options: IndexOptions) -> int:
    """Write an index next to every tar of KEY.flac (or another sound file) and KEY.json.

    Tars may be at s3:// or gs://, or with out=DIR at any URL; each is read once and not stored. A damaged tar is
    reported and not indexed. The exit code is 2 if a tar is damaged or has no usable record.
    """
    from qa_train.data.stores.storage import expand

    storage, out = options.storage, options.out
    paths = expand(paths, storage)
    _check_places(paths, out, storage)
    waiting = [path for path in paths if not (options.missing and _has_index(path, storage, out))]
    if len(waiting) < len(paths):
        print(f"{len(paths) - len(waiting)} of {len(paths)} shards have their index", flush=True)
    refused = unusable = 0
    arguments, engine = (options.decode, options.keep_damaged, storage, out), options.workers()
    for done in each(_index_or_reason, waiting, *arguments, engine=engine, what="index", died=_refusal):
        if isinstance(done, str):
            refused += 1
            say(done, error=True)
            continue
        say(f"{done.path}: {len(done)} records")
        for line in [*map(str, done.problems), *_through_ffmpeg(done)]:
            say(f"{done.path}: {line}")
        if not len(done):
            unusable += 1
            say(f"qa-train data index: {done.path}: no usable record, {len(done.problems)} skipped", error=True)
    if refused and len(paths) > 1:
        print(f"qa-train data index: {refused} of {len(paths)} shards were refused: they got no index", file=sys.stderr)
    return 2 if refused or unusable else 0


def _check_places(paths: list[str], out: str, storage: StorageConfig) -> None:
    """ValueError before hours of reading: where no index can be written, or two would have one name."""
    from qa_train.data.shards.index import index_place
    from qa_train.data.stores.folders import open_folder

    places = Counter(index_place(path, out) for path in paths)
    place, times = max(places.items(), key=lambda item: item[1])
    if times > 1:
        raise ValueError(
            f"{times} of the shards would have the index {place}: index each folder into an out= of its own"
        )
    if out:
        open_folder(out, storage).mkdir(parents=True, exist_ok=True)


def _through_ffmpeg(index: ShardIndex) -> Iterator[str]:
    """A note on clips that libsndfile does not read."""
    from qa_train.data.shards.tar import MEDIA_EXTENSIONS

    kinds = Counter(name.rpartition(".")[2].lower() for names in index.table["names"].to_pylist() for name in names)
    if media := [f"{number} .{kind}" for kind, number in sorted(kinds.items()) if kind in MEDIA_EXTENSIONS]:
        yield (
            f"clips decoded with PyAV: {', '.join(media)}; training needs the extra media too, and more "
            "time than for flac (ffmpeg -i IN OUT.flac)"
        )


def _index_or_reason(path: str, decode: bool, keep_damaged: bool, storage: StorageConfig, out: str) -> Any:
    """The index of a shard, or the error: one bad tar of thousands does not stop the others."""
    from qa_train.data.shards.index import index_shard

    try:
        return index_shard(path, decode, keep_damaged, storage, out)
    except FileNotFoundError:
        return _refusal(path, "no such file")
    except (ValueError, OSError) as error:
        return f"qa-train data index: {error}"


def _refusal(path: str, why: str) -> str:
    return f"qa-train data index: {path}: {why}"


def _has_index(path: str, storage: StorageConfig, out: str) -> bool:
    from qa_train.data.shards.index import index_place
    from qa_train.data.shards.sidecar import load_summary

    try:
        load_summary(path, storage, index_place(path, out))
    except (ValueError, OSError):
        return False
    return True


def from_jsonl(words: list[str]) -> int:
    """Turn lines of messages and audios into indexed shards.

    A line has messages and the audio files of their marks, relative to the JSONL file:

      {"messages": [{"role": "user", "content": "<audio>What is said?"},
                    {"role": "assistant", "content": "Hi."}],
       "audios": ["clips/a.wav"]}

    Rows of ms-swift, LLaMA-Factory, TRL, NeMo, Audio Flamingo 3 and align-anything work too, and JSON arrays. This
    command stops at a faulty line; `qa-train data import jsonl` counts it and continues.
    """
    from qa_train.data.tools.interchange import jsonl_to_shards
    from qa_train.data.tools.outside import Outside

    if len(words) != 2:
        raise ValueError("data from-jsonl: give FILE.jsonl and an output pattern, e.g. out/train-%05d.tar")
    outside = Outside([words[0]])
    for made in jsonl_to_shards(words[0], words[1], outside=outside):
        print(f"{made.path}: {len(made)} records")
    if note := outside.note():
        say(f"note: {note}", error=True)
    return 0


@dataclass
class CatalogOptions(StorageOptions):
    """Options of `data catalog`."""

    # Keep the lines of an existing catalog and read the indexes of the shards that it lacks only. For shards that were
    # indexed again, write it anew.
    append: bool = False


def catalog(paths: list[str], options: CatalogOptions) -> int:
    """Write the summaries of all shards into one file that a source may name, e.g. all.catalog.parquet."""
    from qa_train.data.shards.catalog import write_catalog

    if len(paths) < 2:
        raise ValueError("data catalog: give the file to write and the shards, e.g. all.catalog.parquet data/*.tar")
    print(f"{paths[0]}: {write_catalog(paths[1:], paths[0], options.storage, append=options.append)} shards")
    return 0


def to_jsonl(paths: list[str], options: ToJsonlOptions) -> int:
    """Write indexed shards as lines of messages and audios, for other tools, with the clips unchanged in a folder."""
    from qa_train.data.tools.interchange import shards_to_jsonl

    lines = shards_to_jsonl(paths, options.out, task=options.task, cfg=options.storage, overwrite=options.overwrite)
    print(f"{options.out}: {lines} lines")
    return 0


@dataclass
class TokensOptions(WorkerOptions):
    """Options of `qa-train data tokens`."""

    # pretrain, sft or dpo.
    stage: str = "pretrain"


def tokens(settings: list[str], options: TokensOptions) -> int:
    """Count the tokens of a run's records in advance, so that planning its sample order is faster.

    The counts of a shard are a file next to it for each task and tokenizer. Shards that have theirs are skipped.
    Without them, a run counts while it trains.
    """
    from qa_train.config.compose import compose_stage
    from qa_train.data.shards.token_counts import count_shard
    from qa_train.planner.balance import open_planned

    cfg = compose_stage(options.stage, settings)
    engine = options.workers()
    for source in open_planned(cfg).sources:
        made = list(each(count_shard, source.shards, source.use, cfg.data.storage, engine=engine, what=source.name))
        print(f"{source.name}: {sum(path is not None for path in made)} of {len(made)} shards counted")
    return 0


def order(settings: list[str], options: OrderConfig) -> int:
    """Print the SHA-256 of a run's sample order.

    The batches are drawn as in training: each of ``world_size`` ranks through a DataLoader with
    ``num_workers`` processes. The digest must not depend on either number.
    """
    from qa_train.config.compose import compose_stage
    from qa_train.data.loader import order_digest
    from qa_train.planner.balance import open_planned

    cfg = compose_stage(options.stage, settings)
    print(order_digest(open_planned(cfg), options.steps, options.world_size, options.num_workers))
    return 0
