"""A checkpoint exists whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_train.train import checkpoints


def make(root: Path, step: int, *, commit: bool = True) -> Path:
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * (100 + step))
    (folder / "trainer_state.json").write_text("{}")
    if commit:
        checkpoints.commit(folder, {"step": step})
    return folder


def test_newest_complete_wins_and_the_skipped_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = make(tmp_path, 9)
    make(tmp_path, 10, commit=False)
    make(tmp_path, 2)
    assert checkpoints.newest_complete(tmp_path) == good
    assert "checkpoint-10" in caplog.text
    assert "no manifest" in caplog.text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "has 5 bytes"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest cannot be read"),
    ],
)
def test_damage_is_found_and_explained(tmp_path: Path, damage: object, reason: str) -> None:
    folder = make(tmp_path, 3)
    assert checkpoints.problem(folder) is None
    damage(folder)  # type: ignore[operator]
    assert reason in str(checkpoints.problem(folder))
    assert checkpoints.newest_complete(tmp_path) is None


def test_prune_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    for step in (1, 2, 4, 5):
        make(tmp_path, step)
    make(tmp_path, 3, commit=False)
    make(tmp_path, 6, commit=False)
    checkpoints.prune(tmp_path, keep=2)
    assert [checkpoints.step_of(f) for f in checkpoints.list_folders(tmp_path)] == [6, 5, 4]


def test_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {"model.safetensors": 101, "trainer_state.json": 2}
    assert manifest["step"] == 1
