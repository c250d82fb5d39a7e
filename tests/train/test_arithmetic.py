"""The arithmetic of a run: what auto chooses, what a resume keeps, and who is warned."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qa_train.config import StageConfig
from qa_train.config.compose import compose_stage
from qa_train.model import precision
from qa_train.planner.memory import trains_in_bfloat16
from qa_train.train import stage
from qa_train.train.job import arithmetic
from tests.train.conftest import metrics, run, run_fresh, tiny_model

# A CPU without bfloat16 instructions, on one that has them (CONTRIBUTING.md).
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def config(folder: Path, *words: str) -> StageConfig:
    return compose_stage("sft", ["experiment=smoke", f"run.dir={folder}", *words])


@pytest.fixture(params=[True, False], ids=["native", "in software"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(arithmetic, "native_bfloat16", lambda kind: request.param)
    monkeypatch.setattr(arithmetic, "bfloat16_speed", lambda: 4.0 if request.param else 0.125)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return bool(request.param)


def saved(folder: Path, bf16: object) -> None:
    """What a run leaves behind once it has saved a checkpoint."""
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"bf16": bf16}}))


def test_auto_is_what_the_device_multiplies_in_hardware(tmp_path: Path, native: bool) -> None:
    cfg = config(tmp_path, "trainer.bf16=auto")
    arithmetic.settle(cfg)
    assert cfg.trainer.bf16 is native


@pytest.mark.parametrize("pinned", [True, False])
def test_a_resume_goes_on_in_the_runs_own_arithmetic(
    tmp_path: Path, native: bool, pinned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, pinned)
    monkeypatch.setattr(arithmetic.checkpoints, "problem", lambda folder: None)
    cfg = config(tmp_path, "trainer.bf16=auto")
    with caplog.at_level(logging.WARNING):
        arithmetic.settle(cfg)
    assert cfg.trainer.bf16 is pinned
    slow = pinned and not native
    assert ("8 times slower" in caplog.text) is slow
    assert ("set trainer.bf16=false" in caplog.text) is slow
    # What is typed wins.
    cfg = config(tmp_path, f"trainer.bf16={not pinned}")
    arithmetic.settle(cfg)
    assert cfg.trainer.bf16 is not pinned


def test_a_start_that_saved_nothing_binds_nobody(tmp_path: Path, native: bool) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"bf16": not native}}))
    cfg = config(tmp_path, "trainer.bf16=auto")
    arithmetic.settle(cfg)
    assert cfg.trainer.bf16 is native


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["trainer.bf16=true"], "set trainer.bf16=auto"),
        (["model.dtype=bfloat16", "deepspeed=zero2", "trainer.bf16=true"], "trainer.bf16=auto model.dtype=float32"),
    ],
)
def test_bfloat16_that_is_asked_for_is_warned_of_where_it_is_slow(
    tmp_path: Path, native: bool, words: list[str], remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(tmp_path, *words)
    with caplog.at_level(logging.WARNING):
        arithmetic.settle(cfg)
    assert cfg.trainer.bf16 is True
    assert (remedy in caplog.text) is not native


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_mels_in_the_arithmetic_of_a_bfloat16_run_change_no_bit(stored: torch.dtype) -> None:
    model, _ = tiny_model()
    encoder = model.model.audio_tower.to(stored).train()
    mel, found = torch.randn(80, 312), []
    # Weights in float32 are cast by autocast; DeepSpeed has them in bfloat16.
    for features in (mel, mel.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16, enabled=stored == torch.float32):
            states = encoder(features, torch.tensor([200, 108])).last_hidden_state
        encoder.zero_grad()
        states.square().sum().backward()
        found.append([states, *(weight.grad for weight in encoder.parameters() if weight.requires_grad)])
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    # In float32 they would.
    plain = model.model.audio_tower.to(torch.float32).eval()
    states = [plain(features, torch.tensor([200, 108])).last_hidden_state for features in (mel, mel.bfloat16())]
    assert not torch.equal(*states)


@pytest.mark.parametrize("bf16", [True, False])
def test_mels_travel_in_the_arithmetic_of_the_run(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "Collator", lambda batches, dtype: dtype)
    parts: Any = dict.fromkeys(("run", "model", "processor", "batches", "writer", "resume"))
    made = stage.Stage(cfg=config(tmp_path, f"trainer.bf16={bf16}"), **parts)
    assert made.collator == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize("wrong", ["yes please", "2", "null", "bf16"])
def test_other_words_for_the_arithmetic_are_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"trainer\.bf16 is .*: use auto, true or false"):
        config(tmp_path, f"trainer.bf16={wrong}")


def test_a_plan_for_gpus_takes_auto_as_bfloat16(tmp_path: Path) -> None:
    assert trains_in_bfloat16(config(tmp_path, "trainer.bf16=auto"))
    assert not trains_in_bfloat16(config(tmp_path, "trainer.bf16=false"))


def test_half_precision_is_answered_in_float32_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(precision, "native_bfloat16", lambda kind, native=native: native)
        assert precision.compute_dtype(torch.bfloat16, "cpu") is (torch.bfloat16 if native else torch.float32)
        assert precision.compute_dtype(torch.float32, "cpu") is torch.float32


def test_a_cpu_without_the_instructions_is_told_by_onednn_and_by_the_clock() -> None:
    code = "from qa_train.model.precision import *; print(native_bfloat16('cpu'), bfloat16_speed() < 1)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **AVX2, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_run_that_moves_between_cpus_keeps_its_arithmetic(
    tmp_path: Path, options: Callable[[str, Path], list[str]], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps on one kind of CPU and three on the other equal six in the first one's arithmetic."""
    if not precision.native_bfloat16("cpu"):
        pytest.skip("this CPU has no bfloat16 instructions: it can only be the second machine")

    def train(folder: str, machine: str, *words: str) -> list[dict[str, Any]]:
        for name, value in AVX2.items():
            monkeypatch.setenv(name, value) if machine == "float32" else monkeypatch.delenv(name, raising=False)
        # The variables are read when the libraries are loaded.
        run_fresh("pretrain", *options("pretrain", tmp_path / folder), "trainer.lr_scheduler_type=constant", *words)
        return metrics(tmp_path / folder)

    train("moved", first, "trainer.bf16=auto", "trainer.max_steps=3")
    second = "bfloat16" if first == "float32" else "float32"
    moved = train("moved", second, "trainer.bf16=auto", "trainer.max_steps=6")
    stayed = train("stayed", "bfloat16", f"trainer.bf16={first == 'bfloat16'}", "trainer.max_steps=6")
    assert [row["step"] for row in moved] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())["trainer"]["bf16"] is (first == "bfloat16")
    # bfloat16 in software rounds in other places than in hardware.
    tolerance = 1e-5 if first == "float32" else 5e-3
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in stayed], rel=tolerance)


@pytest.mark.slow
def test_two_processes_that_share_muons_matrices_train_as_one(
    tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        words = [*options("pretrain", folder), "trainer.muon_learning_rate=0.01", "trainer.max_steps=4"]
        run("pretrain", *words, processes=processes)
        # And resumed: the state does not depend on the number of processes.
        run("pretrain", *words, "trainer.max_steps=6", processes=3 - processes)
        found.append([row["loss"] for row in metrics(folder)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][-1] < found[0][0]
