"""The report of an evaluation on data and answers that try to break or to flatter it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qa_train.eval.benchmarks.benchmark import from_dict
from qa_train.eval.scoring import score_rows
from qa_train.report.scores_page import MAX_PLAYERS, markdown_report, render_benchmarks

EVIL = "</dd></article><script>alert(1)</script><img src=x onerror=alert(1)>"


def result(
    folder: Path, name: str, metric: str, answers: list[str], gt: Any = "hello world", **more: Any
) -> dict[str, Any]:
    """As score_folder gives it; the clip of each item is the same."""
    row = {
        "audio": "a.wav",
        "prompt": f"{EVIL} what?",
        "gt": gt,
        "metric": metric,
        "language": "fr",
        "truncated": False,
    }
    rows = [row | more | {"id": f"{EVIL}{i}", "prediction": text} for i, text in enumerate(answers)]
    benchmark = from_dict(
        {"name": name, "metric": metric, "reader": "jsonl", "path": "x", "title": f"{name} {EVIL}", "group_by": "group",
         "numbers": {"paper": 1.0, EVIL: 2.0}, "rule": EVIL, "comparable": EVIL}
    )  # fmt: skip
    for i, one in enumerate(rows):
        one["group"] = [EVIL, "a|b", "c\nd"][i % 3]
    scored, _ = score_rows(benchmark, rows)
    fields = {"identity": {"weights": EVIL}, "answered_by": EVIL, "data_root": str(folder), "items_differ": False}
    failed = {"first_error": EVIL} if "error" in more else {}
    return {"benchmark": benchmark.as_dict(), **fields, **failed, **scored, "probe": None}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attrs), (tag, attrs)
        self.found.append(tag)


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    results = {"x": result(tmp_path, "x", "wer", [EVIL, "", "hello world", EVIL])}
    tags = Tags()
    tags.feed(render_benchmarks(results, title=EVIL))
    assert "script" not in tags.found
    assert "img" not in tags.found
    assert tags.found.count("article") == 3
    text = markdown_report(results)
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert not any("<" in line for line in tables)
    # A bar or a new line in a name makes no column and no row.
    groups = tables[tables.index("| group | value [95 %] | n |") + 2 :]
    assert [len(re.split(r"(?<!\\)\|", line)) for line in groups[:3]] == [5, 5, 5]


def test_halves_of_characters_do_not_stop_the_page(tmp_path: Path) -> None:
    page = render_benchmarks({"x": result(tmp_path, "x", "wer", ["a \ud800 b"])})
    assert "a ? b" in page
    (tmp_path / "page.html").write_text(page, encoding="utf-8")


def test_players_are_shared_and_what_has_none_says_so(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    results = {f"b{i}": result(tmp_path, f"b{i}", "wer", ["x"] * 5) for i in range(12)}
    page = render_benchmarks(results)
    assert page.count("<audio ") == 12 * (MAX_PLAYERS // 12)
    assert page.count("<audio ") + page.count("no player, the page holds 2 a benchmark: a.wav") == 60


def test_scored_again_only_clips_of_the_named_data_are_in_the_page(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data, elsewhere):
        folder.mkdir()
        soundfile.write(folder / "a.wav", np.zeros(1600), 16_000)
    (data / "link.wav").symlink_to(elsewhere / "a.wav")
    (data / "folder").symlink_to(elsewhere)
    (data / "circle.wav").symlink_to(data / "circle.wav")
    named = ("../elsewhere/a.wav", str(elsewhere / "a.wav"), "link.wav", "folder/a.wav", "circle.wav", "a\0.wav")
    for root, audio, shown in [(data, "a.wav", 1), *((data, name, 0) for name in named), (elsewhere, "a.wav", 0)]:
        results = {"one": result(root, "one", "wer", ["x"])}
        results["one"]["worst"][0]["audio"] = audio
        page = render_benchmarks(results, below=data)
        assert page.count("<audio ") == shown, audio
        assert page.count("no player: ") == 1 - shown
    # What this command itself asked about may lie anywhere.
    results["one"]["worst"][0]["audio"] = str(elsewhere / "a.wav")
    assert render_benchmarks(results).count("<audio ") == 1


def test_several_models_in_one_report_are_named(tmp_path: Path) -> None:
    one, other = (result(tmp_path, name, "wer", ["x"]) for name in ("one", "other"))
    note = "answered by /runs/b, one of several models here"
    assert note not in markdown_report({"one": one, "other": other})
    other |= {"identity": {"weights": "other"}, "answered_by": "/runs/b"}
    results = {"one": one, "other": other}
    assert f"other: {note}" in markdown_report(results)
    page = render_benchmarks(results)
    assert note in page
    assert "several models: see above" in page.split("<h2>Model</h2>")[1]


def test_numbers_that_say_little_are_marked(tmp_path: Path) -> None:
    results = {
        "one": result(tmp_path, "one", "wer", ["hello you all"]),
        "gone": result(tmp_path, "gone", "wer", ["", ""], error="no such file"),
        "judged": result(tmp_path, "judged", "contains", ["hello", "world"], "hello")
        | {"judge_unread": 3, "strict": 1.25, "judge": "stub"},
    }
    text = markdown_report(results)
    assert "100.00 [–]" in text
    assert "gone: no item was answered, the number is not informative" in text
    assert "judged: 3 ratings of the judge never came or could not be read: not in the mean, which is 1.25" in text
    for note in ("no item was answered", "3 ratings of the judge"):
        assert note in render_benchmarks(results).split("Before believing these numbers")[1].split("</section>")[0]
