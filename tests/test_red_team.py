"""The counting of scripts/red_team.py: nothing that goes wrong is taken for a refusal."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import red_team
from scripts.attacks import changes
from scripts.red_team import Attempt, Count, attack, executed


def fail(error: Exception) -> Callable[[Path], Any]:
    def read(place: Path) -> None:
        raise error

    return read


def forever(place: Path) -> None:
    while True:
        pass


def reaches_out(place: Path) -> None:
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("192.0.2.1", 9))


def writes_elsewhere(place: Path) -> None:
    (place.parent.parent / "elsewhere").write_text("x")


@pytest.mark.parametrize(
    ("read", "must", "refused", "wrong"),
    [
        (lambda place: None, "either", 0, ""),
        (lambda place: None, "accept", 0, ""),
        (lambda place: None, "refuse", 0, "accepted"),
        (lambda place: (place / "own").write_text("x"), "accept", 0, ""),
        (fail(ValueError("one line")), "refuse", 1, ""),
        (fail(ValueError("one line")), "accept", 1, "refused: one line"),
        (fail(ValueError("two\nlines")), "refuse", 1, "not one line"),
        (fail(ValueError("")), "refuse", 1, "not one line"),
        (fail(ValueError("x" * 5000)), "refuse", 1, "not one line"),
        (fail(FileNotFoundError(2, "no such file", "x.tar")), "refuse", 1, ""),
        (fail(KeyError("files")), "refuse", 0, "KeyError"),
        (fail(MemoryError()), "refuse", 0, "MemoryError"),
        (fail(ImportError("evil")), "either", 0, "ImportError"),
        (fail(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates")), "refuse", 0, "UnicodeEncodeError"),
        (lambda place: os._exit(3), "either", 0, "ended with 3"),
        (lambda place: os.abort(), "either", 0, "ended with -6"),
        (forever, "either", 0, "more than 1 s of CPU time"),
        (lambda place: bytearray(8 << 30), "either", 0, "MemoryError"),
        (lambda place: executed(place.parent).touch(), "either", 0, "EXECUTED"),
        (lambda place: subprocess.run([sys.executable, "-c", ""]), "either", 0, "STARTED"),
        (lambda place: os.system("true"), "either", 0, "STARTED"),
        (reaches_out, "either", 0, "CONNECTED"),
        (writes_elsewhere, "either", 0, "WROTE"),
    ],
)
def test_every_end_is_counted_as_what_it_is(
    read: Callable[[Path], Any], must: str, refused: int, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(red_team, "SECONDS", 1)
    count, folder = Count(), tmp_path / "room"
    folder.mkdir()
    attack(count, Attempt("kind", "one", read, must), folder)
    assert (count.tried, count.refused) == (1, refused)
    assert [wrong in line for line in count.wrong[:1]] == ([True] if wrong else []), count.wrong
    assert not executed(folder).exists()


def test_random_changes_change_what_is_read(tmp_path: Path) -> None:
    original = '{"a": {"b": 1, "c": [2]}, "d": 3}'
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "evil.py").write_text("")
    draw, seen = random.Random(0), set()
    for _ in range(30):
        (tmp_path / "config.json").write_text(original)
        changes.flip_file(draw, tmp_path)
        after = (tmp_path / "config.json").read_bytes()
        assert sum(bin(a ^ b).count("1") for a, b in zip(original.encode(), after, strict=True)) == 1
        (tmp_path / "config.json").write_text(original)
        changes.odd_json(draw, tmp_path, ("config.json",))
        seen.add((tmp_path / "config.json").read_text())
    assert len(seen) > 10
    assert len({changes.damage_bytes(draw, b"0123456789" * 9) for _ in range(50)}) > 25
    assert (tmp_path / "manifest.json").read_text() == "{}"


@pytest.mark.slow
def test_no_reader_gives_way(tmp_path: Path) -> None:
    """A few inputs of every kind, those of the tests among them."""
    counts = red_team.run([], 3, 1, tmp_path)
    assert len(counts) > 25
    assert {name: count.wrong for name, count in counts.items() if count.wrong} == {}
