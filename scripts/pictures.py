"""Make the pictures of README and the guides, in docs/images, from real runs of the public commands.

    python scripts/pictures.py                       # those of the guides: plan, dashboard, score, chat
    python scripts/pictures.py score chat            # some of them
    python scripts/pictures.py quickstart --run runs/quickstart   # README's two, of a finished quickstart

Commands run in an empty folder. Pages are photographed by a Chromium-like browser.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from qa_train.report.runs import find_runs, is_number

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge")
# Pixels of the page that are shown: as wide as its table needs.
SHOT = (1000, 900)
COLOURS = 64


def loss_curve(run: Path, out: Path) -> None:
    """The training loss of a run's metrics.jsonl as an SVG: every step, and the mean of those around it."""
    (found,) = find_runs([run])
    steps, losses = zip(*((row["step"], row["loss"]) for row in found.rows if is_number(row.get("loss"))), strict=True)
    window = max(1, len(steps) // 30)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    figure = Figure(figsize=(4.2, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#2a5fc4", linewidth=0.6, alpha=0.4)
    axes.plot(steps[window // 2 : window // 2 + len(mean)], mean, color="#2a5fc4", linewidth=1.6)
    axes.set_title(f"Pretraining loss ({len(steps)} steps)", loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e2e3e0")
    axes.spines[:].set_visible(False)
    figure.savefig(out, format="svg", metadata={"Date": None})


def photograph(page: Path | str, browser: str, out: Path, size: tuple[int, int] = SHOT) -> None:
    """The top of an HTML page, a file or an address, as a small PNG."""
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}", "--virtual-time-budget=3000", address],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(shot).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def said(folder: Path, script: str) -> str:
    """What a bash script prints in ``folder``, with this checkout's qa-train."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "WANDB_MODE": "disabled"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def blocks(page: str) -> list[str]:
    """The blocks of a guide that its test runs."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```bash run\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def terminal(text: str, width: int = 100) -> str:
    """Lines of a terminal as an SVG; longer ones end in an ellipsis."""
    lines = [line if len(line) <= width else f"{line[: width - 1]}…" for line in text.rstrip().splitlines()]
    shown = "".join(
        f'<text x="16" y="{24 + 17 * number}" xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    box = '<rect width="100%" height="100%" rx="8" fill="#f6f7f5"/>'
    size = f"0 0 {32 + int(7.3 * width)} {24 + 17 * len(lines)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="DejaVu Sans Mono, Menlo, '
        f'Consolas, monospace" font-size="12" fill="#1d2025">{box}{shown}</svg>\n'
    )


def plan(folder: Path, browser: str) -> None:
    """plan.svg and cluster.svg: the first command of the guides for one card and for a cluster."""
    for page, picture in (("start/one_card.md", "plan.svg"), ("cluster.md", "cluster.svg")):
        command = blocks(page)[0].splitlines()[0]
        text = said(folder, command).partition("\nsource ")[0]
        (IMAGES / picture).write_text(terminal(f"$ {command}\n{text}"), encoding="utf-8")


def dashboard(folder: Path, browser: str) -> None:
    """dashboard.png: two short runs with held-out answers."""
    held = "{speech: {shards: ['${starter:}/speech-test.tar'], task: asr, where: {language: en}, limit: 8}}"
    for rate in ("3e-3", "1e-3"):
        words = ["experiment=smoke", f"run.dir=runs/rate-{rate}", f"trainer.learning_rate={rate}"]
        words += ["trainer.max_steps=60", "evaluation.every=30", "evaluation.max_new_tokens=12"]
        words += [f"+evaluation.sets={held}"]
        said(folder, shlex.join(["qa-train", "pretrain", *words]))
    said(folder, "qa-train dashboard runs out=page.html")
    photograph(folder / "page.html", browser, IMAGES / "dashboard.png")


def score(folder: Path, browser: str) -> None:
    """score.png: the report of the example in docs/extend.md, by a metric of one's own."""
    said(folder, "\n".join(blocks("extend.md")))
    photograph(folder / "scores/report.html", browser, IMAGES / "score.png", (1000, 560))


def chat(folder: Path, browser: str) -> None:
    """chat.png: the page of `qa-train serve`, with a tiny model behind it."""
    said(folder, "qa-train pretrain experiment=smoke run.dir=runs/tiny trainer.max_steps=1")
    server = subprocess.Popen(
        [sys.executable, "-m", "qa_train", "serve", "checkpoint=runs/tiny", "port=0", "device=cpu"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        photograph(address, browser, IMAGES / "chat.png", (1000, 640))
    finally:
        server.terminate()
        server.wait(timeout=30)


GUIDES: dict[str, Callable[[Path, str], None]] = {"plan": plan, "dashboard": dashboard, "score": score, "chat": chat}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"quickstart, {', '.join(GUIDES)}; default: the latter"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished quickstart")
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    options = parser.parse_args()
    if unknown := set(options.names) - {*GUIDES, "quickstart"}:
        parser.error(f"no picture {', '.join(sorted(unknown))}: there are quickstart, {', '.join(GUIDES)}")
    if options.browser is None:
        sys.exit(f"pages are photographed by a browser: install one of {', '.join(BROWSERS)}, or give --browser")
    if "quickstart" in options.names:
        loss_curve(options.run / "pretrain", IMAGES / "loss.svg")
        photograph(options.run / "report.html", options.browser, IMAGES / "report.png")
    for name in options.names or GUIDES:
        if name in GUIDES:
            with tempfile.TemporaryDirectory() as folder:
                GUIDES[name](Path(folder), options.browser)


if __name__ == "__main__":
    main()
