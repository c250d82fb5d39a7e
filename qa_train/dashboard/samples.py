"""What a run answered to held-out questions as it trained, with the clips to hear."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qa_train.report.document import ogg_uri
from qa_train.report.runs import Run

_STEP = re.compile(r"step-(\d+)")


class Clips:
    """Sources of players: embedded sound until ``mib`` are used up; later ones link to their file.

    A run folder may come from anyone, and the page may be shared: a clip is embedded or linked only if it is an Ogg
    file inside that run folder, with links resolved. ``refused`` names the others.

    page: the file that the page will be; None where it is served: a clip is then ``clips/N``, key N of ``served``.
    """

    def __init__(self, page: Path | None, mib: float) -> None:
        self._folder = page.parent.resolve() if page is not None else None
        self._room = mib * 2**20
        self.refused: list[str] = []
        self.served: dict[Path, int] = {}

    def source(self, run: Path, name: str) -> dict[str, str]:
        """``src`` of a player of the file ``held_out/NAME`` of a run, or ``why`` there is none."""
        try:
            path = (run / "held_out" / name).resolve()
            inside = path.is_relative_to(run.resolve())
            there = inside and path.is_file()
            ogg = there and is_ogg(path)
        except (OSError, ValueError, RuntimeError):  # no rights, a null byte, a circle of links
            inside = there = ogg = False
        if not inside or (there and not ogg):
            self.refused.append(f"{run}: {name!r}")
            return {"src": "", "why": f"{name} is not a clip of this run: not shown"}
        if not there:
            return {"src": "", "why": f"{path.name} is gone"}
        if self._folder is None:
            # The same number for every page that is open.
            return {"src": f"clips/{self.served.setdefault(path, len(self.served))}"}
        size = path.stat().st_size
        if size > self._room:
            return {"src": quote(os.fsencode(os.path.relpath(path, self._folder)))}
        self._room -= size
        return {"src": ogg_uri(path.read_bytes())}


def is_ogg(path: Path) -> bool:
    """Whether a file begins like an Ogg file."""
    with path.open("rb") as file:
        return file.read(4) == b"OggS"


def shown_steps(run: Run) -> list[int]:
    """The first evaluation during training, the one in the middle, and the last."""
    found = (_STEP.fullmatch(path.name) for path in (run.folder / "held_out").glob("step-*"))
    steps = sorted(int(match[1]) for match in found if match)
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def answered(run: Run, clips: Clips) -> dict[str, Any]:
    """``rows``: questions of each held-out set with clip, reference, and the answers at three ``steps``; {} if none."""
    steps = shown_steps(run)
    rows = [_row(run, question, steps, clips) for question in _questions(run, steps)]
    return {"name": run.name, "steps": steps, "rows": rows} if rows else {}


def _questions(run: Run, steps: list[int]) -> Iterator[tuple[dict[str, Any], dict[int, dict[str, Any]], str]]:
    """(the question, its line at each step, the set's name) of every question whose clip was kept."""
    lines = {step: _lines(run.folder / "held_out" / f"step-{step}") for step in steps}
    for (name, key), row in (lines[steps[-1]] if steps else {}).items():
        if "clip" in row:
            yield row, {step: found[name, key] for step, found in lines.items() if (name, key) in found}, name


def _lines(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(set, id of the question) -> its line; a damaged line is skipped, and does not hide the others."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*/predictions.jsonl")):
        # Not splitlines(): an answer may hold other line separators, which JSON does not escape.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                found[path.parent.name, str(row["id"])] = row
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return found


def _row(
    run: Run, question: tuple[dict[str, Any], dict[int, dict[str, Any]], str], steps: list[int], clips: Clips
) -> dict[str, Any]:
    row, answers, name = question
    wanted = row.get("gt")
    return {
        "prompt": str(row.get("prompt", "")),
        "set": name,
        "clip": clips.source(run.folder, str(row["clip"])),
        "wanted": " / ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted),
        "answers": [_answer(answers[step]) if step in answers else None for step in steps],
    }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    right = row.get("right")
    return {"right": right if isinstance(right, bool) else None, "text": str(row.get("prediction", ""))}
