"""`qa-train data ...`: index foreign shards, convert JSONL, and show the order of training."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qa_train.commands import data_tools
from qa_train.commands.data_tools import StorageOptions, split_words
from qa_train.config import OrderConfig, parse_options
from qa_train.utils.progress import say

if TYPE_CHECKING:
    from qa_train.data.shards.sidecar import ShardIndex


@dataclass
class IndexOptions:
    """`qa-train data index PATH...`"""

    # Decode every clip: audio that is cut, or lies about its length, is left out now and not in training.
    decode: bool = False
    # Index what precedes the damage of a broken tar instead of refusing it.
    keep_damaged: bool = False
    # Leave alone what has an index of its size: to go on after an interruption. Not for other options, or for shards
    # that were rewritten.
    missing: bool = False
    # Processes; 0: this one.
    num_workers: int = 0


def index(words: list[str]) -> int:
    """`data index PATH... [decode=true keep_damaged=true missing=true num_workers=N]`: write the index of every tar.

    A damaged tar is named and gets no index; the others do, and the exit code is 2, as it is when a shard holds no
    record that can be used.
    """
    from qa_train.data.parallel import each_shard
    from qa_train.data.shards.storage import expand

    given, options = split_words(words, IndexOptions, "data index")
    paths = expand(given)
    waiting = [path for path in paths if not (options.missing and _has_index(path))]
    if len(waiting) < len(paths):
        print(f"{len(paths) - len(waiting)} of {len(paths)} shards have their index", flush=True)
    refused = unusable = 0
    arguments = options.decode, options.keep_damaged
    for done in each_shard(_index_or_reason, waiting, *arguments, num_workers=options.num_workers, what="index"):
        if isinstance(done, str):
            refused += 1
            say(done, error=True)
            continue
        say(f"{done.path}: {len(done)} records")
        for line in [*map(str, done.problems), *_through_ffmpeg(done)]:
            say(f"{done.path}: {line}")
        if not len(done):
            unusable += 1
            say(f"qa-train data index: {done.path}: no record can be used, {len(done.problems)} left out", error=True)
    if refused and len(paths) > 1:
        print(f"qa-train data index: {refused} of {len(paths)} shards were refused: they got no index", file=sys.stderr)
    return 2 if refused or unusable else 0


def _through_ffmpeg(index: ShardIndex) -> Iterator[str]:
    """What to know about clips that libsndfile does not read."""
    from qa_train.data.shards.tar import MEDIA_EXTENSIONS

    kinds = Counter(name.rpartition(".")[2].lower() for names in index.table["names"].to_pylist() for name in names)
    if media := [f"{number} .{kind}" for kind, number in sorted(kinds.items()) if kind in MEDIA_EXTENSIONS]:
        yield (
            f"clips of which PyAV decoded the sound: {', '.join(media)}; training needs the extra media too, and more "
            "time than for flac (ffmpeg -i IN OUT.flac)"
        )


def _index_or_reason(path: str, decode: bool, keep_damaged: bool) -> Any:
    """The index of a shard, or why there is none: one bad tar of thousands does not end the work on the others."""
    from qa_train.data.shards.index import index_shard

    try:
        return index_shard(path, decode, keep_damaged)
    except FileNotFoundError:
        return f"qa-train data index: {path}: no such file"
    except (ValueError, OSError) as error:
        return f"qa-train data index: {error}"


def _has_index(path: str) -> bool:
    from qa_train.data.shards.sidecar import load_summary

    try:
        load_summary(path)
    except (ValueError, OSError):
        return False
    return True


def from_jsonl(words: list[str]) -> int:
    """`data from-jsonl FILE.jsonl OUT-%05d.tar`: turn lines of messages and audios into indexed shards.

    A line: {"messages": [{"role": "user", "content": "<audio>What is said?"}, {"role": "assistant", "content": "Hi."}],
    "audios": ["clips/a.wav"]}; paths are relative to the file. Rows of ms-swift, LLaMA-Factory, TRL, NeMo, Audio
    Flamingo 3 and align-anything are taken too, and JSON arrays. `qa-train data import jsonl` counts faulty lines and
    goes on, where this one stops.
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


def catalog(words: list[str]) -> int:
    """`data catalog OUT SHARDS... [storage.KEY=...]`: summaries of all shards in one file that a source may name."""
    from qa_train.data.shards.catalog import write_catalog

    paths, options = split_words(words, StorageOptions, "data catalog")
    if len(paths) < 2:
        raise ValueError("data catalog: give the file to write and the shards, e.g. all.catalog.parquet data/*.tar")
    print(f"{paths[0]}: {write_catalog(paths[1:], paths[0], options.storage)} shards")
    return 0


def to_jsonl(words: list[str]) -> int:
    """`data to-jsonl PATH... out=FILE.jsonl [task=NAME]`: indexed shards as lines of messages and audios.

    For other tools, or to read. The clips are written beside, unchanged.
    """
    from qa_train.data.tools.interchange import shards_to_jsonl

    paths, options = split_words(words, data_tools.ToJsonlOptions, "data to-jsonl")
    more = {"task": options.task, "cfg": options.storage, "overwrite": options.overwrite}
    print(f"{options.out}: {shards_to_jsonl(paths, options.out, **more)} lines")
    return 0


def order(words: list[str]) -> int:
    """`data order [steps=N key=value ...]`: SHA-256 of the order in which a run of this shape trains on the samples.

    The batches are drawn as in training: each of ``world_size`` ranks through a DataLoader with
    ``num_workers`` processes. The digest depends on neither number; that is the point of it.
    """
    names = set(OrderConfig.__dataclass_fields__)
    own = [word for word in words if word.split("=", 1)[0] in names]
    from qa_train.config.compose import compose_stage
    from qa_train.data.loader import order_digest
    from qa_train.planner.balance import open_planned

    options: OrderConfig = parse_options(OrderConfig, own, "data order")
    cfg = compose_stage(options.stage, [word for word in words if word not in own])
    print(order_digest(open_planned(cfg), options.steps, options.world_size, options.num_workers))
    return 0


def command_help(name: str, command: Any) -> str:
    """What `qa-train data NAME --help` prints: its docstring, and its options with their defaults."""
    from qa_train.config.guide import options_help
    from qa_train.data.tools.clean import CleanConfig

    kinds: dict[str, tuple[type[Any], ...]] = {
        "index": (IndexOptions,),
        "to-jsonl": (data_tools.ToJsonlOptions,),
        "order": (OrderConfig,),
        "inspect": (StorageOptions,),
        "catalog": (StorageOptions,),
        "validate": (data_tools.ValidateOptions,),
        "stats": (data_tools.StatsOptions,),
        "sample": (data_tools.SampleOptions,),
        "clean": (data_tools.CleanOptions, CleanConfig),
    }
    usage = inspect.cleandoc(command.__doc__).replace("`data ", "`qa-train data ")
    return "\n".join([usage, *(f"\n{options_help(kind)}" for kind in kinds.get(name, ()))])
