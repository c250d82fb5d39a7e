"""Foreign files at addresses, each read once from its beginning to its end into a shard of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence  # noqa: F401 (pdoc looks up inherited annotations here)
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.clips.make_shards import Job
from data_pipelines.corpora.base import Drop, Request
from data_pipelines.corpora.formats.webdataset import folders_of
from data_pipelines.importing.admission import Admission, Bare, items_of
from data_pipelines.importing.blocklist import ids_of
from data_pipelines.importing.budget import allowed_of
from data_pipelines.importing.import_report import Report
from data_pipelines.importing.import_shard import DROPPED_SUFFIX, Made, clips_of, dropped_of
from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.background import submit
from qa_train.data.stores.folders import companion, write_text
from qa_train.data.stores.remote import remote_version
from qa_train.utils import draws
from qa_train.utils.atomic import json_text
from qa_train.utils.masking import masked, without_query

# Beside a shard: the number of its records, the reader's notes, and ids for purpose=eval.
TOLD_SUFFIX = ".streamed.json"


@dataclass(frozen=True)
class StreamJob(Job):
    """A shard of the file that ``request`` names; ``most``: of its first so many records."""

    request: Request
    admission: Admission
    most: int | None = None

    @property
    def complete(self) -> bool:
        """A shard with its index; or none, when every sample was skipped."""
        return companion(self.path, TOLD_SUFFIX).exists() and (super().complete or not told_of(self.path)[0])

    def at_most(self, most: int) -> StreamJob:
        """The same of the first ``most`` records only."""
        return replace(self, most=most, arguments=(*self.arguments, most))

    def version(self) -> str:
        """What a file that takes the place of this one differs in. OSError where nobody tells."""
        (file,) = self.request.paths
        if "://" not in file:
            found = Path(file).stat()
            return f"{found.st_size} {found.st_mtime_ns}"
        return remote_version(file, replace(self.request.storage, retries=0))

    def write(self) -> int:
        """Write the shard, its skipped samples, and what else is known of it; returns the number of its records.

        Raises:
            ValueError: the file cannot be read to its end.
        """
        _, audio, max_duration_s, *_ = self.arguments
        # Names are those of this file alone.
        admission = replace(self.admission, _seen={})
        corpus, purpose = admission.corpus, admission.purpose
        # Before it is read: one that is replaced meanwhile is read again.
        version = ""
        with suppress(OSError):
            version = self.version()
        made, ids, bare = Made(sys.maxsize), list[str](), Bare()
        try:
            with ShardWriter(self.path, max_samples=1 << 40, max_bytes=1 << 50) as writer:
                for found in items_of(corpus, self.request):
                    entry = admission.judge(found)
                    if isinstance(entry, Drop):
                        made.drop(entry.name, entry.reason, entry.detail, error=not entry.filter)
                        continue
                    bare.look(entry)
                    ids += ids_of(corpus.name, entry.item) if purpose == "eval" else ()
                    with made.counting(entry.key):
                        places, storage = list(entry.item.audio), self.request.storage
                        kinds, clips = clips_of(places, audio, max_duration_s, storage, joined=entry.item.joined)
                        writer.write(entry.key, entry.record, clips, SAMPLE_RATE, extension=kinds)
                    if made.number == self.most:
                        break
                indexes = writer.close()
        except OSError as error:
            raise ValueError(masked(error)) from error
        made.note(problem for index in indexes for problem in index.problems)
        made.save(self.path)
        number = sum(map(len, indexes))
        told = {"made": number, "version": version, "notes": self.request.notes + bare.notes(), "ids": ids}
        write_text(companion(self.path, TOLD_SUFFIX), json_text(told) + "\n")
        return number


def stream_jobs(
    files: Sequence[str], admission: Admission, request: Request, out: Path, *, audio: str, max_duration_s: float
) -> list[StreamJob]:
    """One job for each file. ``OUT/listing`` names the files, without their signatures."""
    (out / "listing").mkdir(parents=True, exist_ok=True)
    rules = {
        name: value for name, value in vars(admission).items() if name[0] != "_" and name not in ("corpus", "block")
    }
    rules |= {"columns": request.columns, "block": draws.digest(sorted(admission.block.ids)).hex()}
    jobs = []
    folders = folders_of([*map(without_query, files)])
    for number, (file, folder) in enumerate(zip(files, folders, strict=True)):
        name = f"{admission.prefix}-{number:05d}"
        write_text(out / "listing" / f"{name}.jsonl", json.dumps({"file": masked(file)}) + "\n")
        place = without_query(file)
        known = json.dumps(rules | ({"part": folder} if folder else {}), sort_keys=True)
        what = (place if place.endswith(".tar") else file, audio, max_duration_s, known)
        one = replace(request, paths=(file,), notes=[], part=folder)
        jobs.append(StreamJob(out / f"{name}.tar", admission.corpus.read, what, 1, one, admission))
    return jobs


def forget_changed(jobs: Sequence[StreamJob]) -> list[str]:
    """Make finished shards whose files were replaced since unfinished; notes of those that could not be compared."""
    asked = [(job, submit(job.version)) for job in jobs if job.complete]
    unknown: list[str] = []
    for job, answer in asked:
        try:
            version = None if unknown else answer.result()
        except OSError as error:
            # A server that is gone, or a signature that has expired: the others are not waited for.
            unknown.append(masked(error))
        else:
            # An earlier version of this program did not note it, and a server may not have told.
            if version and (told_of(job.path)[1].get("version") or version) != version:
                companion(job.path, TOLD_SUFFIX).unlink()
    if not unknown:
        return []
    for _, answer in asked:
        answer.cancel()
    return [f"whether the files of {len(asked)} finished shards were replaced is not known: {unknown[0]}"]


def told_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Records of the shard at ``path``, and what its job noted."""
    told = json.loads(companion(path, TOLD_SUFFIX).read_text(encoding="utf-8"))
    return told["made"], told


class Tally:
    """Counts the files of a streamed import as they are finished, for its report.

    The error budget is that of as many samples as all files have if they are like those that are finished.
    """

    def __init__(self, report: Report, ids: list[str], files: int, error_budget: float, most: int | None) -> None:
        """``ids`` receives those of the records; ``most``: records that are wanted."""
        self.left = most
        self._report, self._ids, self._files, self._budget = report, ids, files, error_budget
        self._finished = 0
        self._notes: dict[str, list[str]] = {}

    def __call__(self, job: Job) -> None:
        """Count a finished file. ValueError beyond the budget."""
        report = self._report
        made, told = told_of(job.path)
        self._finished += 1
        self.left = None if self.left is None else self.left - made
        self._ids.extend(told["ids"])
        for note in told["notes"]:
            self._notes.setdefault(note.split(":")[0], []).append(note)
        for entry in dropped_of(job.path):
            report.drop(entry["key"], entry["reason"], entry["detail"])
            report.bad += entry["error"]
            report.listed += entry["error"]
        report.listed += made
        expected = report.listed if self.left is not None else report.listed * self._files // self._finished
        if report.bad > (allowed := allowed_of(self._budget, expected)):
            raise ValueError(
                f"{report.bad} of {report.listed} samples cannot be used ({self._finished} of {self._files} files), "
                f"error_budget={self._budget:g} allows {allowed}: see {job.path.parent}/*{DROPPED_SUFFIX}; repair "
                f"them, or raise error_budget\n{report.text()}"
            )

    def notes(self) -> list[str]:
        """What the reader noted, of several files once."""
        return [
            several[0] + (f"; the like in {len(several)} files" if len(several) > 1 else "")
            for several in self._notes.values()
        ]
