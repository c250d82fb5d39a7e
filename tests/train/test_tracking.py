"""W&B's own files of a run that is killed and started again: one W&B run, offline, with tables that play."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import PartialState

from qa_train.config import StageConfig
from qa_train.train.numbers.metrics import MetricsWriter
from qa_train.train.numbers.sinks import numbers_of, wandb_mode
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
    assert wandb_mode() == mode
    if mode == "disabled":
        writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
        writer.track(StageConfig(stage="sft"), {})
        assert writer.tracked == ""
        assert list(tmp_path.iterdir()) == []


def test_numbers_have_the_names_that_people_look_for() -> None:
    record = {"loss": 2.5, "eval/asr": 31.0, "loss/asr": 2.4, "evaluation": {"asr": {"n": 3}}}
    record |= {"grad_norm": float("nan"), "skipped_because": "loss", "exact": True, "tokens": 7}
    assert numbers_of(record, 9) == {
        "train/global_step": 9, "train/loss": 2.5, "eval/asr": 31.0, "train/loss/asr": 2.4, "train/tokens": 7
    }  # fmt: skip


@pytest.mark.slow
def test_every_sink_keeps_one_run_over_two_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and read back with the libraries themselves, offline; steps that are trained again are there once."""
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = [name for name in ("tensorboard", "mlflow", "trackio") if find_spec(name)]
    assert {"tensorboard", "mlflow"} <= set(names)
    monkeypatch.setattr("os.environ", os.environ | {"HOME": str(tmp_path)})
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    PartialState()
    cfg = StageConfig(stage="sft")
    cfg.tracking.report_to = names
    folder = tmp_path / "run"
    folder.mkdir()
    for first, last in ((0, 4), (2, 6)):
        writer = MetricsWriter(folder / "metrics.jsonl", is_main=True)
        writer.track(cfg, {"stage": "sft", "trainer": {"learning_rate": 1e-4}}, first)
        assert writer.tracked == ", ".join(names)
        for step in range(first + 1, last + 1):
            writer.write(step, {"loss": 10.0 - step, "eval/asr": 50.0 + first})
        writer.close()

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [(each.step, each.value) for each in scalars] == [(step, 10.0 - step) for step in range(1, 7)]
    assert {each.value for each in events.Scalars("eval/asr")[2:]} == {52.0}

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'qa-train'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "mlflow_run_id").read_text()
    assert run.data.metrics["train/loss"] == 4.0
    assert {each.step for each in client.get_metric_history(run.info.run_id, "eval/asr")} == set(range(1, 7))


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
