"""Curves where people look: written by two starts of a run, and read back; W&B's tables with clips that play."""

from __future__ import annotations

import json
import os
import struct
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


def wandb_rows(file: Path) -> list[dict[str, float]]:
    """The rows in W&B's offline file: a log as LevelDB writes it (7 bytes of header, blocks of 32 KiB) of messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, record, rows = file.read_bytes(), 7, b"", list[dict[str, float]]()
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        # Whole, or its last part.
        if kind in (1, 4):
            message = wandb_internal_pb2.Record.FromString(record)
            record = b""
            if message.HasField("history"):
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json)
                             for item in message.history.item})  # fmt: skip
    return rows


@pytest.mark.slow
def test_every_sink_keeps_one_run_over_two_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and read back with the libraries themselves, offline, under the same names."""
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = [name for name in ("wandb", "tensorboard", "mlflow", "trackio") if find_spec(name)]
    assert {"wandb", "tensorboard", "mlflow"} <= set(names)
    monkeypatch.setattr("os.environ", os.environ | {"HOME": str(tmp_path), "WANDB_MODE": "offline"})
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
        assert writer.tracked == ", ".join(["W&B (offline)", *names[1:]])
        for step in range(first + 1, last + 1):
            writer.write(step, {"loss": 10.0 - step, "eval/asr": 50.0 + first})
        writer.close()

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    curves = {"train/global_step", "train/loss", "eval/asr"}
    assert set(events.Tags()["scalars"]) == curves
    # Steps that are trained again are there once.
    scalars = events.Scalars("train/loss")
    assert [(each.step, each.value) for each in scalars] == [(step, 10.0 - step) for step in range(1, 7)]
    assert {each.value for each in events.Scalars("eval/asr")[2:]} == {52.0}

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'qa-train'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "mlflow_run_id").read_text()
    assert run.data.metrics.keys() == curves
    assert run.data.metrics["train/loss"] == 4.0
    assert {each.step for each in client.get_metric_history(run.info.run_id, "eval/asr")} == set(range(1, 7))

    rows = [row for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")) for row in wandb_rows(file)]
    assert {name for row in rows for name in row if not name.startswith("_")} == curves
    steps = [row["train/global_step"] for row in rows]
    assert steps == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [row["train/loss"] for row in rows] == [10.0 - step for step in steps]

    if "trackio" in names:
        storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
        monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        rows = storage.get_logs("qa-train", "run")
        assert {name for row in rows for name in row} - {"step", "timestamp"} == curves
        assert [row["train/loss"] for row in rows] == [10.0 - row["step"] for row in rows]
        assert {row["step"] for row in rows} == set(range(1, 7))


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
