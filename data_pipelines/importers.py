"""`qa-train data import CORPUS path=... out=...`: a public corpus, or a foreign list, as indexed shards.

1. Listing: the corpus's reader yields items; the blocklist and ``where`` skip some. The rest is written to
   ``OUT/listing/`` in shards of ``samples_per_shard``. No audio is read.
2. Making: each shard is written by a separate process (`data_pipelines.clips.make_shards`): FLAC at 16 kHz, or
   the files as they are (``audio=keep``). A recording that cannot be read is skipped, and noted in
   ``SHARD.tar.dropped.jsonl``.
   It counts against ``error_budget``, together with the lines of the lists that could not be used.
   Foreign tars at addresses are not listed: each is read once, and becomes a shard
   (`data_pipelines.importing.streamed`).
3. Report: ``OUT/NAME-SPLIT.report.json`` lists imported and skipped items, with reasons.

The same command again makes only what is missing or was made from something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_pipelines.clips.make_shards import RECIPE_SUFFIX, make, refuse_others
from data_pipelines.corpora.base import Corpus, Drop, Request, TableForm
from data_pipelines.importing import blocklist
from data_pipelines.importing.admission import Admission, Bare, items_of, plain
from data_pipelines.importing.blocklist import Blocklist
from data_pipelines.importing.budget import allowed_of, forget_bad, make_within_budget
from data_pipelines.importing.catalogue import corpus_of, table
from data_pipelines.importing.import_report import Report, Unlisted
from data_pipelines.importing.import_shard import COPIED_SUFFIX, ImportJob
from data_pipelines.importing.listing import Listing
from data_pipelines.importing.streamed import StreamJob, Tally, forget_changed, stream_jobs
from qa_train.config import StorageConfig
from qa_train.data.shards.index import load_index
from qa_train.data.stores import storage
from qa_train.data.stores.folders import companion, open_folder
from qa_train.data.tools.outside import Outside
from qa_train.jobs.executor import EngineOptions
from qa_train.utils import plugins
from qa_train.utils.masking import masked, without_query
from qa_train.utils.progress import progress
from qa_train.utils.terminal import layout

# Of the files of an import, so many are named in its report.
_MOST_NAMED = 100


@dataclass
class ImportConfig(EngineOptions):
    """Options of `qa-train data import`."""

    # The corpus as published: a folder, .tar or .zip archives, or tables; several as [A,B] (required).
    path: Any = None
    # The folder for the shards, or s3://, gs:// (required).
    out: str = ""
    # Official split, or [A,B]; optional if the corpus has only one for training.
    split: Any = None
    # Generic readers: hold out this share of the training split. split=test imports it, split=train the rest; no
    # speaker is in both.
    split_share: float | None = None
    # train, or eval: import evaluation splits, and write their ids as a blocklist.
    purpose: str = "train"
    # Lists of recordings to exclude: *.blocklist.txt, evaluation sets as CSV or JSON (AIR-Bench, MMAU, MMAR, NeMo).
    block: list[str] = field(default_factory=list)
    # Evaluation splits to train on nevertheless.
    allow: list[str] = field(default_factory=list)
    # flac: re-encode at 16 kHz. keep: the files as they are (segments are always cut to FLAC). in_place: files inside
    # tars and tables stay where they are and are linked and indexed; compressed ones and parts of files are copied.
    audio: str = "flac"
    # Only records with this value: where.FIELD=VALUE.
    where: dict[str, Any] = field(default_factory=dict)
    # Set a field of every record: fields.FIELD=VALUE.
    fields: dict[str, Any] = field(default_factory=dict)
    # Generic readers: column of a field, columns.FIELD=COLUMN; null: none.
    columns: dict[str, str | None] = field(default_factory=dict)
    # Hugging Face configuration.
    config: str = ""
    # Tables: the character between columns, e.g. '|'; detected if empty.
    delimiter: str = ""
    # Tables without a header line: names of the columns, e.g. header=[audio,text].
    header: list[str] = field(default_factory=list)
    # Tables and stm: encoding, e.g. cp1252; UTF-8 if empty.
    encoding: str = ""
    # Tables: whether quotation marks enclose cells; null: detected.
    quoted: bool | None = None
    # Extension of files that a list names without it, e.g. wav.
    extension: str = ""
    # Lists made on another machine: replace the beginning of their paths, prefix=[OLD,NEW].
    prefix: list[str] = field(default_factory=list)
    # Find listed files by name, in any folder below path.
    by_name: bool = False
    # Prefix of shards and keys; null: the name of the corpus.
    name: str | None = None
    # Stop after this many records.
    max_samples: int | None = None
    # Records of one shard.
    samples_per_shard: int = 1000
    # Processes of engine=local; 0: this one.
    workers: int = 2
    # Seconds; longer recordings are skipped.
    max_duration_s: float = 600.0
    # Maximum share of unusable lines and recordings. One is always allowed, unless it is 0.
    error_budget: float = 0.01
    # Maximum share of missing clips of lists that are published without audio (YouTube).
    missing_budget: float = 0.5
    # Rebuild shards that have bad recordings.
    retry_bad: bool = False
    # Replace files of the same names that were not made by an import, or were made of other paths.
    overwrite: bool = False
    # Packages whose code may run, for a corpus of your own (docs/extend.md): plugins=[my_package].
    plugins: list[str] = field(default_factory=list)
    # How remote files are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)


def main(words: list[str], options: ImportConfig) -> int:
    """Import a public corpus, a table or a foreign list as indexed shards.

      qa-train data import --list      every corpus with its licence and splits
      qa-train data import librispeech path=DIR out=DIR split=train-clean-100

    The same command again makes only the shards that are missing or whose input has changed. Bad recordings and lines
    are counted and listed in OUT/NAME-SPLIT.report.json; more than error_budget of them stop the import.

    Raises:
        ValueError: no such corpus, or what `import_corpus` refuses.
    """
    if words == ["--list"]:
        print(table(layout()))
        return 0
    if len(words) != 1 or options.path is None or not options.out:
        raise ValueError(
            f"data import: give one CORPUS, path= and out=; found {' '.join(words) or 'no corpus'}, "
            f"path={options.path or ''} out={options.out} (qa-train data import --list names the corpora)"
        )
    plugins.allow(options.plugins)
    corpus = corpus_of(words[0])
    for report in import_corpus(corpus, options):
        print(report.text(), flush=True)
    return 0


def import_corpus(corpus: Corpus, options: ImportConfig) -> Iterator[Report]:
    """Import the splits that are asked for, one after the other.

    Raises ValueError for wrong options, refused splits, and when more recordings are unreadable than the budget allows.
    """
    if options.audio not in ("flac", "keep", "in_place"):
        raise ValueError(f"audio={options.audio!r}: use flac, keep or in_place")
    if options.audio == "in_place" and "://" in options.out:
        raise ValueError(
            f"audio=in_place links to files of this file system: out={masked(options.out)} needs flac or keep"
        )
    budgets = (options.error_budget, options.missing_budget)
    if options.samples_per_shard < 1 or not all(0 <= share <= 1 for share in budgets) or options.workers < 0:
        raise ValueError(
            "samples_per_shard must be at least 1, error_budget and missing_budget between 0 and 1, workers 0 or more"
        )
    if options.split_share is not None and not (corpus.generic and 0 < options.split_share < 1):
        raise ValueError(
            f"split_share={options.split_share} for {corpus.name}: give a share between 0 and 1, to generic readers; "
            "public corpora have splits of their own"
        )
    block = Blocklist.load(options.block)
    splits = _splits(corpus, options)
    for split in splits:
        blocklist.check_purpose(corpus, split, options.purpose, options.allow)
    for split in splits:
        yield _import_split(corpus, split, options, block)


def _splits(corpus: Corpus, options: ImportConfig) -> list[str]:
    if options.split is None:
        if len(corpus.train_splits) == 1 and options.purpose == "train":
            return corpus.train_splits
        raise ValueError(f"{corpus.title}: say which split=...; it has {', '.join(corpus.splits)}")
    return [str(split) for split in (options.split if isinstance(options.split, list) else [options.split])]


def _import_split(corpus: Corpus, split: str, options: ImportConfig, block: Blocklist) -> Report:
    out = open_folder(options.out, options.storage)
    prefix = f"{plain(options.name or corpus.name)}-{plain(split)}"
    report = Report(corpus.name, split, str(options.fields.get("license", corpus.license)))
    if corpus.name in blocklist.OVERLAPS and options.purpose == "train" and not options.block:
        report.notes.append(
            f"not checked against {', '.join(blocklist.OVERLAPS[corpus.name])}: give block= lists of them"
        )
    _refuse_foreign(out, prefix, overwrite=options.overwrite)
    ids: list[str] = []
    request = _request(split, options)
    named = chain.from_iterable(map(storage.unbraced, request.paths))
    report.path = list(map(_place, islice(named, _MOST_NAMED)))
    if not options.overwrite:
        _refuse_another(out / f"{prefix}.report.json", report.path)
    admission = Admission(
        corpus, split, prefix, options.name or corpus.name, options.purpose, options.where, options.fields,
        options.split_share, block,
    )  # fmt: skip
    make_all = _streamed if corpus.streams and any("://" in path for path in request.paths) else _listed
    jobs = make_all(admission, request, options, out, report, ids)
    linked = 0
    for path in (path for job in jobs for path in job.shards):
        index = load_index(str(path), options.storage)
        report.count_shard(index)
        linked += len(index) if index.origin else 0
    if options.audio == "in_place":
        report.notes.append(f"{linked} records are read where they are, {report.made - linked} were copied")
    if not report.made:
        raise ValueError(f"none of {report.listed} recordings could be imported\n{report.text()}")
    if options.purpose == "eval":
        lines = [f"# {corpus.title}, split {split}: evaluation material", *sorted(set(ids))]
        (out / f"{prefix}{blocklist.SUFFIX}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report.save(out / f"{prefix}.report.json")
    return report


def _listed(
    admission: Admission, request: Request, options: ImportConfig, out: Path, report: Report, ids: list[str]
) -> list[ImportJob]:
    """List what becomes a record, then make the shards; returns their jobs."""
    jobs = _listing(admission, request, options, out, report, ids)
    if not jobs:
        raise ValueError(f"{admission.corpus.title}, split {request.split}: nothing to import\n{report.text()}")
    _refuse_leftovers(out, admission.prefix, len(jobs))
    report.listed = sum(job.num_clips for job in jobs)
    _check_budgets(options, report)
    make_within_budget(
        jobs, report, options.engine_with(options.workers), error_budget=options.error_budget,
        retry_bad=options.retry_bad,
    )  # fmt: skip
    return jobs


def _streamed(
    admission: Admission, request: Request, options: ImportConfig, out: Path, report: Report, ids: list[str]
) -> list[StreamJob]:
    """Make one shard of each file, read once; returns their jobs."""
    if options.audio == "in_place":
        raise ValueError("audio=in_place is for files of this machine: download them, or use audio=keep for URLs")
    files = storage.expand(request.paths, options.storage)
    _refuse_leftovers(out, admission.prefix, len(files))
    jobs = stream_jobs(files, admission, request, out, audio=options.audio, max_duration_s=options.max_duration_s)
    report.notes += forget_changed(jobs)
    forget_bad(jobs, retry_bad=options.retry_bad)
    tally = Tally(report, ids, len(jobs), options.error_budget, options.max_samples)
    begun: list[StreamJob] = []
    # All files at once, or one after the other while records are wanted.
    for some in [jobs] if options.max_samples is None else ([job] for job in jobs):
        if tally.left is None or tally.left > 0:
            some = some if tally.left is None else [some[0].at_most(tally.left)]
            begun += some
            make(some, engine=options.engine_with(options.workers), what="streaming", unit="files", ready=tally)
    _refuse_leftovers(out, admission.prefix, len(begun))
    report.notes += tally.notes()
    return begun


def _listing(
    admission: Admission, request: Request, options: ImportConfig, out: Path, report: Report, ids: list[str]
) -> list[ImportJob]:
    """Write the listings of all shards; returns the jobs that make them. Ids are gathered for purpose=eval."""
    corpus = admission.corpus
    listing = Listing(
        out, admission.prefix, origin=corpus.name, audio=options.audio, samples_per_shard=options.samples_per_shard,
        max_duration_s=options.max_duration_s, storage=options.storage,
    )  # fmt: skip
    total = 0
    bare = Bare()
    extra, outside = Unlisted(request), Outside(path for path in request.paths if Path(path).exists())
    for found in progress(items_of(corpus, request), desc=f"listing {admission.prefix}", unit="items"):
        extra.seen(found)
        entry = admission.judge(found)
        if isinstance(entry, Drop):
            report.count(entry)
            continue
        if options.purpose == "eval":
            ids.extend(blocklist.ids_of(corpus.name, entry.item))
        for place in entry.item.audio:
            if not place.data:
                outside.look(place.path)
        listing.add(entry.key, entry.item, entry.record)
        bare.look(entry)
        total += 1
        if total == options.max_samples:
            break
    report.notes += request.notes + bare.notes()
    if total != options.max_samples:
        report.notes += extra.notes()
    report.notes += filter(None, [outside.note()])
    return listing.close()


def _request(split: str, options: ImportConfig) -> Request:
    paths = options.path if isinstance(options.path, list) else [options.path]
    delimiter = options.delimiter.replace("\\t", "\t")
    if len(delimiter) > 1:
        raise ValueError(f"delimiter={options.delimiter!r}: use one character, such as '|' or '\\t'")
    if len(options.prefix) not in (0, 2):
        raise ValueError(f"prefix={list(options.prefix)}: give two, [OLD,NEW]")
    form = TableForm(delimiter, tuple(options.header), options.encoding, options.quoted, options.extension)
    prefix = (options.prefix[0], options.prefix[1]) if options.prefix else None
    columns = {name: column or "" for name, column in options.columns.items()}
    return Request(
        tuple(map(str, paths)), split, columns, options.config, form, prefix, options.by_name,
        split_share=options.split_share, storage=options.storage,
    )  # fmt: skip


def _refuse_foreign(out: Path, prefix: str, *, overwrite: bool) -> None:
    """ValueError for files under the names of this import that no import made: its listing comes first."""
    shards = sorted(out.glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9].tar"))
    listed = sorted((out / "listing").glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9].jsonl"))
    names = {path.stem for path in listed}
    foreign = [path for path in shards if path.stem not in names and not companion(path, RECIPE_SUFFIX).exists()]
    if not listed:
        foreign += [
            path for path in (out / f"{prefix}.report.json", out / f"{prefix}{blocklist.SUFFIX}") if path.exists()
        ]
    if foreign and not overwrite:
        raise ValueError(
            f"{foreign[0]} exists and was not made by an import: choose another out= or name=, or replace such "
            "files with overwrite=true"
        )


def _place(path: str) -> str:
    """A path of an import wherever it is said from; addresses, without signatures, and ids of the hub as they are."""
    local = Path(path).expanduser()
    return str(local.absolute()) if "://" not in path and local.exists() else masked(without_query(path))


def _refuse_another(report: Path, paths: list[str]) -> None:
    """ValueError where an import of nothing of these was made under the same names: it would be lost."""
    before = Report.saved(report).get("path") or paths
    if not {*before} & {*paths}:
        raise ValueError(
            f"{report.parent} has an import of {', '.join(before)[:200]} under these names: choose another out= or "
            "name=, or replace it (also if it is the same that was moved) with overwrite=true"
        )


def _refuse_leftovers(out: Path, prefix: str, num_shards: int) -> None:
    kinds = (".tar", COPIED_SUFFIX)
    names = [f"{prefix}-{i:05d}{kind}" for i in range(num_shards) for kind in kinds]
    refuse_others(out, prefix, names, "an earlier import", kinds)


def _check_budgets(options: ImportConfig, report: Report) -> None:
    """ValueError when the lists name more unusable lines, or more missing clips, than is allowed."""
    total = report.listed + report.bad
    if report.bad > (allowed := allowed_of(options.error_budget, total)):
        raise ValueError(
            f"{report.bad} of {total} entries of the lists cannot be used, error_budget={options.error_budget:g} "
            f"allows {allowed}: repair them, or raise error_budget\n{report.text()}"
        )
    total = report.listed + report.missing
    if report.missing > (allowed := allowed_of(options.missing_budget, total)):
        raise ValueError(
            f"{report.missing} of {total} clips are not among the audio files, missing_budget="
            f"{options.missing_budget:g} allows {allowed}: check that path= holds all the audio you have, or raise "
            f"missing_budget\n{report.text()}"
        )
