"""The pace of a machine from runs that took steps on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qa_train.config import PlanConfig, written
from qa_train.config.compose import compose_stage
from qa_train.planner.estimate import estimate
from qa_train.planner.measured import pace_of
from qa_train.planner.output import as_text

# Of records that are there a whole window is read.
WORDS = ["experiment=smoke", "data.shuffle_window=200", "trainer.batches_per_step=4"]
CFG = compose_stage("pretrain", WORDS)


def run(
    folder: Path, flops: float, seconds: float, *, world: int = 2, steps: int = 20, like: Any = CFG, **changes: Any
) -> str:
    """A run of 4 batches a step, ``flops`` and ``seconds`` each in one process, and half a second of waiting."""
    folder.mkdir()
    cfg = written(like)
    cfg["trainer"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "environment.json").write_text(json.dumps([{"world_size": world}]))
    took = seconds * 4 / world
    row = {"loss": 1.0, "seconds": took + 0.5, "data_wait_s": 0.25, "checkpoint_s": 0.25}
    row["useful_tflops_per_s"] = flops * 4 / 1e12 / row["seconds"]
    slow = {**row, "seconds": 60.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [slow] * 5 + [row] * steps))
    return str(folder)


def test_two_runs_tell_what_a_batch_costs_beside_its_operations(tmp_path: Path) -> None:
    # 0.1 s and 5 GFLOP/s.
    runs = [run(tmp_path / "large", 4e9, 0.9), run(tmp_path / "small", 1e9, 0.3)]
    pace = pace_of(runs, CFG, 2)
    assert (pace.batch_s, pace.rate) == (pytest.approx(0.1), pytest.approx(5e9))
    assert pace.batch(2e9) == pytest.approx(0.5)
    alone = pace_of(runs[:1], CFG, 2)
    assert (alone.batch_s, alone.rate) == (0, pytest.approx(4e9 / 0.9))


def test_a_plan_takes_the_pace(tmp_path: Path) -> None:
    made = estimate(CFG, PlanConfig(gpus=2, measured=run(tmp_path / "a", 4e9, 0.8)))
    assert made.step_s == pytest.approx(made.useful.total / 2 / 5e9)
    assert f"as measured in {tmp_path}/a: 0.005 TFLOP/s of one process" in as_text(made)


def test_the_reference_of_dpo_is_in_the_pace(tmp_path: Path) -> None:
    live = compose_stage("dpo", WORDS)
    first = estimate(live, PlanConfig(gpus=2))
    assert first.reference_flops > 0
    # A run of the very same configuration: the plan is what it took.
    made = run(tmp_path / "a", first.useful.total / 4, 2.5, like=live)
    assert estimate(live, PlanConfig(gpus=2, measured=made)).step_s == pytest.approx(5.0)
    once = compose_stage("dpo", [*WORDS, "dpo.reference=precomputed"])
    with pytest.raises(ValueError, match=r"has dpo\.reference=live and the plan precomputed"):
        pace_of([made], once, 2)


@pytest.mark.parametrize("text", ["", "trainer: {optim: [", "stage: pretrain\nmodel: 3\n", "of_another_tool: 1\n"])
def test_a_configuration_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    made = run(tmp_path / "a", 4e9, 0.8)
    (tmp_path / "a" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"plan: measured=.*/a (is not a readable run folder|has )"):
        pace_of([made], CFG, 2)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["model.llm.config.num_hidden_layers=3"], "model.llm"),
        (["trainer.compile_layers=true"], "trainer.compile_layers"),
        (["data.encoder_cache=x", "model.freeze=[encoder]"], "model.freeze"),
    ],
)
def test_runs_of_another_kind_are_refused(words: list[str], name: str, tmp_path: Path) -> None:
    other = compose_stage("pretrain", [*WORDS, *words])
    with pytest.raises(ValueError, match=f"has {name}="):
        pace_of([run(tmp_path / "a", 4e9, 0.8)], other, 2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"world": 4}, "ran on 4 processes and the plan is for gpus=2"),
        ({"steps": 4}, "has 4 steps after its first 5: 10 are needed"),
        ({"bf16": True}, "has trainer.bf16=True and the plan False"),
        ({"flops": 1.2e9}, "take nearly the same operations"),
    ],
)
def test_runs_that_say_nothing_are_refused(tmp_path: Path, made: dict[str, Any], message: str) -> None:
    other = run(tmp_path / "b", **{"flops": 4e9, "seconds": 0.9, **made})
    with pytest.raises(ValueError, match=message):
        pace_of([run(tmp_path / "a", 1e9, 0.3), other], CFG, 2)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a readable run folder"):
        pace_of([str(tmp_path)], CFG, 2)
