"""Ready recipes compared on a card and a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qa_train.cli import main
from qa_train.config import PlanConfig
from qa_train.planner.recipes import offers


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QA_TRAIN_DATA", "QA_TRAIN_BASE", "QA_TRAIN_SFT"):
        monkeypatch.delenv(name, raising=False)


def status(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


def test_the_smallest_card_gets_the_recipe_that_is_made_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "sft", "gpu=4090", "gpus=1", "budget_hours=24", "price=2", f"json={tmp_path / 'a.json'}"]
    assert not status(words)
    told = capsys.readouterr().out
    assert "qa-train sft experiment=one_gpu_24gb trainer.max_steps=4000 run.dir=runs/one_gpu_24gb" in told
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["experiment"] for each in found if each["fits"]] == ["one_gpu_24gb"]
    assert "does not fit" in next(line for line in told.splitlines() if "one_gpu_141gb" in line)
    # What is bought is what is shown: 2 an hour.
    assert f"{2 * found[0]['gpu_hours']:.2f} in all" in told


def test_a_budget_buys_whole_steps() -> None:
    (half,) = offers("sft", ["experiment=one_gpu_80gb"], PlanConfig(gpu="h100", gpus=1, budget_hours=5))
    (whole,) = offers("sft", ["experiment=one_gpu_80gb"], PlanConfig(gpu="h100", gpus=1, budget_hours=500))
    assert whole.steps == whole.made.cfg.trainer.max_steps
    assert half.steps == int(5 * 3600 / half.made.step_s) < whole.steps
    assert half.gpu_hours <= 5 < (half.steps + 1) * half.made.step_s / 3600
    assert half.samples / half.steps == pytest.approx(whole.samples / whole.steps)


def test_several_cards_are_started_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert not status(["plan", "pretrain", "gpu=h100", "gpus=64", "budget_hours=24"])
    told = capsys.readouterr().out
    assert "torchrun --nproc-per-node 8 -m qa_train pretrain experiment=" in told
    assert "on each of 8 machines" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpus=3"], "no recipe of sft is for 3 GPUs"),
        (["budget_hours=0"], "use hours above 0"),
        (["budget_hours=-1"], "use hours above 0"),
    ],
)
def test_what_cannot_be_compared(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["plan", "sft", "budget_hours=24", *words]) == 2
    assert said in capsys.readouterr().err


def test_nothing_that_fits_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["plan", "sft", "gpu=l4", "gpus=1", "budget_hours=1", "experiment=sft_7b"]) == 1
    assert "none fits: qa-train plan sft experiment=sft_7b" in capsys.readouterr().out
