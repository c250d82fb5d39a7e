"""The dashboard and the report in a real browser: drawn, switched off and on, sorted, searched, reached by keyboard."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qa_train.command_line.command_table import run as command
from qa_train.dashboard.live import Live, LiveServer
from qa_train.report import write_report
from qa_train.utils.loopback import listen
from tests.infer.browser import Browser
from tests.report.made_up import results, run_dirs
from tests.test_dashboard import answered, make

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

# Pixels of a chart's canvas that have about the colour of a run.
COLOURED = """((selector, hue) => {
  const canvas = document.querySelector(selector + " canvas");
  if (!canvas) return 0;
  const wanted = getComputedStyle(document.documentElement).getPropertyValue("--h" + hue).trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200 && [r, g, b].reduce((sum, c, k) => sum + Math.abs(data[i + k] - c), 0) < 30) found++;
  return found;
})"""
LOSS = "section[data-stage=pretrain] .chart"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(str(CHROMIUM), tmp_path / "profile")
    try:
        yield made
        assert made.complaints == []
    finally:
        made.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for i, name in enumerate(("a", "b")):
        make(root / name / "pretrain", "pretrain", learning_rate=1e-5 * (i + 1))
        rows = [json.loads(line) for line in (root / name / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        # Apart from each other, so that neither hides the other.
        lines = (json.dumps(row | {"loss": row["loss"] + 2 * i}) + "\n" for row in rows)
        (root / name / "pretrain" / "metrics.jsonl").write_text("".join(lines))
    make(root / "b" / "dpo", "dpo")
    answered(root / "b" / "dpo", clip_bytes=3000)
    return root


def size(browser: Browser, width: int, colours: str = "light") -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}])


def show(browser: Browser, address: str, width: int = 1280, colours: str = "light") -> None:
    size(browser, width, colours)
    browser.call("Page.navigate", url=address)
    browser.wait("document.readyState === 'complete' && typeof Curves === 'object'")
    browser.run(f"document.querySelector({LOSS!r}).scrollIntoView()")


def key(browser: Browser, name: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)


def drawn(browser: Browser, hue: int, chart: str = LOSS) -> int:
    return int(browser.run(f"{COLOURED}({chart!r}, {hue})"))


def test_curves_are_drawn_and_runs_go_off_and_on(browser: Browser, runs: Path) -> None:
    command("dashboard", [str(runs)])
    show(browser, (runs / "dashboard.html").as_uri())
    browser.wait(f"{COLOURED}({LOSS!r}, 0) > 50 && {COLOURED}({LOSS!r}, 1) > 50")
    browser.run("document.querySelector('#runs input[data-run=\"a/pretrain\"]').click()")
    browser.wait(f"{COLOURED}({LOSS!r}, 0) === 0")
    assert drawn(browser, 1) > 50
    # Its other box follows, in every chart; and it comes back.
    assert browser.run("document.querySelector('.chip input[data-run=\"a/pretrain\"]').checked") is False
    browser.run("document.querySelector('.chip input[data-run=\"a/pretrain\"]').click()")
    browser.wait(f"{COLOURED}({LOSS!r}, 0) > 50")


def test_axes_smoothing_and_zoom(browser: Browser, runs: Path) -> None:
    command("dashboard", [str(runs)])
    show(browser, (runs / "dashboard.html").as_uri())
    plot = f"Charts.charts.get(document.querySelector({LOSS!r})).plot"
    browser.wait(f"{plot}?.scales.x.max === 40")
    browser.run("$('axis').value = 'tokens'; $('axis').dispatchEvent(new Event('change'))")
    assert browser.run(f"[{plot}.scales.x.min, {plot}.scales.x.max]") == [900, 36000]
    browser.run("$('axis').value = 'step'; $('axis').dispatchEvent(new Event('change')); $('log').click()")
    assert browser.run(f"{plot}.scales.y.distr") == 3
    browser.run("$('log').click(); $('smoothing').value = 0; $('smoothing').dispatchEvent(new Event('input'))")
    assert browser.run(f"{plot}.series.length") == 3
    browser.run("$('smoothing').value = 3; $('smoothing').dispatchEvent(new Event('input'))")
    # Every step, and the average.
    assert browser.run(f"{plot}.series.length") == 5
    # Drag over a part of it: the other charts of the stage follow, and a button shows all again.
    box = browser.run(f"(({{x, y, width, height}}) => [x, y, width, height])({plot}.over.getBoundingClientRect())")
    left, right, middle = box[0] + box[2] / 4, box[0] + box[2] / 2, box[1] + box[3] / 2
    for kind, x, buttons in (("mouseMoved", left, 0), ("mousePressed", left, 1), ("mouseMoved", right, 1),
                             ("mouseReleased", right, 0)):  # fmt: skip
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=middle, button="left", buttons=buttons, clickCount=1)
    browser.wait(f"{plot}.scales.x.max < 25 && {plot}.scales.x.min > 8")
    # The values under the cursor.
    assert "b/pretrain" in browser.wait(f"document.querySelector({LOSS + ' .tip:not([hidden])'!r})?.innerText")
    browser.run("$('unzoom').click()")
    browser.wait(f"{plot}.scales.x.max === 40")
    # The same by keyboard.
    browser.run(f"document.querySelector({LOSS!r}).focus()")
    key(browser, "ArrowRight", 39)
    assert "optimizer steps" in browser.wait(f"document.querySelector({LOSS + ' .tip:not([hidden])'!r})?.innerText")
    key(browser, "+", 187)
    browser.wait(f"{plot}.scales.x.max < 40")
    key(browser, "Escape", 27)
    browser.wait(f"{plot}.scales.x.max === 40")


def test_the_table_is_sorted_and_searched(browser: Browser, runs: Path) -> None:
    command("dashboard", [str(runs)])
    show(browser, (runs / "dashboard.html").as_uri())
    names = "[...document.querySelectorAll('#runs .name')].map((e) => e.textContent)"
    assert browser.run(names) == ["a/pretrain", "b/pretrain", "b/dpo"]
    assert "loss, mean of last 20 steps" in browser.run("document.querySelector('#runs thead').innerText")
    click = "document.querySelector('[data-sort=loss]').click()"
    browser.run(click)
    assert browser.run(f"{names}.at(-1)") == "b/pretrain"
    assert browser.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    browser.run(click)
    assert browser.run(f"{names}[0]") == "b/pretrain"
    browser.run("$('search').value = 'dpo'; $('search').dispatchEvent(new Event('input'))")
    assert browser.run(names) == ["b/dpo"]
    browser.run("$('find').value = 'source3'; $('find').dispatchEvent(new Event('input'))")
    assert browser.run(
        "[...document.querySelectorAll('figure:not([hidden])')].every((e) => e.innerText.includes('source3'))"
    )


def test_many_runs_keep_apart(browser: Browser, tmp_path: Path) -> None:
    for i in range(10):
        make(tmp_path / "runs" / f"r{i}" / "pretrain", "pretrain", steps=3)
        os.utime(tmp_path / "runs" / f"r{i}" / "pretrain" / "metrics.jsonl", (1e9 + i, 1e9 + i))
    command("dashboard", [str(tmp_path / "runs")])
    show(browser, (tmp_path / "runs" / "dashboard.html").as_uri())
    # The newest are on; no two look the same.
    assert (
        browser.run("[...document.querySelectorAll('.chip input')].map((e) => e.checked)") == [False] * 2 + [True] * 8
    )
    looks = browser.run(
        "[...document.querySelectorAll('.chip .swatch')].map((e) => getComputedStyle(e)).map((style) =>"
        " [style.backgroundColor, style.backgroundImage])"
    )
    assert len({tuple(look) for look in looks}) == 10
    browser.run("$('all').click()")
    assert browser.run("document.querySelectorAll('#runs input:checked').length") == 10


def test_the_keyboard_reaches_every_control(browser: Browser, runs: Path) -> None:
    command("dashboard", [str(runs)])
    show(browser, (runs / "dashboard.html").as_uri())
    seen = set()
    browser.run("document.body.focus(); window.scrollTo(0, 0)")
    for _ in range(90):
        key(browser, "Tab", 9)
        seen.add(browser.run(
            "((e) => e.id || e.dataset.run || e.dataset.sort || e.className || e.tagName)(document.activeElement)"
        ))  # fmt: skip
    for control in ("search", "all", "none", "axis", "smoothing", "log", "clip", "find", "a/pretrain", "b/dpo", "loss",
                    "chart", "scroll", "SUMMARY"):  # fmt: skip
        assert control in seen, control


@pytest.mark.parametrize("page", ["dashboard", "report"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_pages_fit_a_phone_and_have_no_serious_faults(
    browser: Browser, runs: Path, tmp_path: Path, page: str, colours: str
) -> None:
    if page == "dashboard":
        command("dashboard", [str(runs)])
        path = runs / "dashboard.html"
    else:
        path = write_report(results(), run_dirs(tmp_path / "made"), tmp_path / "report.html")
    for width in (390, 1280):
        show(browser, path.as_uri(), width, colours)
        if page == "report":
            # Folded on a phone, where it is long.
            assert browser.run("document.querySelector('details.part').open") is (width > 720)
        browser.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        browser.run(f"document.querySelector({LOSS!r}).scrollIntoView()")
        browser.wait("[...Charts.charts.values()].some((chart) => chart.plot)")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        if AXE.is_file():
            browser.run(AXE.read_text())
            found = browser.run(
                "axe.run().then(({violations}) => violations.filter((v) => ['serious', 'critical'].includes(v.impact))"
                ".map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 200))]))"
            )
            assert found == []


@pytest.fixture
def served(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a page of ``runs`` that asks for new values at once."""
    monkeypatch.setattr("qa_train.dashboard.live.POLL_S", 0.2)
    monkeypatch.setattr("qa_train.dashboard.live._SHARE", 1)
    running = LiveServer(Live([runs], "Live"), listen("127.0.0.1", 0, "dashboard"))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()
    running.server_close()


def test_a_served_page_follows_the_run(browser: Browser, runs: Path, served: str) -> None:
    show(browser, served)
    browser.run("Curves.toggle(['a/pretrain'], false)")
    with (runs / "b" / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 2.0, "seconds": 2.0, "tokens": 900}\n')
    browser.wait("document.querySelector('#runs').innerText.includes('60 of 40')")
    browser.wait(f"Charts.charts.get(document.querySelector({LOSS!r})).plot.scales.x.max === 60")
    # What was switched off stays off.
    assert drawn(browser, 0) == 0
    assert browser.run("document.querySelector('audio').getAttribute('src')") == "clips/0"


def test_a_page_joins_what_has_grown(browser: Browser, runs: Path, served: str) -> None:
    show(browser, served)
    with (runs / "b" / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 2.0, "seconds": 2.0}\n{"step": 61, "loss": 1.0, "tokens": 900}\n')
    part, mine, whole = browser.run("""(async () => {
      const first = JSON.parse($('board').textContent), ask = async (since) =>
        (await (await fetch('data.json?since=' + since)).json()).runs;
      const part = await ask(first.version), kept = part.map((run) => run.kept ?? 0);
      return [kept, part.map((run, i) => joined(run, first.runs[i])), await ask('')];
    })()""")
    assert part == [39, 39, 39]
    for ours, theirs in zip(mine, whole, strict=True):
        assert ours["x"] == theirs["x"]
        for key, curve in theirs["curves"].items():
            assert ours["curves"][key]["y"] == curve["y"]
            assert ours["curves"][key]["at"] == curve.get("at", list(range(len(curve["y"]))))


def test_axes_come_and_go_with_the_runs(browser: Browser, runs: Path, served: str) -> None:
    for name in ("a", "b"):
        (runs / name).rename(runs.parent / name)
    axes = "[...$('axis').options].map((option) => option.value).join()"
    browser.call("Page.navigate", url=served)
    browser.wait("document.readyState === 'complete' && typeof Curves === 'object'")
    assert browser.run(axes) == ""
    bare = runs / "bare" / "metrics.jsonl"
    bare.parent.mkdir()
    bare.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    browser.wait(f"{axes} === 'step'")
    (runs.parent / "a").rename(runs / "a")
    browser.wait(f"{axes} === 'step,tokens,audio,time'")
    browser.run("$('axis').value = 'audio'; $('axis').dispatchEvent(new Event('change'))")
    # The choice stays while there is such a value.
    (runs.parent / "b").rename(runs / "b")
    browser.wait("document.querySelector('#runs').innerText.includes('b/dpo')")
    assert browser.run("[$('axis').value, Charts.state.x]") == ["audio", "audio"]
    for name in ("a", "b"):
        (runs / name).rename(runs.parent / name)
    browser.wait(f"{axes} === 'step'")
    assert browser.run("[$('axis').value, Charts.state.x]") == ["step", "step"]
