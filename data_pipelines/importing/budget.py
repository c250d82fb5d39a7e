"""The error budget: how much of what is asked for may be unusable, over all shards of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.clips.make_shards import RECIPE_SUFFIX, Job, make
from data_pipelines.importing.import_report import Report
from data_pipelines.importing.import_shard import BAD, DROPPED_SUFFIX, CountedJob, dropped_of
from qa_train.data.stores.folders import companion
from qa_train.jobs.executor import Engine


def allowed_of(share: float, total: int) -> int:
    """How many of ``total`` may be unusable: at least one, so that a small set does not stop at it, or with 0 none."""
    return max(1, int(share * total)) if share else 0


def lacking(jobs: Sequence[Job], *, retry_bad: bool) -> list[Job]:
    """With ``retry_bad``, the shards that lack recordings."""
    return [job for job in jobs if retry_bad and any(entry["error"] for entry in dropped_of(job.path))]


def forget_bad(jobs: Sequence[Job], *, retry_bad: bool) -> None:
    """Have the shards made again that are `lacking`."""
    for job in lacking(jobs, retry_bad=retry_bad):
        companion(job.path, RECIPE_SUFFIX).unlink(missing_ok=True)


def make_within_budget(
    jobs: Sequence[CountedJob], report: Report, engine: Engine, *, error_budget: float, retry_bad: bool
) -> None:
    """Make the shards; adds what they dropped to the report. Raises ValueError beyond the error budget."""
    total = sum(job.num_clips for job in jobs) + report.bad
    allowed = allowed_of(error_budget, total)
    jobs = [replace(job, max_bad=allowed - report.bad) for job in jobs]
    forget_bad(jobs, retry_bad=retry_bad)

    def count(bad: int) -> None:
        report.bad += bad
        if report.bad > allowed:
            raise ValueError(
                f"{report.bad} of {total} recordings cannot be used, error_budget={error_budget:g} allows "
                f"{allowed}: see {jobs[0].path.parent}/*{DROPPED_SUFFIX}; repair them, or raise error_budget\n"
                f"{report.text()}"
            )

    def tally(job: Job) -> None:
        dropped = list(dropped_of(job.path))
        for entry in dropped:
            report.drop(entry["key"], entry["reason"], entry["detail"])
        count(sum(entry["error"] for entry in dropped))

    def lost(job: Job, why: str) -> int:
        for _ in range(job.num_clips):
            report.drop(job.path.name, "crash", why)
        count(job.num_clips)
        return 0

    try:
        make(jobs, engine=engine, ready=tally, died=lost)
    except ValueError as error:
        if BAD not in str(error):
            raise
        raise ValueError(f"{error} (error_budget={error_budget:g}); repair them, or raise error_budget") from error
