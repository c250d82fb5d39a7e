"""The dashboard as one HTML page: a table of runs, their curves, and what they answered to held-out questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from qa_train.config import STAGES
from qa_train.dashboard.samples import Clips, answered
from qa_train.report.curves import LAST_STEPS, board_of, last_loss, last_scores, once
from qa_train.report.document import CURVES, render
from qa_train.report.runs import Run


def page(runs: Sequence[Run], title: str, clips: Clips, shown: dict[str, Any] | None = None) -> str:
    """The whole page; it needs no network, and no other file but clips for which it has no room.

    shown: of a page that is served, and asks for new values: its `board`, with ``poll_s`` and ``version``.
    """
    return render(
        "dashboard.html",
        styles=(*CURVES["styles"], "dashboard.css"),
        scripts=(*CURVES["scripts"], "scripts/dashboard.js"),
        board=shown or board(runs),
        title=title,
        answered=[found for run in runs if (found := answered(run, clips))],
    )


def board(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's scripts show, for JSON: the curves, and a row of the table for each run."""
    found = board_of(runs)
    for entry, run in zip(found["runs"], runs, strict=True):
        entry |= _row(run)
    return found | {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "now": time.time(),
        "last_steps": LAST_STEPS,
        "poll_s": 0,
    }


@once
def _row(run: Run) -> dict[str, Any]:
    planned, skipped = run.setting("trainer.max_steps"), run.curve("skipped_samples")[1]
    stages = list(STAGES)
    commit = str(run.starts[-1].get("git_commit") or "")[:8] if run.starts else ""
    starts = f"{len(run.starts)} starts" if len(run.starts) > 1 else ""
    about = (str(run.setting("model.name", "")), f"commit {commit}" if commit else "", starts)
    return {
        "order": stages.index(run.stage) if run.stage in stages else len(stages),
        "about": " · ".join(filter(None, about)),
        "steps": int(run.rows[-1]["step"]) if run.rows else 0,
        "planned": planned if isinstance(planned, int) else None,
        "finished": run.finished,
        "changed": run.changed,
        "loss": last_loss(run),
        "last": last_scores(run),
        # The median: one slow step (a save, a start) does not move it.
        "tokens_per_s": _median(run, "tokens_per_s"),
        "audio_s_per_s": _median(run, "audio_s_per_s"),
        "time": sum(run.curve("seconds")[1]),
        "skipped": skipped[-1] if skipped else None,
        # An evaluation before the first step has a separate row.
        "trained": sum(row["step"] > 0 for row in run.rows),
        "audio_s": sum(run.curve("audio_s")[1]),
    }


def _median(run: Run, key: str) -> float | None:
    values = run.curve(key)[1]
    return median(values) if values else None
