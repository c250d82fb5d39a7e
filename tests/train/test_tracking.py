"""W&B's own files of a run that is killed and started again: one W&B run, offline, with tables that play."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qa_train.config import StageConfig
from qa_train.train.numbers.metrics import MetricsWriter, _wandb_mode
from tests.train.conftest import ROOT, command, environment, options, shards  # noqa: F401

pytest.importorskip("wandb")


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"), ({"WANDB_API_KEY": "x"}, "online"), ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}, "disabled"), ({"WANDB_MODE": "DISABLED"}, "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x"}, "offline"), ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "x"}, "disabled"), ({"WANDB_DISABLED": "false"}, "offline"),
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "x"}, "online"),
    ],
)  # fmt: skip
def test_the_environment_chooses_the_mode(
    environ: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", environ | {"HOME": str(tmp_path)})
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _wandb_mode() == mode
    if mode == "disabled":
        writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
        writer.track(StageConfig(stage="sft"), {})
        assert writer.tracked is None
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_a_key_two_starts_are_one_offline_run(
    tmp_path: Path, shards: Path, options: Callable[[str, Path], list[str]]  # noqa: F811
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    sets = f"{{asr: {{shards: ['{shards}/pairs-000.tar'], seen_in_training: true}}}}"
    words = [*options("pretrain", folder), "tracking=default", "evaluation.every=3", f"+evaluation.sets={sets}",
             "evaluation.samples=2", "evaluation.max_new_tokens=4"]  # fmt: skip
    plain = {k: v for k, v in environment().items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)}

    def start() -> str:
        done = subprocess.run(
            command("pretrain", *words), env=plain, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode in (0, 75), done.stderr[-3000:]
        return done.stdout

    folder.mkdir()
    (folder / "STOP").touch()  # after the first step, as a job that is requeued
    first, second = start(), start()
    assert "W&B (offline)" in first
    assert "W&B (offline)" in second
    assert first.count("wandb sync") == second.count("wandb sync") == 1
    started = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(started) == 2
    ident = (folder / "wandb_run_id").read_text()
    assert [path.name.rpartition("-")[2] for path in started] == [ident, ident]
    assert all((path / f"run-{ident}.wandb").stat().st_size > 1000 for path in started)
    # The table's files, clips among them, lie in the run folder: the home of a job may be gone when it is uploaded.
    staged = [path.read_bytes()[:4] for path in (folder / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert b"OggS" in staged
    assert not (Path(tmp_path) / ".local").exists() or not list((tmp_path / ".local").rglob("staging/*"))
