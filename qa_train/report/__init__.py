"""The report of a run: one self-contained HTML page, and its table as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qa_train.report.document import refuse_foreign
from qa_train.report.page import headline, report_page
from qa_train.report.results import check, markdown_table, merge_samples
from qa_train.utils.atomic import write_text

__all__ = ["headline", "markdown_table", "merge_samples", "write_report"]


def write_report(
    results: dict[str, Any],
    run_dirs: Mapping[str, Path | str] | Sequence[Path | str],
    out: Path | str,
    *,
    below: Path | None = None,
) -> Path:
    """Write the page for ``results`` (schema: ``qa_train.report.results``) and return its path.

    Args:
        results: metrics per stage, seconds per part, samples with clips, environment, commands.
        run_dirs: run folders with a metrics.jsonl, by stage name; a plain list is named by folder.
        out: an .html file, or a folder in which report.html is written.
        below: only clips that lie in this folder, wherever links lead.

    Raises:
        ValueError: results that miss a required field, or a foreign file of that name.
    """
    check(results)
    if not isinstance(run_dirs, Mapping):
        run_dirs = {Path(folder).name: folder for folder in run_dirs}
    out = Path(out)
    path = out if out.suffix == ".html" else out / "report.html"
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, report_page(results, {stage: Path(folder) for stage, folder in run_dirs.items()}, below))
    return path
