"""Make README's images of a finished quickstart: docs/images/loss.svg and docs/images/report.png.

    python scripts/readme_images.py [runs/quickstart] [--browser chromium]

The report is photographed by a Chromium-like browser, if there is one on PATH.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from qa_train.report.charts import HEIGHT, WIDTH, Line, line_chart, smooth

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge")
# Pixels of the page that are shown: as wide as its table needs.
SHOT = (1000, 900)
COLOURS = 64
TITLE = 30
STYLE = """
.grid { stroke: #e2e3e0; } .tick { fill: #5c636e; font-size: 12px; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .curve { fill: none; stroke: #2a5fc4; stroke-width: 2.2; }
.curve.faint { stroke-width: 1; opacity: .35; } .dot { fill: #2a5fc4; }
"""


def loss_curve(run: Path) -> str:
    """The training loss of a run's metrics.jsonl as an SVG of its own: every step, and a moving average."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    average = smooth(losses, 1 - 1 / max(1.0, len(steps) / 30))
    chart = line_chart("pretraining loss", [Line(steps, losses, faint=True), Line(steps, average)], "step")
    chart = chart.replace("<svg ", f'<svg y="{TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + TITLE}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT + TITLE}" rx="8" fill="#ffffff"/>'
        f'<text x="12" y="21" font-size="15" font-weight="650" fill="#1d2025">Pretraining loss '
        f"({len(steps)} steps)</text>{chart}</svg>\n"
    )


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
    (IMAGES / "loss.svg").write_text(loss_curve(options.run / "pretrain"), encoding="utf-8")
    if options.browser is None:
        sys.exit(f"loss.svg is written; for report.png install one of {', '.join(BROWSERS)}, or give --browser")
    photograph(options.run / "report.html", options.browser, IMAGES / "report.png")


if __name__ == "__main__":
    main()
