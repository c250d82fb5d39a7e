"""`qa-train dashboard RUNS_DIR`: runs shown and compared on one page, made from their files alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from qa_train.utils.atomic import local, write_text
from qa_train.utils.progress import counted


@dataclass
class DashboardConfig:
    """Options of `qa-train dashboard`."""

    # The page; default: dashboard.html in the first folder.
    out: str | None = None
    # Title of the page.
    title: str = "Runs"
    # MiB of clips embedded in the page; the rest is linked to the run folders.
    audio_mib: float = 8.0
    # Replace an existing file that is not a dashboard page.
    overwrite: bool = False
    # Write nothing: serve the page on this machine, with new values while runs go on.
    serve: bool = False
    # Port of the served page; 0: any free one.
    port: int = 8001


def dashboard(paths: list[str], options: DashboardConfig) -> int:
    """Show and compare all runs below the given folders on one offline page, or on a served one.

    Raises:
        ValueError: no run found, a port that is taken, or options that would be ignored.
    """
    from qa_train.dashboard.overview import page
    from qa_train.dashboard.samples import Clips
    from qa_train.report.document import refuse_foreign
    from qa_train.report.runs import find_runs

    folders = [Path(path) for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"dashboard: {folder} is not a folder")
    if options.serve:
        return _serve(folders, options)
    runs = find_runs(folders)
    if not runs:
        raise ValueError(f"dashboard: no metrics.jsonl below {', '.join(map(str, folders))}: give a folder of runs")
    out = local(options.out, "out") if options.out else folders[0] / "dashboard.html"
    refuse_foreign(out, overwrite=options.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    clips = Clips(out, options.audio_mib)
    write_text(out, page(runs, options.title, clips))
    print(f"{out}: {counted(len(runs), 'run')}")
    if clips.refused:
        shown = ", ".join(clips.refused[:3]) + (" ..." if len(clips.refused) > 3 else "")
        print(f"{len(clips.refused)} clip(s) not shown: no Ogg files inside their run folder: {shown}", file=sys.stderr)
    return 0


def _serve(folders: list[Path], options: DashboardConfig) -> int:
    """Until it is interrupted."""
    from qa_train.dashboard.live import HOST, Live, LiveServer
    from qa_train.utils.loopback import listen

    if options.out is not None or options.overwrite:
        raise ValueError("dashboard: serve=true writes no file: remove out= and overwrite=, or serve=true")
    running = LiveServer(Live(folders, options.title), listen(HOST, options.port, "dashboard"))
    print(f"http://{HOST}:{running.server_port} shows {', '.join(map(str, folders))}; stop with Ctrl-C", flush=True)
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        running.server_close()
    return 0
