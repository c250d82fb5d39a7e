"""A run folder belongs to the settings of the run that saved something in it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
import yaml

from qa_train.config import DataConfig, RunConfig, SourceConfig, StageConfig, TrainerConfig
from qa_train.doctor.files import examine_run
from qa_train.train.job import checkpoints
from qa_train.train.job.run import RunFolder
from qa_train.train.numbers.metrics import MetricsWriter
from qa_train.train.opening import _warn_of_window


def config(folder: Path, **trainer: object) -> StageConfig:
    return StageConfig(
        stage="pretrain", run=RunConfig(dir=str(folder)), trainer=replace(TrainerConfig(), **trainer)  # type: ignore[arg-type]
    )  # fmt: skip


def begin(run: RunFolder) -> Path | None:
    resume = run.start()
    run.record(resume)
    return resume


def save(run: RunFolder) -> None:
    folder = run.checkpoints / "checkpoint-2"
    folder.mkdir()
    checkpoints.commit(folder, {"step": 2})


def test_a_start_that_saved_nothing_binds_nobody(tmp_path: Path) -> None:
    begin(RunFolder(config(tmp_path), is_main=True))
    other = config(tmp_path)
    other.data = DataConfig(tokens_per_batch=7)
    assert begin(RunFolder(other, is_main=True)) is None
    assert "tokens_per_batch: 7" in (tmp_path / "config.yaml").read_text()


def test_what_a_restored_optimizer_would_overrule_cannot_be_changed(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    with pytest.raises(ValueError, match=r"other values of trainer\.learning_rate "):
        RunFolder(config(tmp_path, learning_rate=3e-3), is_main=True).start()
    # A run of a version that did not know the key yet goes on.
    stored = tmp_path / "config.yaml"
    stored.write_text("".join(line for line in stored.open() if "muon_learning_rate" not in line))
    assert RunFolder(config(tmp_path, max_steps=200, save_steps=7), is_main=True).start() is not None


def test_a_source_of_a_version_that_did_not_know_a_key_is_the_same_source(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.data = DataConfig(sources={"one": SourceConfig(name="one", shards=["a.tar"], task="asr")})
    run = RunFolder(cfg, is_main=True)
    begin(run)
    save(run)
    stored = tmp_path / "config.yaml"
    before = stored.read_text()
    assert "loss_weight: 1.0" in before
    stored.write_text("".join(line for line in stored.open() if "loss_weight" not in line))
    assert RunFolder(cfg, is_main=True).start() is not None
    stored.write_text(before.replace("loss_weight: 1.0", "loss_weight: 2.0"))
    with pytest.raises(ValueError, match=r"other values of data\.sources "):
        RunFolder(cfg, is_main=True).start()


def test_a_finished_run_that_is_extended_is_unfinished_again(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    run.finish(2)
    assert run.finished_steps() == 2
    resume = run.start()
    # A start that is refused after this changes nothing.
    assert run.finished_steps() == 2
    run.record(resume)
    assert run.finished_steps() is None


def test_a_finished_run_says_that_it_was_made_with_other_settings(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    run.finish(2)
    assert run.other_settings() == ""
    said = RunFolder(config(tmp_path, learning_rate=3e-3), is_main=True).other_settings()
    assert "(other values than in its config.yaml are ignored: trainer.learning_rate)" in said
    other = config(tmp_path)
    other.stage = "sft"
    with pytest.raises(ValueError, match=r"holds a finished pretrain run: choose another run.dir for sft"):
        RunFolder(other, is_main=True).other_settings()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    (run.checkpoints / "checkpoint-2" / "rng_state.pth").write_bytes(b"foreign")
    with pytest.raises(ValueError, match=r"checkpoint-2: rng_state.pth is not in its manifest.*delete them all"):
        RunFolder(config(tmp_path), is_main=True).start()


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "finished.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\0\0", b"\xff", b"null", b"'"])
def test_a_damaged_file_of_the_run_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    (tmp_path / name).write_bytes(content)

    def again() -> None:
        run.take(100)
        begin(run)

    with pytest.raises(ValueError, match=f"{name} is damaged .*: restore it, or delete it"):
        again()
    (found,) = [each for each in examine_run(str(tmp_path)) if each.state == "problem"]
    assert f"{name} is damaged" in found.found
    (tmp_path / name).unlink()
    assert begin(run) == run.checkpoints / "checkpoint-2"


def test_a_resumed_run_tells_of_other_versions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    begin(run)
    assert not caplog.text
    starts = json.loads((tmp_path / "environment.json").read_text())
    starts[-1]["versions"]["torch"] = "1.0"
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    begin(run)
    assert f"other versions than at the start before (torch 1.0 -> {version('torch')})" in caplog.text


def test_settings_that_are_cut_are_other_settings(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path), is_main=True)
    begin(run)
    save(run)
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    stored["data"]["sources"] = {"a": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match=r"holds a run with other values of data\.sources"):
        run.start()


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"run.dir=.*cannot be written"):
        RunFolder(config(tmp_path / "file" / "run"), is_main=True).start()


def test_tables_hand_clips_to_the_tracker_until_their_room_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, object]]] = []
    tracker = SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    wandb = SimpleNamespace(Table=lambda **words: words["data"], Audio=lambda path: ("plays", path),
                            init=lambda **words: tracker, Settings=lambda **words: words)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr("qa_train.train.numbers.sinks.find_spec", lambda name: name)
    clip = tmp_path / "a.ogg"
    clip.write_bytes(b"O" * 1024)
    cfg = config(tmp_path)
    cfg.tracking.wandb, cfg.tracking.max_clips_mib = "offline", 1.5 / 1024
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    writer.table(1, "held_out/asr", ["audio"], [[clip]])
    assert logged == [], "no run is open yet"
    writer.track(cfg, {})
    for step in (2, 4):
        writer.table(step, "held_out/asr", ["audio", "reference", "right"], [[clip, ["yes", "yeah"], True]])
    assert logged == [
        (2, {"held_out/asr": [[("plays", str(clip)), '["yes", "yeah"]', True]]}),
        (4, {"held_out/asr": [["a.ogg", '["yes", "yeah"]', True]]}),
    ]


def test_a_restart_goes_on_in_the_same_tracking_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []
    wandb = SimpleNamespace(init=lambda **words: calls.append(words), Settings=lambda **words: words)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr("qa_train.train.numbers.sinks.find_spec", lambda name: name)
    cfg = config(tmp_path)
    cfg.tracking.wandb = "offline"
    for _ in range(2):
        MetricsWriter(tmp_path / "metrics.jsonl", is_main=True).track(cfg, {})
    assert calls[0]["id"] == calls[1]["id"]
    assert [call["resume"] for call in calls] == ["allow", "allow"]
    assert (tmp_path / "wandb_run_id").read_text() == calls[0]["id"]


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [
        (wandb.errors.CommError("connection refused\nmore"), True),
        (wandb.errors.CommError(""), True),
        (wandb.errors.CommError("403: permission denied for entity x"), False),
        (wandb.errors.AuthenticationError("API key is not valid"), False),
    ],
)
def test_a_tracking_server_that_is_down_does_not_end_the_run(
    answer: Exception,
    goes_on: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init(*, mode: str, **_: object) -> None:
        if mode == "online":
            raise answer

    fake = SimpleNamespace(init=init, Settings=dict, errors=wandb.errors, teardown=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("qa_train.train.numbers.sinks.find_spec", lambda name: name)
    cfg = config(tmp_path)
    cfg.tracking.wandb = "online"
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    if not goes_on:
        with pytest.raises(type(answer), match=str(answer)):
            writer.track(cfg, {})
        return
    writer.track(cfg, {})
    assert writer.tracked == "W&B (offline)"
    told = str(answer).partition("\n")[0] or "CommError"
    assert f"W&B cannot be reached ({told}): offline until the next start" in caplog.text


@pytest.mark.parametrize(("before", "now", "goes_on"), [
    ("adamw_torch", "auto", True), ("auto", "adamw_torch_fused", True), ("adamw_torch", "adafactor", False),
])  # fmt: skip
def test_adamw_is_one_optimizer_under_its_three_names(tmp_path: Path, before: str, now: str, goes_on: bool) -> None:
    """Runs of before "auto" was the default go on."""
    first = RunFolder(config(tmp_path, optim=before), is_main=True)
    begin(first)
    save(first)
    again = RunFolder(config(tmp_path, optim=now), is_main=True)
    if goes_on:
        assert begin(again) is not None
    else:
        with pytest.raises(ValueError, match=r"other values of trainer\.optim "):
            begin(again)


@pytest.mark.parametrize(("window", "tokens", "warns"), [(4096, 8000, True), (8000, 8000, False), (None, 8000, False)])
def test_a_sliding_window_is_named_at_the_start(
    window: int | None, tokens: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    layer = torch.nn.Identity()
    layer.sliding_window = window  # type: ignore[assignment]
    _warn_of_window(torch.nn.Sequential(layer), tokens)
    assert ("data.tokens_per_batch=4096 skips and counts them" in caplog.text) is warns
