"""A checkpoint exists whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import crc32c
import pytest

from qa_train.model.stored import manifest
from qa_train.train.job import checkpoints
from qa_train.utils.atomic import write_json


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
    written = json.loads((folder / "manifest.json").read_text())
    assert written["files"] == {"model.safetensors": 101, "trainer_state.json": 2}
    assert written["step"] == 1


def test_damage_that_sizes_do_not_show_is_found_by_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PIECE", 40)
    make(tmp_path, 2)
    newer = make(tmp_path, 3)
    (newer / "model.safetensors").write_bytes(b"x" * 102 + b"y")
    assert checkpoints.problem(newer) is None
    assert "model.safetensors is not what was saved" in str(manifest.damage(newer))
    assert checkpoints.newest_complete(tmp_path) == newer
    assert checkpoints.newest_complete(tmp_path, manifest.damage) == tmp_path / "checkpoint-2"


def test_a_pickle_that_was_not_saved_is_never_loaded(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    # A conversion that was killed: nothing reads it, and the next one begins anew.
    (folder / "global_step1_universal" / "zero").mkdir(parents=True)
    (folder / "global_step1_universal" / "zero" / "fp32.pt").write_bytes(b"part")
    assert manifest.damage(folder) is None
    (folder / "global_step1").mkdir()
    (folder / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"foreign")
    assert "not in its manifest" in str(manifest.damage(folder))


def test_zero_checkpoints_without_checksums_are_refused_and_others_taken(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    written = checkpoints.read_manifest(folder)
    del written["checksums"]
    write_json(folder / "manifest.json", written)
    assert manifest.damage(folder) is None
    (folder / "global_step1").mkdir()
    (folder / "global_step1" / "mp_rank_00_model_states.pt").write_bytes(b"old")
    written["files"]["global_step1/mp_rank_00_model_states.pt"] = 3
    write_json(folder / "manifest.json", written)
    assert "no checksums" in str(manifest.damage(folder))


def test_every_file_is_flushed_by_exactly_one_rank(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    names = [
        "model.safetensors", "rng_state_0.pth", "rng_state_1.pth", "global_step1/mp_rank_00_model_states.pt",
        "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step1/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ]  # fmt: skip
    for name in names:
        (folder / name).write_text(name)
    parts = [checkpoints.flush(folder, rank, 2) for rank in range(2)]
    assert set(parts[1]) == {name for name in names if "rank_1" in name or "state_1" in name}
    assert not set(parts[0]) & set(parts[1])
    checkpoints.commit(folder, {"step": 1}, parts[0] | parts[1])
    assert manifest.damage(folder) is None
    with pytest.raises(ValueError, match="changed while it was saved"):
        checkpoints.commit(folder, {"step": 1}, parts[0])


def test_commit_flushes_files_before_the_manifest_and_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(checkpoints, "flush_file", lambda path: seen.append(path.name))
    make(tmp_path, 1)
    assert seen.index("model.safetensors") < seen.index("checkpoint-1")
    assert seen[-1] == tmp_path.name


def test_prune_spares_every_kth_and_the_best(tmp_path: Path) -> None:
    for step, loss in enumerate((3.0, 1.0, 2.0, 1.5, 1.7, 1.6), start=1):
        checkpoints.commit(make(tmp_path, step, commit=False), {"step": step, "best_value": loss})
    best = checkpoints.best(tmp_path, largest=False)
    assert best == tmp_path / "checkpoint-2"
    assert checkpoints.best(tmp_path, largest=True) == tmp_path / "checkpoint-1"
    assert best is not None
    checkpoints.prune(tmp_path, keep=1, every=3, also=[best])
    assert [checkpoints.step_of(f) for f in checkpoints.list_folders(tmp_path)] == [6, 3, 2]


@pytest.mark.parametrize("size", [0, 1, 39, 40, 41, 200])
def test_checksums_depend_on_every_byte_and_on_the_order_of_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(manifest, "_PIECE", 40)
    path = tmp_path / "a"
    raw = bytes(i % 251 for i in range(size))
    variants = [raw, raw + b"\0", raw[::-1] + b"x", raw[40:] + raw[:40] + b"y"]
    sums = []
    for variant in variants:
        path.write_bytes(variant)
        sums += manifest.checksums([path])
    assert len(set(sums)) == len(variants)
    path.write_bytes(raw)
    assert manifest.checksums([path]) == sums[:1]
    # The pieces by themselves, one after the other.
    parts = [crc32c.crc32c(raw[i : i + 40]).to_bytes(4) for i in range(0, max(size, 1), 40)]
    assert sums[0] == crc32c.crc32c(b"".join(parts)).to_bytes(4).hex()


def test_a_manifest_of_an_older_version_is_compared_by_its_own_checksums(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    written = checkpoints.read_manifest(folder)
    assert written.pop("format") == manifest.FORMAT
    # Format 1: SHA-256 of the SHA-256s of the pieces.
    written["checksums"] = {
        name: hashlib.sha256(hashlib.sha256((folder / name).read_bytes()).digest()).hexdigest()
        for name in written["files"]
    }
    write_json(folder / "manifest.json", written)
    assert manifest.damage(folder) is None
    (folder / "model.safetensors").write_bytes(b"y" * 101)
    assert "model.safetensors is not what was saved" in str(manifest.damage(folder))


def test_a_manifest_of_a_newer_version_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path, 1)
    write_json(folder / "manifest.json", {**checkpoints.read_manifest(folder), "format": manifest.FORMAT + 1})
    assert checkpoints.newest_complete(tmp_path) is None
    assert f"format {manifest.FORMAT + 1}, this qa-train reads up to {manifest.FORMAT}" in caplog.text
