"""Melodies in the place of the starter recordings: every stage's smoke test finds what it needs, without a checkout."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qa_train.config import compose_stage, config_dir, starter_dir
from qa_train.data.open_sources import open_sources
from qa_train.data.shards.index import load_index
from qa_train.data.stand_in import make_missing_starter
from qa_train.model import load_tokenizer


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As where the wheel is installed: no recordings beside the package; the folder that will stand for them."""
    package = tmp_path / "site-packages" / "qa_train"
    package.mkdir(parents=True)
    (package / "_configs").symlink_to(config_dir())
    monkeypatch.setattr("qa_train.config.places._PACKAGE", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qa-train" / "stand-in-1"


def test_every_stage_has_samples(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert starter_dir() == installed
    tokenizer = load_tokenizer("builtin:nano")
    for stage in ("pretrain", "sft", "dpo"):
        cfg = compose_stage(stage, ["experiment=smoke"])
        with caplog.at_level(logging.WARNING):
            sources = open_sources(cfg.data, tokenizer, seed=0, preference=stage == "dpo")
        assert len(sources) == len(cfg.data.sources)
        assert min(source.eligible.overview.samples for source in sources) >= 12
    assert caplog.text.count("generated melodies in") == 1
    spanish = [meta for meta in load_index(f"{installed}/speech-train.tar").table["meta"].to_pylist() if '"es"' in meta]
    assert len(spanish) == 24
    assert all('"text": "' in meta and '"translation": {"en": "' in meta for meta in spanish)
    # Nothing is left of the making.
    assert [path.name for path in installed.parent.iterdir()] == [installed.name]


def test_only_those_who_need_it_make_it_and_the_first_counts(
    installed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_missing_starter(compose_stage("sft", ["data=empty", "+data.sources.a={shards: [a.tar], task: asr}"]).data)
    assert not installed.exists()
    rename = Path.rename

    def slower(part: Path, target: Path) -> Path:
        if part.parent == installed.parent and not installed.exists():
            installed.mkdir()
            (installed / "another-rank-was-first").touch()
        return rename(part, target)

    monkeypatch.setattr(Path, "rename", slower)
    make_missing_starter(compose_stage("sft", ["experiment=smoke"]).data)
    assert [path.name for path in installed.iterdir()] == ["another-rank-was-first"]
    assert [path.name for path in installed.parent.iterdir()] == [installed.name]
    assert not caplog.text
