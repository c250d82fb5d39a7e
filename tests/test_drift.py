"""The rule of ``evaluation.stop``: which evaluations count as a drift, and what a run does then."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qa_train.callbacks.drift import check_rule, drifted, mean_words
from qa_train.callbacks.held_out import HeldOut
from qa_train.cli import main
from qa_train.config import EvalSetConfig, EvaluationConfig, StageConfig, StopConfig
from qa_train.config.checks.evaluation_checks import check_evaluation
from qa_train.data.text.sample import Message, Sample
from qa_train.eval.answers import Outcome
from qa_train.eval.questions import Question
from qa_train.train.safety.guards import StopRun


def record(value: float, words: float = 10.0, step: int = 0) -> dict[str, Any]:
    return {"step": step, "eval/a": value, "evaluation": {"a": {"words": words}}}


@pytest.mark.parametrize(
    ("rule", "now", "words"),
    [
        (StopConfig(rise=1.0), record(21.0), None),
        (StopConfig(rise=1.0), record(21.01), "a rose by 1.0 points, from 20.0 to 21.0 (evaluation.stop.a.rise: 1)"),
        (StopConfig(rise=1.0), record(0.0, 90.0), None),
        (StopConfig(rise=0.0), record(20.1), "rose by 0.1 points"),
        (StopConfig(fall=5.0), record(15.0), None),
        (StopConfig(fall=5.0), record(14.9), "a fell by 5.1 points, from 20.0 to 14.9"),
        (StopConfig(fall=5.0), record(99.0), None),
        (StopConfig(length_ratio=1.3), record(20.0, 13.1), "answers of 13.1 words instead of 10.0"),
        (StopConfig(length_ratio=1.3), record(20.0, 7.6), "answers of 7.6 words instead of 10.0"),
        (StopConfig(length_ratio=1.3), record(99.0, 7.7), None),
        (StopConfig(rise=9.0, length_ratio=1.0), record(20.0), None),
        (StopConfig(rise=9.0, length_ratio=1.0), record(20.0, 10.1), "length_ratio: 1"),
    ],
)
def test_limits(rule: StopConfig, now: dict[str, Any], words: str | None) -> None:
    found = drifted("a", rule, record(20.0), now)
    assert found is None if words is None else words in str(found)


@pytest.mark.parametrize(
    ("rule", "metric", "message"),
    [
        (StopConfig(rise=1.0), "accuracy", "a.rise: accuracy is better when it is higher; use fall"),
        (StopConfig(rise=1.0), "bleu", "use fall"),
        (StopConfig(fall=1.0), "wer", "a.fall: wer is better when it is lower; use rise"),
        (StopConfig(fall=1.0), "cp_wer", "use rise"),
        (StopConfig(rise=1.0), "cer", None),
        (StopConfig(fall=1.0), "contains", None),
        (StopConfig(length_ratio=2.0), "chrf", None),
    ],
)
def test_a_limit_on_the_better_side_is_refused(rule: StopConfig, metric: str, message: str | None) -> None:
    if message is None:
        check_rule("a", rule, metric)
        return
    with pytest.raises(ValueError, match=message):
        check_rule("a", rule, metric)


def test_words_of_an_answer() -> None:
    sample = Sample("k", (Message("user", ()),), 0, "asr", "en", "base")
    asked = [Question(sample, lambda: (), ("x",), "wer", "a", language) for language in ("en", "zh", None)]
    assert (
        mean_words(
            asked, [Outcome("<|en|>Two words."), Outcome("<think>What?</think>四个汉字"), Outcome(error="broken")]
        )
        == 2.0
    )


class Watched(HeldOut):
    """Evaluates to given values, in a run folder of its own."""

    def __init__(self, folder: Path, rule: StopConfig, values: list[float]) -> None:
        self.options = EvaluationConfig(every=2, sets={"a": EvalSetConfig(["x.tar"])}, stop={"a": rule})
        run = SimpleNamespace(metrics=folder / "metrics.jsonl", is_main=True)
        self.stage: Any = SimpleNamespace(run=run, cfg=StageConfig(stage="dpo"))
        self.trainer: Any = SimpleNamespace(report=self.report)
        self.values = values
        self.own: list[bool] = []

    def report(self, numbers: dict[str, Any], *, own_record: bool = False) -> None:
        self.own.append(own_record)
        with self.stage.run.metrics.open("a") as file:
            file.write(json.dumps(numbers) + "\n")

    def evaluate(self, model: Any, step: int, args: Any) -> dict[str, Any]:
        return record(self.values[step // 2], step=step)

    def step(self, number: int) -> None:
        state = SimpleNamespace(global_step=number, max_steps=8)
        call = self.on_train_begin if number == 0 else self.on_step_end
        call(None, state, SimpleNamespace(should_training_stop=False))


def test_a_run_is_compared_with_its_first_evaluation_and_stops(tmp_path: Path) -> None:
    run = Watched(tmp_path, StopConfig(rise=1.0), [20.0, 20.9, 20.2, 21.5])
    for step in (0, 1, 2, 3, 4, 5):
        run.step(step)
    with pytest.raises(StopRun, match=r"step 6: a rose by 1.5 points.*Use an earlier checkpoint.*larger dpo.beta"):
        run.step(6)
    # What stopped it is written down, though its step is not.
    assert run.own == [True, False, False, True]
    # A run that goes on, after a kill say, keeps its first evaluation.
    again = Watched(tmp_path, StopConfig(rise=1.0), [0.0, 0.0, 0.0, 21.1])
    with pytest.raises(StopRun, match=r"from 20\.0 to 21\.1"):
        again.step(6)
    again.options.stop = {}
    again.step(6)


def test_a_warning_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Watched(tmp_path, StopConfig(fall=1.0, action="warn"), [20.0, 10.0, 19.5, 12.0])
    for step in (0, 2, 4, 6):
        run.step(step)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["step 2", "step 6"]
    assert "fell by 10.0 points" in told[0]
    assert run.own == [True, False, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": {"b": StopConfig(rise=1.0)}}, r"evaluation.stop.b: evaluation.sets has no such set \(a\)"),
        ({"stop": {"a": StopConfig()}}, "evaluation.stop.a has no limit"),
        ({"stop": {"a": StopConfig(rise=-1.0)}}, "needs rise and fall of 0 or more"),
        ({"stop": {"a": StopConfig(fall=-0.1)}}, "needs rise and fall of 0 or more"),
        ({"stop": {"a": StopConfig(length_ratio=0.5)}}, "a length_ratio of 1 or more"),
        ({"stop": {"a": StopConfig(rise=1.0, action="end")}}, "a.action is 'end': use stop or warn"),
        ({"stop": {"a": StopConfig(rise=1.0)}, "every": 0}, "set evaluation.every"),
        ({"stop": {"a": StopConfig(rise=0.0, length_ratio=1.0, action="warn")}}, None),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_settings_that_contradict_each_other(stage: str, change: dict[str, Any], message: str | None) -> None:
    cfg = StageConfig(stage=stage, evaluation=EvaluationConfig(every=2, sets={"a": EvalSetConfig(["x.tar"])}))
    for name, value in change.items():
        setattr(cfg.evaluation, name, value)
    if message is None:
        check_evaluation(cfg)
        return
    with pytest.raises(ValueError, match=message):
        check_evaluation(cfg)


@pytest.mark.parametrize("word", ["dpo.gates.every=2", "dpo.gates={every: 2}", "dpo.gates.action=stop"])
def test_the_setting_of_before_is_answered_with_the_new_one(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dpo", "experiment=smoke", f"run.dir={tmp_path / 'run'}", word])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "evaluation.stop.speech={rise: 1.0, length_ratio: 1.3}" in told
    assert "Traceback" not in told
