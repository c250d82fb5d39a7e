"""`qa-train data inspect | validate | stats | sample | clean`: looking at shards, and cleaning them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from qa_train.config import StorageConfig, parse_options
from qa_train.utils.progress import say


@dataclass
class StorageOptions:
    """How remote shards are read, for the commands that have no other option."""

    # The keys of data.storage, e.g. storage.timeout_s=60 or storage.options.s3.anon=true.
    storage: StorageConfig = field(default_factory=StorageConfig)


@dataclass
class ToJsonlOptions(StorageOptions):
    """`qa-train data to-jsonl PATH... out=FILE.jsonl`"""

    # The file to write; the clips go into the folder FILE-audio beside it.
    out: str = MISSING
    # A task of the prompt bank for records without messages; chat: their own.
    task: str = "chat"
    # Replace files of the same names with other content.
    overwrite: bool = False


@dataclass
class ValidateOptions(StorageOptions):
    """`qa-train data validate PATH...`"""

    # false: check bytes and records only, which is quicker.
    decode: bool = True
    # Processes; 0: this one.
    num_workers: int = 0
    # JSONL file of the faults.
    report: str | None = None


@dataclass
class StatsOptions(StorageOptions):
    """`qa-train data stats PATH...`"""

    # With a tokenizer (a folder, a hub id, or builtin:nano): tokens by task.
    tokenizer: str | None = None
    # Tasks to count tokens for, joined by commas; none: the record's own.
    tasks: str = ""
    # Processes; 0: this one.
    num_workers: int = 0


@dataclass
class SampleOptions(StorageOptions):
    """`qa-train data sample PATH...`"""

    # How many records.
    n: int = 3
    # Of the draw.
    seed: int = 0
    # Folder for the audio files, JSON and plots.
    out: str | None = None


def inspect(words: list[str]) -> int:
    """`data inspect SHARD[:KEY]... [storage.KEY=...]`: members, index, first records; or one record in full."""
    from qa_train.data.tools.view import describe_record, describe_shard

    paths, options = split_words(words, StorageOptions, "data inspect")
    for word in paths:
        shard, mark, key = word.partition(".tar:")
        cfg = options.storage
        say(describe_record(shard + ".tar", key, cfg) if mark else describe_shard(word, cfg=cfg))
    return 0


def validate(words: list[str]) -> int:
    """`data validate PATH... [decode=true num_workers=0 report=FILE]`: read all again; exit code 1 on any fault."""
    from qa_train.data.shards.storage import expand
    from qa_train.data.tools.validate import validate as check

    paths, options = split_words(words, ValidateOptions, "data validate")
    summary = check(
        expand(paths),
        say,
        decode=options.decode,
        num_workers=options.num_workers,
        report=options.report,
        storage=options.storage,
    )
    say(summary)
    return 1 if summary.faults else 0


def stats(words: list[str]) -> int:
    """`data stats PATH... [tokenizer=T tasks=asr,lid num_workers=0]`: hours, lengths, tokens."""
    from qa_train.data.shards.storage import expand
    from qa_train.data.tools.stats import stats as count

    paths, options = split_words(words, StatsOptions, "data stats")
    tokenizer = None
    if options.tokenizer is not None:
        from qa_train.model import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    elif options.tasks:
        raise ValueError("data stats: tasks= counts tokens, which needs tokenizer= (a folder, a hub id, builtin:nano)")
    tasks = [task for task in options.tasks.split(",") if task]
    given = {"num_workers": options.num_workers, "storage": options.storage}
    print(count(expand(paths), tokenizer=tokenizer, tasks=tasks, **given))
    return 0


def sample(words: list[str]) -> int:
    """`data sample PATH... [n=3 seed=0 out=DIR]`: print some records, and write files to play and to look at."""
    from qa_train.data.shards.storage import expand
    from qa_train.data.tools.view import describe_row, draw_rows, write_row

    paths, options = split_words(words, SampleOptions, "data sample")
    for path, row in draw_rows(expand(paths), options.n, options.seed, options.storage):
        say(describe_row(path, row, options.storage))
        if options.out is not None:
            for file in write_row(path, row, Path(options.out), options.storage):
                print(f"wrote {file}")
        print()
    return 0


def clean(words: list[str]) -> int:
    """`data clean PATH... [apply=true report=FILE LIMIT=...]`: count what the filters refuse, or drop it."""
    from qa_train.data.shards.storage import expand
    from qa_train.data.tools.clean import CleanConfig
    from qa_train.data.tools.clean import clean as run

    limits = {field.name for field in fields(CleanConfig)}
    own = [word for word in words if word.partition("=")[0] in limits]
    paths, options = split_words([word for word in words if word not in own], CleanOptions, "data clean")
    cfg: CleanConfig = parse_options(CleanConfig, own, "data clean")
    given = {"num_workers": options.num_workers, "storage": options.storage}
    result = run(expand(paths), cfg, apply=options.apply, report=options.report, **given)
    say(result)
    if result.dropped and not options.apply:
        print("nothing was changed; add apply=true to take these records out of the indexes")
    return 0


@dataclass
class CleanOptions(StorageOptions):
    """`qa-train data clean PATH...`, beside the limits of CleanConfig."""

    # Take the refused records out of the indexes; the tars stay as they are.
    apply: bool = False
    # JSONL file with one line per dropped record.
    report: str | None = None
    # Processes; 0: this one.
    num_workers: int = 0


COMMANDS = {"inspect": inspect, "validate": validate, "stats": stats, "sample": sample, "clean": clean}


def split_words(words: list[str], kind: type[Any], command: str) -> tuple[list[str], Any]:
    """Paths, and options of the form key=value; at least one path is needed."""
    names = {field.name for field in fields(kind)}
    own = [word for word in words if word.partition("=")[0].partition(".")[0] in names and "=" in word]
    paths = [word for word in words if word not in own]
    wrong = [path for path in paths if "=" in path and not Path(path).exists() and "://" not in path]
    if wrong:
        raise ValueError(
            f"{command}: {wrong[0]!r} is neither a path nor an option; options: {', '.join(sorted(names))}"
        )
    if not paths:
        raise ValueError(
            f"{command}: give paths, folders, globs or URLs of .tar shards; options: {', '.join(sorted(names))}"
        )
    return paths, parse_options(kind, own, command)
