"""States of a checkpoint are read as tensors and plain values, whoever reads them; what is none is never taken."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qa_train.config import ModelConfig, RunConfig, StageConfig
from qa_train.model.build import check_checkpoint
from qa_train.model.stored import loading
from qa_train.train.job import checkpoints, states
from qa_train.train.job.distributed import join_zero_parts
from qa_train.train.job.run import RunFolder
from tests.model.stored import write_model

ZERO = "global_step{0}/zero_pp_rank_0_mp_rank_00_optim_states.pt"
MODEL = "global_step{0}/mp_rank_00_model_states.pt"

NO_NUMBERS = {"python": 1, "numpy": 2, "cpu": 3}


class Payload:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Quiet(dict[str, Any]):
    """A class that looks like a state and is none of torch's."""


def make(root: Path, step: int, *, zero: bool = False) -> Path:
    """A committed checkpoint with sound states."""
    folder = root / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    torch.save({"last_epoch": step, "_last_lr": [0.1]}, folder / "scheduler.pt")
    python, numpy = random.Random(step).getstate(), np.random.RandomState(step).get_state()
    torch.save({"python": python, "numpy": numpy, "cpu": torch.get_rng_state()}, folder / "rng_state_0.pth")
    if zero:
        (folder / "latest").write_text(f"global_step{step}")
        torch.save(
            {"optimizer_state_dict": {"zero_stage": _stage(2), "loss_scaler": _scaler()}}, folder / ZERO.format(step)
        )
        torch.save({"module": {"weight": torch.ones(3)}}, folder / MODEL.format(step))
    else:
        torch.save({"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}, folder / "optimizer.pt")
    commit(folder, zero)
    return folder


def commit(folder: Path, zero: bool) -> None:
    """Whoever forges a folder makes its checksums right, too."""
    layout = "cut by DeepSpeed ZeRO-2 for 1 process(es)" if zero else "whole"
    checkpoints.commit(folder, {"step": checkpoints.step_of(folder), "optimizer": layout})


def _stage(number: int) -> Any:
    from deepspeed.runtime.zero.config import ZeroStageEnum

    return ZeroStageEnum(number)


def _scaler() -> Any:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    return LossScaler(1.0)


def resume(root: Path) -> Path | None:
    """Where a run in ``root`` would go on."""
    return RunFolder(StageConfig(run=RunConfig(dir=str(root)), model=ModelConfig()), is_main=True).start()


def save_zero(folder: Path, state: Any) -> None:
    torch.save({"optimizer_state_dict": state}, folder / ZERO.format(checkpoints.step_of(folder)))


def old_pickle(value: Any, path: Path) -> None:
    """A pickle without torch's archive around it, which torch.load reads, too."""
    path.write_bytes(pickle.dumps(value))


FORGED: list[tuple[str, bool, Callable[[Path, Path], None]]] = [
    ("a call in a ZeRO state", True, lambda f, out: save_zero(f, Payload(out))),
    ("a call in ZeRO's model state", True, lambda f, out: torch.save({"module": Payload(out)}, f / MODEL.format(2))),
    ("a call in the optimizer", False, lambda f, out: torch.save({"state": Payload(out)}, f / "optimizer.pt")),
    ("a call in the schedule", False, lambda f, out: torch.save({"last_epoch": Payload(out)}, f / "scheduler.pt")),
    ("a call in the random state", False, lambda f, out: torch.save({"cpu": Payload(out)}, f / "rng_state_0.pth")),
    ("a call in another rank's", False, lambda f, out: torch.save({"cpu": Payload(out)}, f / "rng_state_7.pth")),
    ("a pickle without an archive", True, lambda f, out: old_pickle({"module": Payload(out)}, f / MODEL.format(2))),
    ("a foreign class", False, lambda f, out: torch.save(Quiet(state={}, param_groups=[]), f / "optimizer.pt")),
    ("a state that nothing here writes", False, lambda f, out: torch.save(Payload(out), f / "scaler.pt")),
    ("latest leads out of the checkpoint", True, lambda f, out: (f / "latest").write_text("../other")) ,
    ("latest names a folder that is not there", True, lambda f, out: (f / "latest").write_text("global_step9")),
    ("garbage", False, lambda f, out: (f / "optimizer.pt").write_bytes(b"\0garbage" * 99)),
    ("nothing", False, lambda f, out: (f / "scheduler.pt").write_bytes(b"")),
    ("half a file", False, lambda f, out: (f / "optimizer.pt").write_bytes((f / "optimizer.pt").read_bytes()[:400])),
    ("a list", False, lambda f, out: torch.save([1, 2], f / "optimizer.pt")),
    ("a schedule without a step", False, lambda f, out: torch.save({}, f / "scheduler.pt")),
    ("random numbers of nothing", False, lambda f, out: torch.save(NO_NUMBERS, f / "rng_state_0.pth")),
    ("no optimizer", False, lambda f, out: (f / "optimizer.pt").unlink()),
    ("no schedule", True, lambda f, out: (f / "scheduler.pt").unlink()),
    ("another step", False, lambda f, out: (f / "trainer_state.json").write_text('{"global_step": 7}')),
    ("no JSON", False, lambda f, out: (f / "trainer_state.json").write_text("{")),
]  # fmt: skip


@pytest.mark.parametrize(("zero", "forge"), [case[1:] for case in FORGED], ids=[case[0] for case in FORGED])
def test_what_is_no_state_is_not_executed_and_an_older_checkpoint_is_taken(
    zero: bool, forge: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, executed = tmp_path / "run" / "checkpoints", tmp_path / "executed"
    older, newest = make(root, 1, zero=zero), make(root, 2, zero=zero)
    assert resume(root.parent) == newest
    forge(newest, executed)
    commit(newest, zero)
    caplog.clear()
    assert resume(root.parent) == older
    assert not executed.exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"skipping checkpoint {newest}: ")
    assert "\n" not in line
    assert len(line) < 700
    shutil.rmtree(older)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used"):
        resume(root.parent)


def test_deepspeed_itself_reads_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    engine, executed = TorchCheckpointEngine(), tmp_path / "executed"
    folder = make(tmp_path / "run", 3, zero=True)
    torch.save({"module": Payload(executed)}, tmp_path / "forged.pt")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    states.plain_states_only()
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    # It asks for everything; as after a file that was exchanged between the check and this moment.
    with pytest.raises(pickle.UnpicklingError):
        engine.load(str(tmp_path / "forged.pt"))
    assert not executed.exists()
    assert engine.load(str(folder / ZERO.format(3)))["optimizer_state_dict"]["zero_stage"] == 2
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    engine.load(str(tmp_path / "forged.pt"))
    assert executed.exists(), "the payload would not be seen"


def test_the_converter_reads_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = tmp_path / "executed"
    folder = make(tmp_path / "run", 3, zero=True)
    torch.save({"optimizer_state_dict": Payload(executed)}, folder / ZERO.format(3))
    monkeypatch.setattr(
        sys, "argv", ["-c", "--input_folder", str(folder / "global_step3"), "--output_folder", str(tmp_path / "out")]
    )
    monkeypatch.setattr("multiprocessing.set_start_method", lambda method: None)
    with pytest.raises(pickle.UnpicklingError):
        join_zero_parts()
    assert not executed.exists()


def test_a_checkpoint_is_judged_under_zero3_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import HfDeepSpeedConfig

    write_model(tmp_path / "checkpoint-2")
    # transformers keeps a weak reference, and cuts every model while it lives.
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert check_checkpoint(tmp_path / "checkpoint-2") > 40
    monkeypatch.setattr(loading, "whole_weights", nullcontext)
    with pytest.raises(ValueError, match="describes no model"):
        check_checkpoint(tmp_path / "checkpoint-2")
    del alive
