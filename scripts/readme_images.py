"""Make README's images of a finished quickstart: docs/images/loss.svg and docs/images/report.png.

    python scripts/readme_images.py [runs/quickstart] [--browser chromium]

The report is photographed by a Chromium-like browser, if there is one on PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from qa_train.report.runs import find_runs

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge")
# Pixels of the page that are shown: as wide as its table needs.
SHOT = (1000, 900)
COLOURS = 64


def loss_curve(run: Path, out: Path) -> None:
    """The training loss of a run's metrics.jsonl as an SVG: every step, and the mean of those around it."""
    (found,) = find_runs([run])
    steps, losses = found.curve("loss")
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


def photograph(page: Path, browser: str, out: Path) -> None:
    """The top of an HTML page as a small PNG."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--window-size={SHOT[0]},{SHOT[1]}", f"--screenshot={shot}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(shot).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/quickstart"))
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    options = parser.parse_args()
    loss_curve(options.run / "pretrain", IMAGES / "loss.svg")
    if options.browser is None:
        sys.exit(f"loss.svg is written; for report.png install one of {', '.join(BROWSERS)}, or give --browser")
    photograph(options.run / "report.html", options.browser, IMAGES / "report.png")


if __name__ == "__main__":
    main()
