"""The dashboard as one HTML page: a table of runs, their curves, and what they answered to held-out questions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from qa_train.config import STAGES
from qa_train.dashboard.samples import Clips, answered
from qa_train.report.curves import LAST_STEPS, board_of, curves_of, last_loss
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


def board(runs: Sequence[Run], kept: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What the page's scripts show, for JSON: the curves, and a row of the table for each run.

    kept: of a page that is open: run -> how many of its first points it has.
    """
    found = board_of(runs, kept)
    for entry, run in zip(found["runs"], runs, strict=True):
        entry |= _row(run)
    return found | {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "now": time.time(),
        "last_steps": LAST_STEPS,
        "poll_s": 0,
    }


def _row(run: Run) -> dict[str, Any]:
    planned, points, stages = run.setting("trainer.max_steps"), curves_of(run).points, list(STAGES)
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
        "last": points.scores,
        "tokens_per_s": points.median("tokens_per_s"),
        "audio_s_per_s": points.median("audio_s_per_s"),
        "time": points.sums["seconds"],
        "skipped": points.last.get("skipped_samples"),
        "trained": points.trained,
        "audio_s": points.sums["audio_s"],
    }
