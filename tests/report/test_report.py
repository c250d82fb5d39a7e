"""The report page: complete, self-contained, honest about misses, safe against data that looks like HTML."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_up import metric, results, run_dirs
from PIL import Image

from qa_train.report import markdown_table, merge_samples, write_report
from qa_train.report.data_uri import data_uri
from qa_train.report.document import TEMPLATES, json_block
from qa_train.report.mel_picture import mel_picture
from qa_train.report.page import interval_plot, sample_sets
from qa_train.report.results import duration, verdict
from tests.report.parsed import Parsed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(results(), run_dirs(folder / "runs"), folder).read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(page: str) -> None:
    parsed = Parsed.of(page)
    parsed.check()
    assert parsed.seen.count("audio") == 2
    assert "url(" not in page
    # The one address: the line of uPlot's makers in their script.
    assert page.count("http") - page.count("http-equiv") == page.count("https://github.com/leeoniya/uPlot") == 1


def test_page_shows_every_part(page: str) -> None:
    for text in ("3 of 5", "missed", "the interval includes the target", "≤ 45 after pretrain", "9 min 01 s"):
        assert text in page
    stages = Parsed.of(page).board["stages"]
    first = {stage["name"]: [panel["key"] for panel in stage["groups"][0]["panels"]] for stage in stages}
    assert first == {"pretrain": ["loss", "eval_wer"], "sft": ["loss"], "dpo": ["loss", "rewards/accuracies"]}
    assert "first 20 s of the clip" in page
    assert "(empty answer)" in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("uPlot.iife.min.js", "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"),
        ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
        ("LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
    ],
)
def test_uplot_is_what_its_makers_published(name: str, digest: str) -> None:
    """uPlot 1.6.32, from its npm package."""
    assert hashlib.sha256((TEMPLATES / "uplot" / name).read_bytes()).hexdigest() == digest


def test_intervals_and_targets_have_their_places() -> None:
    row = metric("m", "%", True, 10, 50, 0.0, 80.0)
    row["ci"] = {"pretrain": [60.0, 100.0]}
    plot = interval_plot(row, ["before", "pretrain"])
    assert plot is not None
    assert [(each["stage"], each["dot"], each["low"], each["width"]) for each in plot["rows"]] == [
        ("before", 0.0, 0.0, 0.0), ("pretrain", 80.0, 60.0, 40.0)
    ]  # fmt: skip
    assert (plot["target"], plot["low"], plot["high"]) == (50.0, "0", "100")
    assert interval_plot(metric("m", "%", True, 10, 50, 1.0), ["before"]) is None
    # Percentages share an axis, also where all are small.
    small = interval_plot(metric("m", "%", True, 10, None, 0.0, 1.2), ["before", "pretrain"])
    assert small is not None
    assert (small["rows"][1]["dot"], small["high"]) == (1.2, "100")


def test_players_are_spread_over_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    tone = 0.3 * np.sin(np.arange(16_000) / 10).astype(np.float32)
    samples = [{"task": f"set {i // 4}", "reference": str(i), "audio": tone} for i in range(12)]
    (one,) = [size for _, shown in sample_sets(samples[:1]) for size in [len(str(shown[0]["sound"]))]]
    monkeypatch.setattr("qa_train.report.page.MAX_MIB", 5.5 * one / 2**20)
    sets = sample_sets(samples)
    assert [[bool(sample["sound"]["src"]) for sample in shown] for _, shown in sets] == [
        [True, True, False, False], [True, True, False, False], [True, False, False, False]
    ]  # fmt: skip
    assert "the page embeds at most" in sets[0][1][3]["sound"]["why"]


def test_only_clips_below_the_folder_are_embedded(tmp_path: Path) -> None:
    inside, outside = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (inside, outside):
        folder.mkdir()
        soundfile.write(folder / "a.wav", np.zeros(16_000), 16_000)
    (inside / "link.wav").symlink_to(outside / "a.wav")
    (inside / "text.wav").write_text("no sound")
    for path, shown in ((inside / "a.wav", True), (outside / "a.wav", False), (inside / "link.wav", False),
                        (inside / "text.wav", False), (inside / "a\0.wav", False)):  # fmt: skip
        ((_, (sample,)),) = sample_sets([{"task": "t", "audio": str(path)}], below=inside)
        assert bool(sample["sound"]["src"]) is shown
        assert sample["sound"]["why"].startswith("no player: ") is not shown


def test_the_mel_of_a_tone_lies_at_its_frequency() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    picture = mel_picture(tone)
    assert picture is not None
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).convert("L"), float)
    height = image.shape[0]
    brightest = height - 0.5 - int(image[:, image.shape[1] // 2].argmax())
    (said,) = [up for hertz, up in picture["hertz"] if hertz == "1,000"]
    assert 100 * brightest / height == pytest.approx(said, abs=100 / height)
    assert (picture["seconds"], picture["range"]) == ("1.0", 80)
    assert mel_picture(tone[:10]) is None


def test_markdown_table() -> None:
    table = markdown_table(results()).splitlines()
    assert table[0] == "| metric | n | before | pretrain | sft | dpo | target |  |"
    assert table[2].endswith("| 39.7 (35.5–43.9) | ≤ 45 after pretrain | met |")
    assert "| – | – | ≥ 12" not in table[5]
    assert table[7].startswith("| Held-out preference pairs (accuracy %, ↑) | 150 | – | – | 49.3 | 66.7 (58.8–73.7)")
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("higher", "target", "values", "state", "close"),
    [
        (True, 80, (0, 84), "met", True),
        (True, 79, (0, 84), "met", False),
        (True, 85, (0, 84), "missed", True),
        (False, 45, (160, 38), "met", False),
        (False, 30, (160, 38), "missed", False),
        (False, None, (160, 38), "none", False),
    ],
)
def test_verdict(higher: bool, target: float | None, values: tuple[float, float], state: str, close: bool) -> None:
    found = verdict(metric("m", "%", higher, 10, target, *values))
    assert (found.state, found.close) == (state, close)


def test_a_target_that_was_never_measured_is_neither_met_nor_missed(tmp_path: Path) -> None:
    row = metric("m", "%", True, 10, 50, 1.0) | {"target_stage": "dpo"}
    assert verdict(row).state == "unmeasured"
    assert verdict(row).text == "not measured after dpo"
    page = write_report({"metrics": [row]}, [], tmp_path).read_text()
    assert '<span class="badge unmeasured">not measured after dpo' in page
    assert "<b>0 of 1</b>targets met, 1 not measured" in page


def test_page_without_runs_samples_or_times(tmp_path: Path) -> None:
    path = write_report({"metrics": [metric("m", "%", True, 5, None, 10.0)]}, [tmp_path], tmp_path / "x.html")
    text = path.read_text()
    assert path.name == "x.html"
    assert "<script" not in text
    assert "script-src 'none'" in text
    assert "targets met" not in text


def test_results_with_holes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics"):
        write_report({"metrics": []}, [], tmp_path)
    with pytest.raises(ValueError, match=r"metric 'a' lacks \['n'"):
        write_report({"metrics": [{"name": "a", "unit": "%", "higher_is_better": True}]}, [], tmp_path)
    bad = metric("a", "%", True, 1, None, 1.0)
    bad["values"]["sft"] = "high"
    with pytest.raises(ValueError, match="'a', sft: expected a number"):
        write_report({"metrics": [bad]}, [], tmp_path)


def test_clips_are_short_opus(tmp_path: Path) -> None:
    uri, cut = data_uri(results()["samples"][1]["audio"])
    assert cut
    assert uri.startswith("data:audio/ogg;base64,")
    assert len(uri) < 300_000


def test_durations() -> None:
    assert [duration(s) for s in (4.2, 59, 61, 3725)] == ["4.2 s", "59 s", "1 min 01 s", "1 h 02 min"]


def test_the_block_of_data_holds_no_markup() -> None:
    value = {"</script><!--": ["\ud800 & <", float("nan"), float("inf"), date(2024, 1, 1), None, True, 1.5]}
    text = json_block(value)
    assert not set(text) & set("<>&")
    assert text.isascii()
    assert json.loads(text) == {"</script><!--": ["\ud800 & <", None, None, "2024-01-01", None, True, 1.5]}


def test_samples_of_the_stages_are_merged_by_question() -> None:
    one = {"task": "asr", "key": "a", "prompt": "?", "reference": "yes", "answer": "no", "right": False}
    merged = merge_samples({"pretrain": [one, one | {"key": "b"}], "sft": [one | {"answer": "yes", "right": True}]})
    assert [(m["key"], m["answers"], m["right"]) for m in merged] == [
        ("a", {"pretrain": "no", "sft": "yes"}, True),
        ("b", {"pretrain": "no"}, False),
    ]
