"""What a run answered to held-out questions as it trained, with the clips to hear."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qa_train.dashboard.runs import Run
from qa_train.report.player import ogg_uri, player

_STEP = re.compile(r"step-(\d+)")
_MARK = {True: ' class="right"', False: ' class="wrong"', None: ""}
_SAID = {True: "right: ", False: "wrong: ", None: ""}


class Clips:
    """Players with embedded sound until ``mib`` are used up; later ones link to their file. A run folder may come from
    anyone, and the page may be shared: a clip is embedded or linked only if it is an Ogg file inside that run folder,
    with links resolved. ``refused`` names the others.
    """

    def __init__(self, page: Path, mib: float) -> None:
        self._folder = page.parent.resolve()
        self._room = mib * 2**20
        self.refused: list[str] = []

    def player(self, run: Path, name: str) -> str:
        """The player of the file ``held_out/NAME`` of a run, or a remark that it is gone or refused."""
        try:
            path = (run / "held_out" / name).resolve()
            inside = path.is_relative_to(run.resolve())
            there = inside and path.is_file()
            ogg = there and _is_ogg(path)
        except (OSError, ValueError, RuntimeError):  # no rights, a null byte, a circle of links
            inside = there = ogg = False
        if not inside or (there and not ogg):
            self.refused.append(f"{run}: {name!r}")
            return f"<small>{escape(name)} is not a clip of this run: not shown</small>"
        if not there:
            return f"<small>{escape(path.name)} is gone</small>"
        size = path.stat().st_size
        if size > self._room:
            return player(quote(os.path.relpath(path, self._folder)))
        self._room -= size
        return player(ogg_uri(path.read_bytes()))


def _is_ogg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"OggS"


def shown_steps(run: Run) -> list[int]:
    """The first evaluation during training, the one in the middle, and the last."""
    found = (_STEP.fullmatch(path.name) for path in (run.folder / "held_out").glob("step-*"))
    steps = sorted(int(match[1]) for match in found if match)
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def samples_table(run: Run, clips: Clips) -> str:
    """Questions of each held-out set with player, reference, and the answers of three evaluations; "" without any."""
    steps = shown_steps(run)
    rows = "".join(_row(run, question, steps, clips) for question in _questions(run, steps))
    if not rows:
        return ""
    names = ["question", "clip", "reference", *(f"step {step:,}" for step in steps)]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="samples"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


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
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _row(
    run: Run, question: tuple[dict[str, Any], dict[int, dict[str, Any]], str], steps: list[int], clips: Clips
) -> str:
    row, answers, name = question
    wanted = row.get("gt")
    wanted = " / ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
    cells = [
        ("clip", "", clips.player(run.folder, str(row["clip"]))),
        ("reference", "", escape(wanted)),
        *(_answer(step, answers.get(step)) for step in steps),
    ]
    body = "".join(f'<td data-label="{label}"{mark}><span>{text}</span></td>' for label, mark, text in cells)
    return f"<tr><th scope='row'>{escape(str(row.get('prompt', '')))}<small>{escape(name)}</small></th>{body}</tr>"


def _answer(step: int, row: dict[str, Any] | None) -> tuple[str, str, str]:
    """(label, class, text) of one answer: colour is not the only sign of right and wrong."""
    label = f"step {step:,}"
    if row is None:
        return label, "", "–"
    right = row.get("right")
    right = right if isinstance(right, bool) else None
    said = escape(str(row.get("prediction", ""))) or "<i>(empty answer)</i>"
    return label, _MARK[right], f'<small class="mark">{_SAID[right]}</small>{said}' if _SAID[right] else said
