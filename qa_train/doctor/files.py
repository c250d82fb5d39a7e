"""The user's files: shards with their indexes, a checkpoint, a run folder."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qa_train.config import StorageConfig
from qa_train.doctor import Finding, note, ok, problem

# A safetensors file begins with the length of its JSON header, eight bytes.
_HEADER = struct.Struct("<Q")


def examine_data(patterns: list[str], storage: StorageConfig | None = None) -> Iterator[Finding]:
    """Are there shards, has each an index that fits it; nothing is decoded. ``storage``: how remote ones are read."""
    from qa_train.data.shards.sidecar import CLEANED, IGNORED, load_summary
    from qa_train.data.shards.storage import expand

    try:
        paths = expand(patterns)
    except (ValueError, OSError) as error:
        yield problem("data", str(error), "give folders, globs or URLs of .tar shards")
        return
    records, broken, left_out = 0, 0, Counter[str]()
    for path in paths:
        try:
            summary = load_summary(path, storage)
            records += summary.rows
            left_out.update({reason: n for reason, n in summary.problems.items() if reason not in (IGNORED, CLEANED)})
        except (ValueError, OSError) as error:
            broken += 1
            if broken <= 5:
                yield problem("shard", f"{path}: {error}", _data_remedy(path, error))
    if broken > 5:
        yield problem("shards", f"{broken - 5} more without a sound index", "see those above")
    if left_out:
        reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.most_common())
        yield note("data", f"left out when indexed: {reasons}", "qa-train data inspect SHARD names them")
    if records:
        yield ok("data", f"{len(paths) - broken} shards, {records} records with an index that fits")
        yield note("data", "the audio itself was not read", "qa-train data validate SHARDS reads every clip")
    elif not broken:
        yield problem("data", f"{len(paths)} shards without a record", "see qa-train data inspect SHARD")


def _data_remedy(path: str, error: Exception) -> str:
    """A new index mends an index that is absent or damaged, and nothing else."""
    if isinstance(error, OSError):
        return "check the server, the network and the rights" if "://" in path else "check the rights and the disk"
    return "index the shard where it was made, and upload both" if "://" in path else f"qa-train data index {path}"


def examine_checkpoint(source: str) -> Iterator[Finding]:
    """Is it whole: manifest, configuration, tokenizer, and every weights file of its full length."""
    from qa_train.model.build import find_checkpoint
    from qa_train.train.checkpoints import MANIFEST
    from qa_train.train.checkpoints import problem as fault

    try:
        folder = Path(find_checkpoint(source))
    except ValueError as error:
        yield problem("checkpoint", str(error), "give a run folder, one of its checkpoints or a Hugging Face folder")
        return
    if not folder.is_dir():
        yield note("checkpoint", f"{source} is a hub id", "fetch it first: huggingface-cli download " + source)
        return
    if (folder / MANIFEST).is_file() and (reason := fault(folder)):
        yield problem(
            "checkpoint", f"{folder}: {reason}", "use an older checkpoint of the run; resuming does so by itself"
        )
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        if reason := damage(path):
            yield problem("weights", f"{path.name}: {reason}", "copy the checkpoint again, or use another")
        else:
            count += 1
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        if absent := sorted(name for name in named if not (folder / name).is_file()):
            yield problem("weights", f"{', '.join(absent)} not there", "copy the whole folder")
    if not (folder / "tokenizer.json").is_file():
        yield problem("tokenizer", f"no tokenizer.json in {folder}", "put the tokenizer's files beside the weights")
    yield ok("checkpoint", f"{folder}: {count} whole weights file(s)")


def damage(path: Path) -> str | None:
    """Why a safetensors file cannot be whole, judged by its header and its length; None if it can."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
        if len(start) < _HEADER.size:
            return f"{size} bytes are too few"
        (length,) = _HEADER.unpack(start)
        if length > size - _HEADER.size:
            return "it ends inside its header"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header cannot be read"
    expected = _HEADER.size + length + max(ends, default=0)
    return None if size == expected else f"it has {size} bytes, its header says {expected}"


def examine_run(source: str) -> Iterator[Finding]:
    """Where a run stands, what resuming would take, and whether its numbers are numbers."""
    from qa_train.report.page import read_metrics
    from qa_train.train.checkpoints import list_folders
    from qa_train.train.checkpoints import problem as fault

    folder = Path(source)
    if not (folder / "config.yaml").is_file():
        yield problem("run", f"{folder} has no config.yaml", "give the folder that run.dir named")
        return
    rows = read_metrics(folder)
    if rows:
        last = rows[-1]
        text = f"{last['step']} steps, last loss {last.get('loss')}"
        wrong = [row["step"] for row in rows if not _finite(row.get("loss", 0.0))]
        if wrong:
            yield problem(
                "metrics",
                f"{text}; not finite at step {wrong[0]}",
                "lower trainer.learning_rate and look at that step's samples",
            )
        else:
            yield ok("metrics", text)
    else:
        yield note("metrics", "no step was logged yet", "see the run's output for why")
    whole = None
    for each in list_folders(folder / "checkpoints"):
        if reason := fault(each):
            yield note("checkpoint", f"{each.name} does not count: {reason}", "nothing to do: resuming skips it")
        elif whole is None:
            whole = each
    if (folder / "finished.json").is_file():
        yield ok("run", f"finished after {json.loads((folder / 'finished.json').read_text())['steps']} steps")
    elif whole is None:
        yield note("run", "no whole checkpoint", "the same command starts it from the beginning")
    else:
        yield ok("run", f"the same command goes on from {whole.name}")


def _finite(value: float | None) -> bool:
    """JSON has no NaN: a loss that is not finite is written as null."""
    return value is not None and math.isfinite(value)
