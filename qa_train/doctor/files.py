"""The user's files: shards with their indexes, a checkpoint, a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qa_train.config import StorageConfig
from qa_train.doctor.finding import Finding, note, ok, problem
from qa_train.model.stored.manifest import MANIFEST


def examine_data(patterns: list[str], storage: StorageConfig | None = None) -> Iterator[Finding]:
    """Check that shards exist and have matching indexes; nothing is decoded. ``storage``: how remote ones are read."""
    from qa_train.data.shards.catalog import shard_paths
    from qa_train.data.shards.sidecar import CLEANED, IGNORED, load_summary

    try:
        paths = shard_paths(patterns, storage)
    except (ValueError, OSError) as error:
        yield problem("data", str(error), "give folders, globs or URLs of .tar shards")
        return
    records, broken, skipped = 0, 0, Counter[str]()
    for path in paths:
        try:
            summary = load_summary(path, storage)
            records += summary.rows
            skipped.update({reason: n for reason, n in summary.problems.items() if reason not in (IGNORED, CLEANED)})
        except (ValueError, OSError) as error:
            broken += 1
            if broken <= 5:
                yield problem("shard", f"{path}: {error}", _data_remedy(path, error))
    if broken > 5:
        yield problem("shards", f"{broken - 5} more without a sound index", "see those above")
    if skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.most_common())
        yield note("data", f"skipped when indexed: {reasons}", "qa-train data inspect SHARD lists them")
    if records:
        yield ok("data", f"{len(paths) - broken} shards, {records} records with an index that fits")
        yield note("data", "the audio itself was not read", "qa-train data validate SHARDS reads every clip")
    elif not broken:
        yield problem("data", f"{len(paths)} shards without a record", "see qa-train data inspect SHARD")


def _data_remedy(path: str, error: Exception) -> str:
    """A new index only repairs a missing or damaged index."""
    if isinstance(error, OSError):
        return "check the server, the network and the rights" if "://" in path else "check the rights and the disk"
    return "index the shard where it was made, and upload both" if "://" in path else f"qa-train data index {path}"


def examine_checkpoint(source: str, *, verify: bool = True) -> Iterator[Finding]:
    """Would it be read: configuration, names and shapes of all weights, tokenizer, processor, and every checksum."""
    from qa_train.model.build import check_checkpoint, find_checkpoint

    try:
        folder = Path(find_checkpoint(source))
        if not folder.is_dir():
            yield note("checkpoint", f"{source} is a hub id", "fetch it first: huggingface-cli download " + source)
            return
        tensors = check_checkpoint(folder, verify=verify)
    except ValueError as error:
        yield problem("checkpoint", str(error), "give a run folder, one of its checkpoints or a Hugging Face folder")
        return
    yield ok("checkpoint", f"{folder}: {tensors} tensors that fit its configuration")
    if not verify or not (folder / MANIFEST).is_file():
        yield note("checkpoint", "its contents were not compared with checksums", "nothing to do, unless in doubt")


def examine_run(source: str) -> Iterator[Finding]:
    """Progress of a run, what resuming would use, and whether its numbers are finite."""
    from qa_train.report.runs import Steps, is_number
    from qa_train.train.job.checkpoints import list_folders
    from qa_train.train.job.checkpoints import problem as fault
    from qa_train.train.job.run import read_run_file

    folder = Path(source)
    if not (folder / "config.yaml").is_file():
        yield problem("run", f"{folder} has no config.yaml", "give the folder that run.dir named")
        return
    metrics = folder / "metrics.jsonl"
    if rows := Steps(metrics).rows() if metrics.is_file() else []:
        last = rows[-1]
        text = f"{last['step']} steps, last loss {last.get('loss')}"
        # A loss that is not finite is written as null; a damaged line may have anything.
        wrong = [row["step"] for row in rows if not is_number(row.get("loss", 0.0))]
        if wrong:
            yield problem(
                "metrics",
                f"{text}; not finite at step {wrong[0]}",
                "lower trainer.learning_rate and look at that step's samples",
            )
        else:
            yield ok("metrics", text)
    elif metrics.is_file() and metrics.stat().st_size:
        yield note("metrics", f"no line of {metrics} can be read", "restore it; without it the curves have a gap")
    else:
        yield note("metrics", "no step was logged yet", "see the run's output for why")
    whole = None
    for each in list_folders(folder / "checkpoints"):
        if reason := fault(each):
            yield note("checkpoint", f"{each.name} is not usable: {reason}", "nothing to do: resuming skips it")
        elif whole is None:
            whole = each
    try:
        read_run_file(folder / "config.yaml", dict)
        read_run_file(folder / "environment.json", list)
        finished = read_run_file(folder / "finished.json", dict)
    except ValueError as error:
        yield problem("run", str(error), "restore the file, or delete it")
        return
    if finished:
        yield ok("run", f"finished after {finished.get('steps')} steps")
    elif whole is None:
        yield note("run", "no complete checkpoint", "the same command starts it from the beginning")
    else:
        yield ok("run", f"the same command resumes from {whole.name}")
