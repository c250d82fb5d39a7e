"""The dashboard: every run of a folder on one page that needs no network, and that damaged files do not break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from qa_train.command_line.command_table import run as command
from qa_train.dashboard.overview import HUES
from qa_train.dashboard.panels import PANELS, draw, draw_family, family, panels_of
from qa_train.dashboard.runs import differences, find_runs


class Balanced(HTMLParser):
    """Fails on tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "circle", "polyline"):
            assert self.open.pop() == tag


def make(folder: Path, stage: str, *, steps: int = 40, **settings: object) -> Path:
    """A run folder like those of training: metrics, configuration, one start."""
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": 3.0 / step,
            "grad_norm": 1.0,
            "learning_rate": 1e-5 * step,
            "tokens": 900,
            "seconds": 2.0,
            "data_wait_s": 0.1,
            "tokens_per_s": 450.0,
            "samples_per_s": 5.0,
            "audio_s": 36.0,
            "audio_s_per_s": 18.0,
            "skipped_samples": step // 10,
            "skipped/bad audio": step // 10,
            "learning_rate/llm": 1e-5,
            "useful_tflops_per_s": 0.02,
        }
        row |= {f"{name}/source{i}": 2.0 / step + i for name in ("loss", "epoch") for i in range(HUES + 3)}  # fmt: skip
        if stage == "dpo":
            row |= {"rewards/accuracies": 0.5 + step / 100, "rewards/margins": step / 10}
        if step % 10 == 0:
            row["checkpoint_s"] = 1.5
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    trainer = {"max_steps": steps, "batches_per_step": 2, "learning_rate": 1e-5} | settings
    cfg = {"stage": stage, "run": {"dir": str(folder)}, "model": {"name": "nano"}, "trainer": trainer,
           "data": {"tokens_per_batch": 500}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "environment.json").write_text(json.dumps([{"git_commit": "0123456789abcdef"}]))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make(root / "dpo", "dpo")
    make(root / "first" / "pretrain", "pretrain")
    make(root / "second" / "pretrain", "pretrain", learning_rate="<script>")
    make(root / "sft", "sft", steps=1)
    (root / "sft" / "finished.json").write_text("{}")
    return root


def test_the_page_holds_every_run_and_needs_nothing_else(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("dashboard", [str(runs), "title=My & runs"]) == 0
    page = (runs / "dashboard.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"(?:src|href)=", page)
    assert "<script" not in page
    assert "My &amp; runs" in page
    for text in (
        "stage 1: pretrain",
        "stage 2: sft",
        "stage 3: dpo",
        "first/pretrain",
        "commit 01234567",
        "first/pretrain: by source, part and reason",
        "loss by source",
        "passes through each source",
        "learning rate by part",
        "skipped samples by reason",
        "pairs ranked right",
        "token budget left empty",
        "checkpoint stall",
        "skipped samples",
    ):
        assert text in page, text
    # Unfolded where a stage has one run (of sft one step alone, nothing to draw), folded where it has two.
    assert page.count("<details open>") == 1
    assert page.count("<details>") == 2
    # Two runs of one stage: two colours, and the one setting in which they differ.
    assert "&lt;script&gt;" in page
    assert "trainer.learning_rate" in page
    assert "trainer.max_steps" not in page
    assert "4 run(s)" in capsys.readouterr().out


def test_curves_follow_from_the_metrics(runs: Path) -> None:
    found = {run.name: run for run in find_runs([runs])}
    curves = {panel.title: panel.curve(found["dpo"]) for panel in panels_of(list(found.values()))}
    assert curves["token budget left empty, %"][1][0] == pytest.approx(10.0)
    assert curves["waiting for data, % of the step"][1][0] == pytest.approx(5.0)
    assert curves["checkpoint stall, seconds"] == ([10.0, 20.0, 30.0, 40.0], [1.5] * 4)
    assert curves["useful GFLOP per second"][1] == [pytest.approx(20.0)] * 40
    names, more = family(found["dpo"], "loss/", HUES)
    assert (names[0], len(names), more) == ("source0", HUES, 3)
    chart = draw_family(found["dpo"], "loss/", names)
    assert chart is not None
    assert all(f"hue{i}" in chart for i in range(HUES))
    assert draw_family(found["sft"], "loss/", names) is None
    assert draw(PANELS[0], [(0, found["sft"])]) is None
    two = draw(PANELS[0], [(0, found["dpo"]), (3, found["first/pretrain"])])
    assert two is not None
    assert "hue0" in two
    assert "hue3" in two


def test_stages_come_in_order_and_only_differences_count(runs: Path) -> None:
    found = find_runs([runs])
    assert [run.stage for run in found] == ["pretrain", "pretrain", "sft", "dpo"]
    assert list(differences(found[:2])) == ["trainer.learning_rate"]


def test_damaged_files_hide_no_run(runs: Path) -> None:
    (runs / "dpo" / "config.yaml").write_text("stage: [")
    (runs / "dpo" / "environment.json").write_text("{")
    with (runs / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": null, "grad_norm": NaN}\n{"step": 42, "lo')
    with (runs / "sft" / "metrics.jsonl").open("ab") as binary:
        binary.write(b'\n\x9f\xff{"step": 43}\n')
    assert command("dashboard", [str(runs), f"out={runs}/x/page.html"]) == 0
    page = (runs / "x" / "page.html").read_text()
    assert "other" in page
    assert ",nan" not in page


def test_more_runs_than_colours(tmp_path: Path) -> None:
    for i in range(HUES + 2):
        make(tmp_path / f"r{i}", "sft", steps=3)
    assert command("dashboard", [str(tmp_path)]) == 0
    page = (tmp_path / "dashboard.html").read_text()
    assert "r0<" in page
    assert "the 8 newest of 10 runs" in page
    assert f"hue{HUES}" not in page


def test_wrong_use(tmp_path: Path) -> None:
    for words, message in (
        ([], "give RUNS_DIR"),
        ([str(tmp_path)], r"no metrics\.jsonl"),
        (["nowhere"], "not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            command("dashboard", words)


def answered(run: Path, *, clip_bytes: int) -> None:
    """Held-out answers of four evaluations, of two questions, one of which kept its clip."""
    clip = run / "held_out" / "clips" / "asr" / "a.ogg"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"OggS".ljust(clip_bytes, b"x"))
    for step, right in ((0, False), (10, False), (20, True), (40, True)):
        row = {"id": "a", "prompt": "What <is> said?", "gt": "yes", "prediction": f"said at {step}", "right": right}
        path = run / "held_out" / f"step-{step}" / "asr" / "predictions.jsonl"
        path.parent.mkdir(parents=True)
        rows = [row | {"clip": "clips/asr/a.ogg"}, row | {"id": "b", "prompt": "no clip was kept"}]
        path.write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"id": "c", "pro')


SECRET = "root:x:0:0:a-file-of-this-machine"


@pytest.mark.parametrize(
    "kind",
    ["absolute", "dots", "dots inside", "link", "link to a folder", "circle", "null byte", "no ogg", "folder", "number",
     "very long"],
)  # fmt: skip
def test_a_strangers_run_puts_no_file_of_this_machine_into_the_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = runs / "dpo"
    answered(run, clip_bytes=3000)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    # Even one that is an Ogg file.
    (outside / "passwd").write_text("OggS" + SECRET)
    (run / "own.json").write_text(SECRET)
    clips = run / "held_out" / "clips"
    (clips / "link.ogg").symlink_to(outside / "passwd")
    (clips / "folder").symlink_to(outside)
    (clips / "circle").symlink_to(clips / "circle")
    name: object = {
        "absolute": str(outside / "passwd"), "dots": f"../../../../{outside.name}/passwd", "link": "clips/link.ogg",
        "dots inside": f"clips/../../../../../{outside.name}/passwd", "link to a folder": "clips/folder/passwd",
        "circle": "clips/circle", "null byte": "clips/a\0.ogg", "no ogg": "../own.json", "folder": "..", "number": 3,
        "very long": "x" * 5000,
    }[kind]  # fmt: skip
    for path in (run / "held_out").glob("step-*/asr/predictions.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()[:2]]
        path.write_text("".join(json.dumps(row | ({"clip": name} if "clip" in row else {})) + "\n" for row in rows))
    assert command("dashboard", [str(runs), "audio_mib=0.001" if kind == "link" else "audio_mib=8"]) == 0
    page = (runs / "dashboard.html").read_text()
    assert "data:audio" not in page
    assert "<audio" not in page
    assert SECRET not in page
    said = capsys.readouterr().err
    if kind in ("folder", "number"):
        assert "is gone" in page
    else:
        assert "is not a clip of this run: not shown" in page
        assert "1 clip(s) not shown" in said
        assert str(name)[:20].replace("\0", "\\x00") in said


def test_a_page_holds_no_keys(runs: Path) -> None:
    for path in runs.rglob("config.yaml"):
        path.write_text(path.read_text() + "extra: 'https://user:pw1@h/x.tar?sig=pw2'\n")
        break
    assert command("dashboard", [str(runs)]) == 0
    page = (runs / "dashboard.html").read_text()
    assert "https://***@h/x.tar?***" in page
    assert "pw1" not in page
    assert "pw2" not in page


def test_held_out_answers_can_be_heard(runs: Path) -> None:
    answered(runs / "dpo", clip_bytes=3000)
    assert command("dashboard", [str(runs)]) == 0
    page = (runs / "dashboard.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count('src="data:audio/ogg;base64,') == 1
    assert "What &lt;is&gt; said?" in page
    assert "no clip was kept" not in page
    # First, middle and last evaluation, with what is right and wrong.
    assert [f"said at {step}" in page for step in (0, 10, 20, 40)] == [True, False, True, True]
    assert (page.count('class="wrong"'), page.count('class="right"')) == (1, 2)
    # Without room in the page, the player links to the file, from wherever the page lies.
    assert command("dashboard", [str(runs), f"out={runs}/x/page.html", "audio_mib=0.001"]) == 0
    (source,) = re.findall(r'src="([^"]+)"', (runs / "x" / "page.html").read_text())
    assert (runs / "x" / source).resolve() == (runs / "dpo" / "held_out" / "clips" / "asr" / "a.ogg").resolve()
