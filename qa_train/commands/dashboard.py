"""`qa-train dashboard RUNS_DIR`: runs shown and compared on one page, made from their files alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from qa_train.utils.atomic import write_text


@dataclass
class DashboardConfig:
    """Options of `qa-train dashboard`."""

    # The page; default: dashboard.html in the first folder.
    out: str | None = None
    # Of the page.
    title: str = "Runs"
    # MiB of clips embedded in the page; the rest is linked to the run folders.
    audio_mib: float = 8.0
    # Replace an existing file that is not a dashboard page.
    overwrite: bool = False


def dashboard(paths: list[str], options: DashboardConfig) -> int:
    """Show and compare all runs below the given folders on one offline page.

    Raises:
        ValueError: no run found.
    """
    from qa_train.dashboard.overview import page
    from qa_train.dashboard.samples import Clips
    from qa_train.report.document import refuse_foreign
    from qa_train.report.runs import find_runs

    folders = [Path(path) for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"dashboard: {folder} is not a folder")
    runs = find_runs(folders)
    if not runs:
        raise ValueError(f"dashboard: no metrics.jsonl below {', '.join(map(str, folders))}: give a folder of runs")
    out = Path(options.out) if options.out else folders[0] / "dashboard.html"
    refuse_foreign(out, overwrite=options.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    clips = Clips(out, options.audio_mib)
    write_text(out, page(runs, options.title, clips))
    print(f"{out}: {len(runs)} run(s)")
    if clips.refused:
        shown = ", ".join(clips.refused[:3]) + (" ..." if len(clips.refused) > 3 else "")
        print(f"{len(clips.refused)} clip(s) not shown: no Ogg files inside their run folder: {shown}", file=sys.stderr)
    return 0
