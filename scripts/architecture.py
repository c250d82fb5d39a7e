"""Draw docs/images/architecture.svg and the table of docs/architecture.md from the imports of the code.

    python scripts/architecture.py

Who may import whom is read from the table that tests/test_architecture.py holds the code to; a package stands above
all that it imports. The path of a sample names one function per step, and each must exist.
"""

from __future__ import annotations

import ast
import itertools
import sys
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_architecture import MAY_IMPORT  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by scripts/architecture.py -->", "<!-- end -->"

# What a package is for, in at most 20 letters; a package without an entry is an error.
PURPOSES = {
    "cli": "qa-train COMMAND",
    "command_line": "table, help",
    "commands": "one file per command",
    "callbacks": "held-out sets",
    "export": "to Hugging Face",
    "doctor": "finds faults",
    "preferences": "pairs for DPO",
    "train": "stages, checkpoints",
    "eval": "benchmarks, scores",
    "infer": "generation, server",
    "planner": "memory, time, cost",
    "dashboard": "compares runs",
    "model": "encoder + LLM",
    "report": "HTML report page",
    "data_pipelines": "corpora, builders",
    "data": "shards to batches",
    "config": "typed settings",
    "llm": "client, judge",
    "jobs": "processes, Ray",
    "utils": "files, draws",
}


class Step(NamedTuple):
    """One step of a sample's path: what happens, and the function where it does."""

    title: str
    note: str
    file: str
    name: str


STEPS = [
    Step("Shards", "tar + index: read by byte range", "data/shards/row_reader.py", "RowReader"),
    Step("Order", "batch k = f(index, mixture, seed)", "data/order/batch_plan.py", "Plan"),
    Step("Text", "prompt, chat template, labels", "data/text/template.py", "encode"),
    Step("Audio", "16 kHz, log-mel, real length", "data/audio/mel.py", "log_mel"),
    Step("Batch", "tokens and frames end to end", "data/batches.py", "Batches"),
    Step("Encoder", "Whisper: 25 tokens per second", "model/encoders/whisper_network.py", "UnpaddedQwen2AudioEncoder"),
    Step("LLM", "audio tokens among text tokens", "model/unpadded.py", "UnpaddedQwen2AudioModel"),
    Step("Loss", "sum / tokens of the global step", "model/layers/head.py", "supervised_loss"),
]

WIDTH, MARGIN, GAP = 760, 20, 14
INK, SOFT, RULE, PAPER = "#1d2025", "#565e69", "#c9ccd1", "#ffffff"
PATH_FILL, PATH_LINE = "#e8f0fe", "#2a5fc4"
# On a sample's path; for using a model; around both.
COLOURS = {
    **dict.fromkeys(("data", "model", "train"), ("#e8f0fe", "#2a5fc4")),
    **dict.fromkeys(("eval", "infer", "preferences", "callbacks", "llm"), ("#e6f4ea", "#1b7a4b")),
}
OTHER = ("#f4f2ee", "#8a8173")


def package(room: str) -> str:
    """The package of a room of the table: ``data`` of ``data.audio``."""
    return room.partition(".")[0]


def packages() -> dict[str, set[str]]:
    """package -> the packages that it may import. ``qa_train`` itself lends its version only, which is no arrow."""
    graph: dict[str, set[str]] = {}
    for room, others in MAY_IMPORT.items():
        graph.setdefault(package(room), set()).update(package(other) for other in others if other != "cli")
    # Every package may import utils (tests/test_architecture.py).
    return {name: (others | {"utils"}) - {name} if name != "utils" else set() for name, others in graph.items()}


def reachable(graph: dict[str, set[str]], name: str) -> set[str]:
    """All packages below ``name``."""
    return graph[name].union(*(reachable(graph, other) for other in graph[name]))


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Packages by the longest way down, the top floor first; one that no other imports stands a floor higher."""

    @cache
    def height(name: str) -> int:
        return 1 + max((height(other) for other in graph[name]), default=-1)

    top = max(map(height, graph))
    used = set().union(*graph.values())
    floor = {name: height(name) + (name not in used and height(name) < top) for name in graph}
    return [[name for name in graph if floor[name] == each] for each in range(top, -1, -1)]


def need(name: str) -> float:
    """Width of a package's box: letters are at most 0.66 of their size wide in bold, 0.58 in regular."""
    return max(0.66 * 21 * len(name), 0.58 * 17 * len(PURPOSES[name])) + 12


def widths(boxes: list[str], room: float) -> list[float]:
    """Widths of the boxes of a floor: equal ones, unless a text needs more.

    Raises:
        SystemExit: the texts do not fit on the floor.
    """
    needs = [need(name) for name in boxes]
    if sum(needs) > room:
        sys.exit(f"{', '.join(boxes)} need {sum(needs):.0f} of {room:.0f}: shorten their PURPOSES")
    equal = min(226.0, room / len(boxes))
    return [equal] * len(boxes) if max(needs) <= equal else [each + (room - sum(needs)) / len(boxes) for each in needs]


def arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way through other packages stands for."""
    return [
        (name, other)
        for name in graph
        for other in sorted(graph[name])
        if not any(other in reachable(graph, third) for third in graph[name] - {other})
    ]


def picture() -> str:
    """The SVG: a sample's path above, the packages below."""
    path, bottom = _path(MARGIN)
    house, bottom = _house(bottom + 40)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + MARGIN}" role="img" '
        f'aria-label="The path of a sample from tar to loss, and which package may import which" '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif">'
    )
    marker = (
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{PATH_LINE}"/></marker></defs>'
    )
    paper = f'<rect width="{WIDTH}" height="{bottom + MARGIN}" rx="12" fill="{PAPER}"/>'
    return "\n".join([opening, marker, paper, *path, *house, "</svg>"]) + "\n"


def _path(top: int) -> tuple[list[str], int]:
    """Two columns of steps, read down the left one and then down the right one; and where they end."""
    drawn = [_text(MARGIN, top + 24, "The path of a sample, from tar to loss", 24, INK, bold=True)]
    width, height, between = (WIDTH - 2 * MARGIN - 44) / 2, 96, 22
    top += 44
    rows = len(STEPS) // 2
    for i, step in enumerate(STEPS):
        _check(step)
        x, y = MARGIN + (i // rows) * (width + 44), top + (i % rows) * (height + between)
        drawn.append(_box(x, y, width, height, PATH_FILL, PATH_LINE))
        drawn.append(_text(x + 14, y + 30, f"{i + 1}  {step.title}", 23, INK, bold=True))
        drawn.append(_text(x + 14, y + 57, step.note, 19, INK))
        drawn.append(_text(x + 14, y + 82, step.file, 15.5, SOFT, mono=True))
        if i % rows < rows - 1:
            drawn.append(_arrow(f"M{x + width / 2:g} {y + height + 2} v{between - 4}"))
    # From the foot of the left column to the head of the right one.
    x, foot, head = MARGIN + width, top + (rows - 1) * (height + between) + height / 2, top + height / 2
    drawn.append(_arrow(f"M{x + 2:g} {foot:g} h20 V{head:g} h18"))
    return drawn, top + rows * height + (rows - 1) * between


def _house(top: int) -> tuple[list[str], int]:
    """The floors of the packages, with a line for every import that a longer way does not imply."""
    drawn = [_text(MARGIN, top + 24, "Who may import whom: downwards along the lines", 24, INK, bold=True)]
    drawn.append(_text(MARGIN, top + 52, "blue: the path above; green: uses a model", 17, SOFT))
    height, between = 70, 44
    top += 76
    graph = packages()
    rows, chains = _rows(graph)
    places: dict[str, tuple[float, float, float]] = {}
    for row in rows:
        boxes = [name for name in row if name in graph]
        gaps = GAP * (len(row) - 1)
        wide = dict(zip(boxes, widths(boxes, WIDTH - 2 * MARGIN - gaps), strict=True))
        left = (WIDTH - sum(wide.values()) - gaps) / 2
        for name in row:
            own = wide.get(name, 0.0)
            places[name] = (left, top, own)
            left += own + GAP
        top += height + between
    for chain in chains:
        colour = COLOURS.get(chain[0], OTHER)[1]
        steps = [f"M{_middle(places[chain[0]]):.0f} {places[chain[0]][1] + height:.0f}"]
        for name in chain[1:]:
            x, y, _ = places[name]
            before = float(steps[-1].split()[-2].lstrip("MLC")), float(steps[-1].split()[-1])
            x = _middle(places[name])
            half = (y - before[1]) / 2
            steps.append(f"C{before[0]:.0f} {before[1] + half:.0f} {x:.0f} {y - half:.0f} {x:.0f} {y:.0f}")
            if name not in graph:
                steps.append(f"L {x:.0f} {y + height:.0f}")
        drawn.append(f'<path d="{" ".join(steps)}" fill="none" stroke="{colour}" stroke-width="2" opacity="0.75"/>')
    for name in graph:
        x, y, width = places[name]
        drawn.append(_box(x, y, width, height, *COLOURS.get(name, OTHER)))
        drawn.append(_text(x + width / 2, y + 31, name, 21, INK, bold=True, middle=True))
        drawn.append(_text(x + width / 2, y + 56, PURPOSES[name], 17, INK, middle=True))
    return drawn, top - between


def _rows(graph: dict[str, set[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Packages by floor from left to right, with a gap where a line passes; and the way of each line.

    Neighbours change places as long as that makes the lines shorter.
    """
    rows = floors(graph)
    floor = {name: i for i, row in enumerate(rows) for name in row}
    chains = []
    for user, used in arrows(graph):
        passed = [f"{user}>{used}@{i}" for i in range(floor[user] + 1, floor[used])]
        for name in passed:
            rows[int(name.rpartition("@")[2])].append(name)
        chains.append([user, *passed, used])
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]

    def length() -> float:
        # A box is as wide as some twelve gaps.
        at = {}
        for row in rows:
            gaps = [12 if name in graph else 1 for name in row]
            for i, name in enumerate(row):
                at[name] = sum(gaps[:i]) + gaps[i] / 2 - sum(gaps) / 2
        return sum(abs(at[a] - at[b]) ** 1.5 for a, b in pairs)

    shortest, better = length(), True
    while better:
        better = False
        for row in rows:
            for i, j in itertools.combinations(range(len(row)), 2):
                row[i], row[j] = row[j], row[i]
                if (now := length()) < shortest - 1e-9:
                    shortest, better = now, True
                else:
                    row[i], row[j] = row[j], row[i]
    return rows, chains


def _middle(place: tuple[float, float, float]) -> float:
    return place[0] + place[2] / 2


def _check(step: Step) -> None:
    tree = ast.parse((ROOT / "qa_train" / step.file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if step.name not in names:
        raise SystemExit(f"qa_train/{step.file} has no {step.name}: correct STEPS in scripts/architecture.py")


def _box(x: float, y: float, width: float, height: float, fill: str, line: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="9" fill="{fill}" '
        f'stroke="{line}" stroke-width="1.5"/>'
    )


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{PATH_LINE}" stroke-width="2.5" marker-end="url(#tip)"/>'


def _text(
    x: float, y: float, text: str, size: float, fill: str, *, bold: bool = False, mono: bool = False,
    middle: bool = False,
) -> str:  # fmt: skip
    extra = ' font-weight="650"' if bold else ""
    extra += ' font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"' if mono else ""
    extra += ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{extra}>{escape(text)}</text>'


def table() -> str:
    """The rooms and what each may import, as Markdown."""
    lines = ["| package | may import |", "|---|---|"]
    for room, others in MAY_IMPORT.items():
        lines.append(f"| `{room}` | {', '.join(f'`{other}`' for other in sorted(others)) or '–'} |")
    return "\n".join(lines)


def page() -> str:
    """docs/architecture.md with the table of today between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
