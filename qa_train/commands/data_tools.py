"""`qa-train data inspect | validate | stats | words | sample | clean`: looking at shards, and cleaning them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from qa_train.config import CleanConfig, StorageConfig
from qa_train.jobs.executor import Engine, EngineOptions
from qa_train.utils.progress import say
from qa_train.utils.terminal import layout


@dataclass
class StorageOptions:
    """How remote shards are read, for the commands that have no other option."""

    is_shared = True
    # The keys of data.storage, e.g. storage.timeout_s=60 or storage.options.s3.anon=true.
    storage: StorageConfig = field(default_factory=StorageConfig)


@dataclass
class WorkerOptions(EngineOptions):
    """Options of the commands that work on every shard."""

    is_shared = True
    # Processes of engine=local; 0: this one.
    num_workers: int = 0

    def workers(self) -> Engine:
        """The engine that was chosen."""
        return self.engine_with(self.num_workers)


@dataclass
class ShardOptions(WorkerOptions, StorageOptions):
    """Options of the commands that read every shard."""


@dataclass
class ToJsonlOptions(StorageOptions):
    """Options of `qa-train data to-jsonl`."""

    # The file to write; the clips go into the folder FILE-audio next to it.
    out: str = MISSING
    # Task of the prompt bank for records without messages; chat: records must have messages.
    task: str = "chat"
    # Replace files of the same names with other content.
    overwrite: bool = False


@dataclass
class ValidateOptions(ShardOptions):
    """Options of `qa-train data validate`."""

    # Decode every clip. false: check bytes and records only, which is faster.
    decode: bool = True
    # JSONL file to write the faults to.
    report: str | None = None


@dataclass
class StatsOptions(ShardOptions):
    """Options of `qa-train data stats`."""

    # Also count tokens by task, with this tokenizer: a folder, a hub id, or builtin:nano.
    tokenizer: str | None = None
    # Tasks to count tokens for, separated by commas; empty: the record's own.
    tasks: str = ""


@dataclass
class WordsOptions(ShardOptions):
    """Options of `qa-train data words`."""

    # The file to write, one word per line; it must not exist.
    out: str = MISSING
    # Keep words that occur in at most this many records.
    at_most: int = 5
    # Keep words of at least this many letters.
    shortest: int = 4


@dataclass
class SampleOptions(StorageOptions):
    """Options of `qa-train data sample`."""

    # Number of records.
    n: int = 3
    # Seed of the selection.
    seed: int = 0
    # Folder for the audio files, JSON and plots.
    out: str | None = None


@dataclass
class CleanOptions(ShardOptions, CleanConfig):
    """Options of `qa-train data clean`."""

    # Remove the rejected records from the indexes; the tars are not changed.
    apply: bool = False
    # JSONL file with one line per dropped record.
    report: str | None = None


def inspect(paths: list[str], options: StorageOptions) -> int:
    """Show members, index and first records of a shard; or, as SHARD:KEY, one record in full."""
    from qa_train.data.tools.view import describe_record, describe_shard

    for word in paths:
        shard, mark, key = word.partition(".tar:")
        cfg = options.storage
        say(describe_record(shard + ".tar", key, cfg) if mark else describe_shard(word, cfg=cfg))
    return 0


def validate(paths: list[str], options: ValidateOptions) -> int:
    """Read everything and report every fault; the exit code is 1 if there is one."""
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.tools.validate import validate as check

    summary = check(
        shard_paths(paths, options.storage),
        say,
        decode=options.decode,
        engine=options.workers(),
        report=options.report,
        storage=options.storage,
    )
    say(summary)
    return 1 if summary.faults else 0


def stats(paths: list[str], options: StatsOptions) -> int:
    """Count hours by task and language, and measure lengths and tokens."""
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.tools.stats import stats as count

    tokenizer = None
    if options.tokenizer is not None:
        from qa_train.model import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    elif options.tasks:
        raise ValueError("data stats: tasks= counts tokens, which needs tokenizer= (a folder, a hub id, builtin:nano)")
    tasks = [task for task in options.tasks.split(",") if task]
    engine, storage = options.workers(), options.storage
    found = count(shard_paths(paths, storage), tokenizer=tokenizer, tasks=tasks, engine=engine, storage=storage)
    print(found.shown(layout()))
    return 0


def words(paths: list[str], options: WordsOptions) -> int:
    """Write the rare words of the transcripts to out=, for tasks with hotwords."""
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.tools.rare_words import write_rare_words

    count, seen = write_rare_words(
        shard_paths(paths, options.storage),
        Path(options.out),
        at_most=options.at_most,
        shortest=options.shortest,
        engine=options.workers(),
        storage=options.storage,
    )
    print(f"wrote {options.out}: {count:,} of {seen:,} words")
    return 0


def sample(paths: list[str], options: SampleOptions) -> int:
    """Print some records, and write files to play and plots into out=."""
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.tools.view import describe_row, draw_rows, write_row

    for path, row in draw_rows(shard_paths(paths, options.storage), options.n, options.seed, options.storage):
        say(describe_row(path, row, options.storage))
        if options.out is not None:
            for file in write_row(path, row, Path(options.out), options.storage):
                print(f"wrote {file}")
        print()
    return 0


def clean(paths: list[str], options: CleanOptions) -> int:
    """Count the records that the filters reject; apply=true removes them from the indexes.

    Shares are between 0 and 1; null switches a filter off.
    """
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.tools.clean import clean as run

    result = run(
        shard_paths(paths, options.storage),
        options,
        apply=options.apply,
        report=options.report,
        engine=options.workers(),
        storage=options.storage,
    )
    say(result)
    if result.dropped and not options.apply:
        print("nothing was changed; add apply=true to remove these records from the indexes")
    return 0
