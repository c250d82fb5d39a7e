"""Hostile and damaged shards end in a located error or a counted skip: no crash, no hang, bounded memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.data.audio.waveform import BadAudio, decoded_length, read_clip
from qa_train.data.shards.tar import members
from tests.data.hostile import encoded

Case = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Every case with what came of it; the last entry holds the peak memory of the process."""
    folder = str(tmp_path_factory.mktemp("hostile"))
    run = subprocess.run(
        [sys.executable, "-m", "tests.data.hostile", folder], capture_output=True, text=True, timeout=120, check=False
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"ended with {run.returncode} after {lines[-1:]}: {run.stderr[-2000:]}"
    cases: list[Case] = []
    for line in lines:
        if "case" in line:
            cases.append((line["case"], line))
        else:
            cases[-1][1].update(line)
    return cases


def kind(outcomes: list[Case], word: str) -> list[Case]:
    return [case for case in outcomes if case[0].startswith(word)]


def test_hostile_tars_are_refused_with_their_place(outcomes: list[Case]) -> None:
    cases = kind(outcomes, "tar ")
    assert len(cases) >= 35
    for name, out in cases:
        assert "error" in out, name
        assert re.search(out["expected"], out["error"]), (name, out)
        assert "case.tar" in out["error"]
        assert "at byte" in out["error"]


def test_hostile_records_are_skipped_and_the_others_stay(outcomes: list[Case]) -> None:
    cases = kind(outcomes, "record ")
    assert len(cases) >= 45
    for name, out in cases:
        assert out["left"] == 1, (name, out)
        assert out["problems"], name
        assert out["seconds"] < 5, (name, out)


def test_every_changed_byte_and_every_cut_is_found(outcomes: list[Case]) -> None:
    cases = kind(outcomes, "damage ")
    assert len(cases) >= 250
    for name, out in cases:
        assert out["faults"], name
        assert all("at byte" in fault for fault in out["faults"])
        assert out["seconds"] < 5, (name, out)


def test_memory_stays_small(outcomes: list[Case]) -> None:
    assert outcomes[-1][1]["peak"] < 1 << 30
    assert not Path("pwned").exists()


def test_bombs_are_counted_in_little_memory_or_refused() -> None:
    bomb = encoded("FLAC", "PCM_16", np.zeros((8000 * 400, 2), np.float32), 8000)
    assert len(bomb) < 100_000
    assert decoded_length(bomb) == 16_000 * 400
    with pytest.raises(BadAudio, match="longer than max_duration_s=60"):
        read_clip(bomb, max_duration_s=60)
    with pytest.raises(BadAudio, match="longer than max_duration_s=60"):
        decoded_length(encoded("MP3", None, np.zeros(16_000 * 90, np.float32)), max_duration_s=60)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_those_of_tarfile(layout: int, tmp_path: Path) -> None:
    names = ["a.json", "./dir/b.flac", "deep/" * 30 + "c.json", "dir/" + "n" * 90 + ".json", "e/日本.json"]
    if layout != tarfile.USTAR_FORMAT:
        names.append("d" * 300 + ".json")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=layout) as archive:
        folder = tarfile.TarInfo("dir/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = i * 300
            # A fraction of a second makes tarfile write an extended header in the PAX layout.
            info.mtime = 1.5 if layout == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(bytes([i]) * info.size))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers() if m.isreg()]
    with path.open("rb") as file:
        found = [(m.name, m.offset, m.size) for m in members(file, str(path), path.stat().st_size)]
    assert found == expected
