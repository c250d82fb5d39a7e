"""`qa-train doctor`: is this machine ready, and are these files sound? Every finding comes with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qa_train.config import StorageConfig
from qa_train.doctor.finding import Finding
from qa_train.utils.progress import counted
from qa_train.utils.terminal import layout


@dataclass
class DoctorConfig:
    """Options of `qa-train doctor`."""

    # A run folder, one of its checkpoints, or a Hugging Face folder.
    checkpoint: str | None = None
    # Compare its files with the checksums in its manifest, if it has one.
    verify: bool = True
    # Shards, a folder of shards or a glob; several joined by commas.
    data: str | None = None
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
    # A run folder: can it be resumed?
    run: str | None = None


def doctor(options: DoctorConfig) -> int:
    """Check this machine and the given files; every finding says what to do.

    The exit code is 1 if there is a problem.
    """
    page = layout()
    problems = notes = 0
    for finding in _examine(options):
        print(finding.shown(page), flush=True)
        problems += finding.state == "problem"
        notes += finding.state == "note"
    print(f"\n{counted(problems, 'problem')}, {counted(notes, 'note')}")
    return 1 if problems else 0


def _examine(options: DoctorConfig) -> Iterator[Finding]:
    from qa_train.doctor import environment, files, network

    examinations: list[Iterable[Finding]] = [environment.examine(options.run or "."), network.examine()]
    if options.data is not None:
        examinations.append(files.examine_data(options.data.split(","), options.storage))
    if options.checkpoint is not None:
        examinations.append(files.examine_checkpoint(options.checkpoint, verify=options.verify))
    if options.run is not None:
        examinations.append(files.examine_run(options.run))
    for each in examinations:
        yield from each
