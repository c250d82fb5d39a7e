"""The report page: complete, self-contained, honest about misses, safe against data that looks like HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import metric, results, run_dirs

from qa_train.report import markdown_table, merge_samples, metric_entry, write_report
from qa_train.report.charts import Line, line_chart, number, smooth, tick_labels, ticks
from qa_train.report.data_uri import data_uri
from qa_train.report.results import duration, verdict


class Balanced(HTMLParser):
    """Fails on tags that are closed out of order."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(results(), run_dirs(folder / "runs"), folder).read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.seen.count("audio") == 2
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "url(" not in page
    assert "<script" not in page
    assert "http" not in page


def test_page_shows_every_part(page: str) -> None:
    for text in ("3 of 5", "missed", "the interval includes the target", "≤ 45 after pretrain", "9 min 01 s"):
        assert text in page
    for text in ("pretrain: training loss", "pretrain: eval_wer", "dpo: share of training pairs ranked right"):
        assert text in page
    assert "first 20 s of the clip" in page
    assert "(empty answer)" in page
    assert "&lt;script&gt;alert(1)" in page


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


def test_a_target_that_was_never_measured_is_missed() -> None:
    row = metric("m", "%", True, 10, 50, 1.0) | {"target_stage": "dpo"}
    assert verdict(row).state == "missed"
    assert verdict(row).text == "not measured after dpo"


def test_page_without_runs_samples_or_times(tmp_path: Path) -> None:
    path = write_report({"metrics": [metric("m", "%", True, 5, None, 10.0)]}, [tmp_path], tmp_path / "x.html")
    text = path.read_text()
    assert path.name == "x.html"
    assert "Training curves" not in text
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


def test_chart_parts() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.31, 0.34, 3) == pytest.approx([0.31, 0.32, 0.33, 0.34])
    assert tick_labels([0.597, 0.598, 0.599]) == ["0.597", "0.598", "0.599"]
    assert tick_labels([9.5e-5, 1e-4, 1.04e-4]) == ["9.5e-5", "1.0e-4", ""]
    assert tick_labels([0, 20, 40]) == ["0", "20", "40"]
    assert [number(v) for v in (0, 0.125, 12.34, 1500, 0.01234)] == ["0", "0.12", "12.3", "1,500", "0.012"]
    assert smooth([4, 4, 4], 0.9) == pytest.approx([4, 4, 4])
    assert [duration(s) for s in (4.2, 59, 61, 3725)] == ["4.2 s", "59 s", "1 min 01 s", "1 h 02 min"]
    # A flat curve and a single early spike must not break the scale.
    assert "nan" not in line_chart("flat", [Line([1, 2, 3], [5, 5, 5])], "step")
    # Averages of equal values differ in their last bits.
    rounded = line_chart("flat", [Line([1, 2, 3], [450.0, 450.0 - 6e-14, 450.0 + 6e-14])], "step")
    assert rounded.replace(">450<", "", 1).count(">450<") == 0
    spiked = line_chart("spike", [Line([*range(200)], [900.0] + [1.0] * 199)], "step")
    assert ">1<" in spiked


def test_entries_from_scores_of_each_stage() -> None:
    score = {"value": 40.0, "ci_low": 35.0, "ci_high": 45.0, "n": 9, "metric": "wer"}
    entry = metric_entry("WER", "%", {"before": score, "sft": None, "dpo": score}, higher_is_better=False, target=45)
    assert entry["values"] == {"before": 40.0, "dpo": 40.0}
    assert (entry["n"], entry["ci"]["dpo"], verdict(entry).state) == (9, [35.0, 45.0], "met")
    with pytest.raises(ValueError, match="measured on different items"):
        metric_entry("WER", "%", {"sft": score, "dpo": score | {"n": 8}}, higher_is_better=False)


def test_samples_of_the_stages_are_merged_by_question() -> None:
    one = {"task": "asr", "key": "a", "prompt": "?", "reference": "yes", "answer": "no", "right": False}
    merged = merge_samples({"pretrain": [one, one | {"key": "b"}], "sft": [one | {"answer": "yes", "right": True}]})
    assert [(m["key"], m["answers"], m["right"]) for m in merged] == [
        ("a", {"pretrain": "no", "sft": "yes"}, True),
        ("b", {"pretrain": "no"}, False),
    ]
