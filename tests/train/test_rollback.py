"""A run that rolls back ends as one that left the same steps out from the start."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qa_train.config import ReliabilityConfig
from qa_train.train.job import checkpoints
from qa_train.train.safety import rollback
from qa_train.train.safety.guards import Guards, StopRun
from tests.train.conftest import ROOT, TIMEOUT_S, environment, metrics, run

Options = Callable[[str, Path], list[str]]

NAN_IN_STEP_4 = """
    import os, sys
    from qa_train.cli import main
    from qa_train.train.mixin import AudioTrainerMixin

    stock = AudioTrainerMixin.check_finite

    def check_finite(self, loss):
        if self.state.global_step == 3 and os.environ.get("RANK", "0") == os.environ["SICK_RANK"]:
            loss.data.fill_(float("nan"))
        return stock(self, loss)

    AudioTrainerMixin.check_finite = check_finite
    main(sys.argv[1:])
"""


def test_the_file_names_steps_and_reasons(tmp_path: Path) -> None:
    assert rollback.skipped_steps(tmp_path) == {}
    rollback.add_skips(tmp_path, 1, 2, "the loss is nan")
    rollback.add_skips(tmp_path, 9, 2, "the loss jumped")
    assert rollback.skipped_steps(tmp_path) == {
        1: "the loss is nan (step 1)", 8: "the loss jumped (step 9)", 9: "the loss jumped (step 9)",
    }  # fmt: skip
    (tmp_path / rollback.FILE).write_text('["17"]')
    with pytest.raises(ValueError, match=r"left_out.json cannot be read .*should look like"):
        rollback.skipped_steps(tmp_path)


def test_checkpoints_with_the_spoilt_update_go(tmp_path: Path) -> None:
    def save(step: int) -> None:
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.commit(tmp_path / f"checkpoint-{step}", {"step": step})

    save(3)
    with pytest.raises(StopRun, match=r"every checkpoint in .* holds the update of step 3"):
        rollback.remove_spoilt(tmp_path, 3)
    assert rollback.remove_spoilt(tmp_path, 4) == []
    save(2)
    assert rollback.remove_spoilt(tmp_path, 3) == ["checkpoint-3"]
    assert checkpoints.newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    # From the first step on nothing older is needed: the run begins anew.
    assert rollback.remove_spoilt(tmp_path, 1) == ["checkpoint-2"]


def test_a_jump_is_judged_under_rollback_too() -> None:
    guards = Guards(ReliabilityConfig(on_loss_spike="rollback", on_nonfinite="rollback"))
    for i in range(30):
        guards.logged({"loss": 2.0 + 0.01 * (i % 5)})
    assert guards.check_loss(torch.tensor(float("nan"))) is None
    assert guards.verdict(1.0, torch.tensor(0.0)) == "the loss is nan"
    assert "jumped to 50" in str(guards.verdict(1.0, torch.tensor(50.0)))


def make_script(folder: Path) -> Path:
    script = folder / "train.py"
    script.write_text(textwrap.dedent(NAN_IN_STEP_4))
    return script


def check(folder: Path, reference: Path) -> None:
    """Steps 3 and 4 are left out in both, and both end with the same weights."""
    found, expected = metrics(folder), metrics(reference)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert [record.get("skipped_steps") for record in found] == [None, None, 1, 2, 2, 2]
    assert found[3]["skipped_because"] == "left out: the loss is nan (step 4)"
    for name in ("loss", "grad_norm", "learning_rate", "supervised_tokens"):
        assert [record[name] for record in found] == [record[name] for record in expected]
    weights = [f / "checkpoints" / "checkpoint-6" / "model.safetensors" for f in (folder, reference)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_rolls_back_and_leaves_out_what_spoilt_it(tmp_path: Path, options: Options) -> None:
    words = [*options("pretrain", tmp_path / "run"), "trainer.save_steps=2", "trainer.on_nonfinite=rollback"]
    script, more = make_script(tmp_path), environment() | {"SICK_RANK": "0"}
    codes = []
    for _ in range(2):
        done = run("pretrain", *words, check=False, program=script, env=more)
        codes.append(done.returncode)
        if done.returncode:
            assert "step 4: the loss is nan. Samples of this step: speech-" in done.stderr
    assert codes == [75, 0], done.stderr[-2000:]
    assert "resuming from checkpoint-2" in done.stdout
    (tmp_path / "told").mkdir()
    steps = {"3": "the loss is nan (step 4)", "4": "the loss is nan (step 4)"}
    (tmp_path / "told" / rollback.FILE).write_text(json.dumps(steps))
    run("pretrain", *options("pretrain", tmp_path / "told"), "trainer.save_steps=2")
    check(tmp_path / "run", tmp_path / "told")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "zero2", "zero3"])
def test_torchrun_restarts_a_run_that_rolls_back(name: str, tmp_path: Path, options: Options) -> None:
    words = [*options("pretrain", tmp_path / "run"), "trainer.save_steps=2", f"deepspeed={name}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, *launcher, str(make_script(tmp_path)), "pretrain", *words, "trainer.on_nonfinite=rollback"],
        env=environment() | {"SICK_RANK": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    why = json.loads((tmp_path / "run" / rollback.FILE).read_text())["4"]
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / rollback.FILE).write_text(json.dumps({"3": why, "4": why}))
    told = [word.replace(str(tmp_path / "run"), str(tmp_path / "told")) for word in words]
    run("pretrain", *told, processes=2)
    found, expected = metrics(tmp_path / "run"), metrics(tmp_path / "told")
    for column in ("step", "loss", "grad_norm", "learning_rate"):
        assert [record[column] for record in found] == [record[column] for record in expected]
    assert [record.get("skipped_steps") for record in found] == [None, None, 1, 2, 2, 2]
    # The schedule goes on as if nothing had been left out.
    rates = [record["learning_rate"] for record in found]
    assert len(set(rates)) == len(rates)
