"""The full-scale experiments compose, plan and fit; the plan says what it assumed and what would help."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.cli import main
from qa_train.config import ModelConfig, PlanConfig, config_dir
from qa_train.config.compose import compose_stage
from qa_train.data.shards.writer import ShardWriter
from qa_train.planner.estimate import Estimate, estimate
from qa_train.planner.memory import GIB
from qa_train.planner.output import as_text
from qa_train.planner.sizes import Sizes, measure

_measured: dict[str, Sizes] = {}


def _once(cfg: ModelConfig) -> Sizes:
    key = repr(asdict(cfg))
    if key not in _measured:
        _measured[key] = measure(cfg)
    return _measured[key]


@pytest.fixture(autouse=True)
def _plan_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is built once; no shards are there."""
    monkeypatch.setitem(estimate.__globals__, "measure", _once)
    for name in ("QA_TRAIN_DATA", "QA_TRAIN_BASE", "QA_TRAIN_SFT"):
        monkeypatch.delenv(name, raising=False)


def plan(stage: str, *words: str, **options: Any) -> Estimate:
    return estimate(compose_stage(stage, list(words)), PlanConfig(**options))


# Of records that are there a whole window is read.
SMALL = "data.shuffle_window=200"
# What the headers of the experiments add on more GPUs.
MORE = {
    "pretrain_7b": {512: ["trainer.batches_per_step=512", "trainer.max_steps=15000"]},
    "sft_7b": {512: ["trainer.batches_per_step=512", "trainer.max_steps=1000"]},
    "dpo_7b": {
        64: ["data.tokens_per_batch=6000", "trainer.batches_per_step=64"],
        512: ["data.tokens_per_batch=6000", "trainer.batches_per_step=512", "trainer.max_steps=125"],
    },
}
ONE_CARD = Path(__file__).parents[2] / "docs" / "start" / "one_card.md"


@pytest.mark.parametrize("experiment", MORE)
@pytest.mark.parametrize("gpus", [8, 64, 512])
def test_the_papers_recipe_fits_at_every_size(experiment: str, gpus: int) -> None:
    words = MORE[experiment].get(gpus, [])
    made = plan(experiment.partition("_")[0], f"experiment={experiment}", *words, gpus=gpus)
    assert made.fits
    assert 8.2e9 < made.sizes.parameters < 8.5e9
    assert f"{gpus} x H100" in as_text(made)
    header = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    assert " ".join(words) in header
    if gpus == 8:
        assert f"# Time:      {made.wall_hours:.0f} hours on " in header
    else:
        # The same number of tokens in all.
        before = plan(experiment.partition("_")[0], f"experiment={experiment}", gpus=8)
        tokens = [sum(task.tokens for task in each.load.tasks) for each in (before, made)]
        assert tokens[1] == pytest.approx(tokens[0], rel=0.01)
        assert made.gpu_hours == pytest.approx(before.gpu_hours, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "experiment", "gpu", "gpus"),
    [
        ("pretrain", "low_budget", "a100-40", 8),
        ("sft", "one_gpu_24gb", "4090", 1),
        ("sft", "one_gpu_48gb", "l40s", 1),
        ("sft", "one_gpu_80gb", "h100", 1),
        ("sft", "one_gpu_141gb", "h200", 1),
    ],
)
def test_the_smaller_recipes_fit_where_they_say(stage: str, experiment: str, gpu: str, gpus: int) -> None:
    made = plan(stage, f"experiment={experiment}", gpu=gpu, gpus=gpus)
    assert made.fits, as_text(made)
    assert made.sizes.trained_parameters < 0.1 * made.sizes.parameters
    assert "shapes as written" in as_text(made)
    header = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    assert f"# Time:      {made.wall_hours:.0f} hours on " in header
    if gpus == 1:
        (row,) = [line for line in ONE_CARD.read_text().splitlines() if f"| `{experiment}` |" in line]
        assert row.endswith(f"| {made.memory.total / GIB:.0f} GiB | {made.wall_hours:.0f} h |")


def test_states_of_the_released_model_are_those_of_the_zero_paper() -> None:
    """8.397 B parameters at 16 bytes each, shared by 8: 15.6 GiB (ZeRO-3), 29.3 (ZeRO-2), 43.0 (ZeRO-1).

    Adding up gradients in float32 takes 2 bytes more for each parameter that a GPU has the gradient of: 2.0 GiB.
    """
    # Shards that are not there: nothing of them is read.
    words = ["model=qwen2_audio_7b", "trainer.bf16=true", "data=paper_pretrain"]
    for stage, expected in ((3, 15.6 + 2.0), (2, 29.3 + 2.0), (1, 43.0)):
        kinds = plan("pretrain", f"deepspeed=zero{stage}", *words).memory.kinds
        states = sum(kinds[name] for name in ("weights", "gradients", "optimizer states"))
        assert states / GIB == pytest.approx(expected, abs=0.1)


def test_what_does_not_fit_gets_a_way_out() -> None:
    words = ["model=qwen2_audio_7b", "trainer.bf16=true", "data=paper_sft", "deepspeed=zero2"]
    made = plan("sft", *words, gpu="a100-40")
    assert not made.fits
    (first,) = made.suggestions  # activations alone are too much: more GPUs would not help
    chosen = dict(word.split("=") for word in first.removeprefix("it fits with ").split())
    assert chosen.pop("zero") == "3"
    assert chosen["trainer.gradient_checkpointing.llm"] in ("selective", "full")
    # What is suggested does fit, and a step keeps its size.
    after = plan("sft", *words[:-1], "deepspeed=zero3", *(f"{k}={v}" for k, v in chosen.items()), gpu="a100-40")
    assert after.fits
    assert sum(t.tokens for t in after.load.tasks) == pytest.approx(sum(t.tokens for t in made.load.tasks), rel=0.02)


def test_states_that_do_not_fit_need_more_gpus() -> None:
    full = [f"trainer.gradient_checkpointing.{part}=full" for part in ("encoder", "llm")]
    words = ["model=qwen2_audio_7b", "trainer.bf16=true", "data=paper_sft", "deepspeed=zero3", *full]
    made = plan("sft", *words, gpu="a100-40", gpus=2)
    assert not made.fits
    assert any("offload=optimizer" in each for each in made.suggestions)
    assert any("it fits unchanged on gpus=8" in each for each in made.suggestions)
    assert plan("sft", *words, gpu="a100-40", gpus=8).fits


def test_work_and_time_follow_from_the_formulas() -> None:
    words = ["experiment=sft_7b"]
    base = plan("sft", *words, mfu=0.5, price=2.0)
    assert plan("sft", *words, mfu=0.25).step_s == pytest.approx(2 * base.step_s)
    assert plan("sft", *words, mfu=0.5, gpus=16).step_s == pytest.approx(base.step_s / 2)
    recomputing = plan("sft", *words, "trainer.gradient_checkpointing.llm=full", mfu=0.5)
    assert 1.2 < recomputing.step_s / base.step_s < 1.4
    assert recomputing.memory.activations.total < base.memory.activations.total
    assert f"costs {base.gpu_hours * 2:,.0f} at 2 per GPU-hour" in as_text(base)
    once = ["deepspeed=zero2", "dpo.reference=precomputed"]
    live, cached = plan("dpo", "experiment=dpo_7b"), plan("dpo", "experiment=dpo_7b", *once)
    assert live.reference_flops > 0 == cached.reference_flops
    assert "reference model" in live.memory.kinds
    assert "reference model" not in cached.memory.kinds


def test_declared_hours_give_epochs_and_shares() -> None:
    words = [
        "experiment=pretrain_7b",
        "data=empty",
        "+data.sources={a:{shards:[x.tar],task:asr},b:{shards:[y.tar],task:lid}}",
    ]
    made = plan(
        "pretrain", *words, "data.mixture.by=temperature", "data.mixture.temperature=2", hours={"a": 400, "b": 100}
    )
    a, b = made.load.tasks
    assert a.share == pytest.approx(2 / 3)
    assert a.epochs == pytest.approx(a.hours / 400)
    assert b.epochs == pytest.approx(b.hours / 100)
    assert [problem.partition(":")[0] for problem in made.load.problems] == ["shards not read"]
    assert "needs the hours" in as_text(plan("pretrain", *words, "data.mixture.by=temperature"))
    for wrong, key in (("data.mixture.by=size", "by is 'size'"), ("data.mixture.temperature=0", "temperature is 0")):
        with pytest.raises(ValueError, match=key):
            plan("pretrain", *words, "data.mixture.by=temperature", wrong, hours={"a": 400, "b": 100})


def test_shards_that_are_there_are_planned(tmp_path: Path) -> None:
    from qa_train.data.shards.writer import ShardWriter
    from tests.data.conftest import noise

    with ShardWriter(tmp_path / "s-%d.tar", max_samples=20) as writer:
        for i in range(40):
            writer.write(f"k{i}", {"text": "green bird", "language": "en"}, noise(1.0, seed=i))
    sources = f"+data.sources={{a:{{shards:['{tmp_path}/s-*.tar'],task:asr}}}}"
    made = plan("pretrain", "experiment=smoke", "data=empty", SMALL, sources, gpus=2, zero=None)
    assert made.load.origin.startswith("the shards")
    assert made.load.clip_s == pytest.approx(1.0, abs=0.05)
    (task,) = made.load.tasks
    assert task.epochs == pytest.approx(task.samples / 40)
    # A GPU computes a step of the tiny model far faster than a process plans one.
    assert made.load.planned_per_s is not None
    assert "  -> planning would delay the GPUs: write token counts with qa-train data tokens" in as_text(made)
    slow = replace(made, load=replace(made.load, planned_per_s=1e12))
    assert "delay the GPUs" not in as_text(slow)
    assert "each machine plans 1,000,000,000,000" in as_text(slow)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert run("plan", "sft", "experiment=smoke", SMALL, "gpus=2", "gpu=l4", f"json={out}", "price=1.5") == 0
    found = json.loads(out.read_text())
    assert found["fits"]
    assert found["gpus"] == 2
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 1.5)
    assert sum(found["parameters"].values()) == sum(found["trained"].values()) + 96_000
    assert run("plan", "sft", "experiment=sft_7b", "zero=2", "gpu=l4") == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpu=tpu"], "use one of h200"),
        (["gpus=3"], "use a multiple of 3"),
        (["mfu=40"], "0 < mfu <= 1"),
        (["zero=5"], "use 0 (plain), 1, 2 or 3"),
        (["offload=optimizer"], "use offload=optimizer with zero="),
        (["trainer.optim=lion_8bit", "gpus=2"], "its memory is not known"),
        (["clip_s=-1", "data=paper_sft", "gpus=2"], "use sizes > 0"),
        (["hours.nothing=3", "data=paper_sft", "gpus=2"], "no such source"),
        (["trainer.max_step=3"], "did you mean trainer.max_steps"),
        (["modle=tiny"], "did you mean model"),
        (["model=tiy"], "did you mean model=tiny"),
        (["trainer.max_steps=many"], "trainer.max_steps"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "sft", "experiment=smoke", SMALL, *words) == 2
    shown = capsys.readouterr().err
    assert message in shown.splitlines()[-1]
    assert "Traceback" not in shown


def test_shards_at_hand_are_counted_although_the_tokenizer_is_not(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "chats.tar")) as writer:
        for i in range(8):
            turns = [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "Yes."}]
            writer.write(f"c{i}", {"messages": turns}, [np.full(16_000 * (2 + i % 2), 0.1, np.float32)])
    here = f"chats:{{shards:['{tmp_path}/chats.tar'],task:chat,template:chat}}"
    away = f"away:{{shards:['{tmp_path}/away.tar'],task:chat,template:chat,weight:3}}"
    words = ["model=qwen2_audio_7b", "model.checkpoint=nobody/has-it", "deepspeed=zero2", "data=empty", SMALL]
    made = plan("sft", *words, f"+data.sources={{{here}}}", gpus=2)
    (task,) = made.load.tasks
    assert task.epochs == pytest.approx(task.samples / 8)
    assert task.hours == pytest.approx(task.samples * 2.5 / 3600)
    assert "8 available records, 2.5 s on average" in as_text(made)
    made = plan("sft", *words, f"+data.sources={{{here},{away}}}", gpus=2)
    known, unknown = made.load.tasks
    assert known.epochs == pytest.approx(known.samples / 8)
    assert unknown.epochs is None
    assert any("not available" in problem and "away" in problem for problem in made.load.problems)


def test_adapters_of_layers_that_no_model_has_are_refused_as_by_the_run() -> None:
    words = ["experiment=smoke", "model.freeze=[encoder]", "model.lora.parts=[llm]"]
    words.append("model.lora.target_modules=[qproj]")
    with pytest.raises(ValueError, match="did you mean q_proj"):
        plan("pretrain", *words, gpus=1)
