"""The counting of scripts/red_team.py: what is wrong is not taken for a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import red_team


def fail(error: Exception) -> Callable[[], Any]:
    def read() -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "must_refuse", "refused", "wrong"),
    [
        (lambda: None, False, 0, ""),
        (lambda: None, True, 0, "accepted"),
        (fail(ValueError("one line")), True, 1, ""),
        (fail(ValueError("two\nlines")), True, 1, "more than one line"),
        (fail(KeyError("files")), True, 0, "KeyError"),
        (fail(MemoryError()), True, 0, "MemoryError"),
        (fail(ImportError("evil")), False, 0, "ImportError"),
    ],
)
def test_every_end_is_counted_as_what_it_is(
    read: Callable[[], Any], must_refuse: bool, refused: int, wrong: str, tmp_path: Path
) -> None:
    count = red_team.Count()
    red_team.attack(count, "one", read, tmp_path / "executed", must_refuse=must_refuse)
    assert (count.tried, count.refused) == (1, refused)
    assert [wrong in line for line in count.wrong] == ([True] if wrong else [])


def test_what_was_executed_is_always_wrong(tmp_path: Path) -> None:
    count, executed = red_team.Count(), tmp_path / "executed"
    red_team.attack(count, "one", executed.touch, executed, must_refuse=False)
    assert count.wrong == ["one: EXECUTED"]
    assert not executed.exists()


def test_random_changes_change_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": {"b": 1, "c": [2]}, "d": 3}')
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "evil.py").write_text("")
    draw, seen = random.Random(0), set()
    for _ in range(30):
        before = (tmp_path / "config.json").read_bytes()
        red_team.flipped(draw, tmp_path)
        after = (tmp_path / "config.json").read_bytes()
        assert sum(bin(a ^ b).count("1") for a, b in zip(before, after, strict=True)) == 1
        (tmp_path / "config.json").write_text('{"a": {"b": 1, "c": [2]}, "d": 3}')
        red_team.odd_field(draw, tmp_path)
        seen.add((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text('{"a": {"b": 1, "c": [2]}, "d": 3}')
    assert len(seen) > 10
    assert (tmp_path / "manifest.json").read_text() == "{}"
