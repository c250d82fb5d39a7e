"""Evaluation during training: real runs that are killed, stopped and shared, beside undisturbed ones."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.callbacks.held_out import _apart, _rows, keep_clips, summary
from qa_train.config import EvalSetConfig, EvaluationConfig, StageConfig
from qa_train.config.checks.evaluation_checks import check_evaluation
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.sample import AudioPart, Message, Sample
from qa_train.eval.answers import Outcome, predictions
from qa_train.eval.compare import compare_folders
from qa_train.eval.questions import Question
from qa_train.utils.atomic import write_json_lines
from tests.train.conftest import ROOT, command, environment, metrics, options, run, shards  # noqa: F401
from tests.train.forks import forks

Options = Callable[[str, Path], list[str]]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine records that no run trains on."""
    path = tmp_path_factory.mktemp("held") / "held.tar"
    rng = np.random.default_rng(7)
    with ShardWriter(str(path)) as writer:
        for i in range(9):
            wave = rng.normal(0, 0.1, int(16_000 * rng.uniform(0.4, 1.9))).astype(np.float32)
            record = {"text": f"held out text number {i}", "language": ("en", "fr")[i % 2]}
            writer.write(f"held-{i}", record, [wave])
    return path


def words(held_out: Path, every: int) -> list[str]:
    sets = f"{{asr: {{shards: ['{held_out}']}}, lid: {{shards: ['{held_out}'], task: lid, limit: 7}}}}"
    return [f"evaluation.every={every}", f"+evaluation.sets={sets}", "evaluation.batch_size=3",
            "evaluation.max_new_tokens=6"]  # fmt: skip


def scores(folder: Path) -> list[tuple[int, Any, Any, Any]]:
    return [(r["step"], r["eval/asr"], r["eval/lid"], r["evaluation"]) for r in metrics(folder) if "evaluation" in r]


def answers(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.glob("held_out/*/*/predictions.jsonl"))}


def test_records_that_share_a_key_keep_clips_of_their_own(tmp_path: Path) -> None:
    def asked(seconds: float) -> Question:
        wave = np.random.default_rng(int(seconds)).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
        sample = Sample("same", (Message("user", (AudioPart(0),)),), 1, "asr", "en", "base")
        return Question(sample, lambda: (wave,), ("x",), "wer", "asr", "en")

    sets = {"asr": [asked(1), asked(20)]}
    kept = keep_clips(sets, tmp_path / "all", EvaluationConfig())["asr"]
    assert len({(tmp_path / "all" / path).stat().st_size for path in kept.values()}) == len(kept) == 2
    # The second is too large for what is left: the first one stays.
    size = (tmp_path / "all" / kept[0]).stat().st_size
    tight = keep_clips(sets, tmp_path / "tight", EvaluationConfig(samples_mib=2 * size / 2**20))["asr"]
    assert [*tight] == [0]
    assert [path.stat().st_size for path in (tmp_path / "tight/clips/asr").iterdir()] == [size]


def test_records_that_share_a_key_are_lines_of_their_own(tmp_path: Path) -> None:
    sample = Sample("same", (Message("user", (AudioPart(0),)),), 1, "asr", "en", "base")
    questions = [Question(sample, lambda: (), (f"text {i}",), "wer", "asr", "en") for i in range(3)]
    outcomes = [Outcome("text 1")] * 3
    rows = _rows(questions, outcomes, predictions(questions, outcomes), {})
    assert [row["id"] for row in rows] == ["same", "same#2", "same#3"]
    for step in ("step-0", "step-2"):
        (tmp_path / step / "asr").mkdir(parents=True)
        write_json_lines(tmp_path / step / "asr" / "predictions.jsonl", rows)
    assert compare_folders(tmp_path / "step-0", tmp_path / "step-2")["asr"]["n"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo"])
def test_a_killed_run_has_every_number_once_and_training_does_not_notice(
    stage: str, tmp_path: Path, held_out: Path, options: Options  # noqa: F811
) -> None:  # fmt: skip
    plain, whole, killed = tmp_path / "plain", tmp_path / "whole", tmp_path / "killed"
    run(stage, *options(stage, plain))
    run(stage, *options(stage, whole), *words(held_out, 1))
    lines = [r for r in metrics(whole) if "loss" in r]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in lines] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in metrics(plain)
    ]
    assert [step for step, *_ in scores(whole)] == [0, 1, 2, 3, 4, 5, 6]
    assert all(found["asr"]["n"] == 9 and found["lid"]["n"] == 7 for *_, found in scores(whole))

    process = forks().start([stage, *options(stage, killed), *words(held_out, 1)])
    # The checkpoint is of step 4: step 5 is evaluated twice, and its number must be there once.
    process.until(lambda: '"step": 5' in _text(killed / "metrics.jsonl"), "step 5")
    process.kill()
    assert process.codes() == [-signal.SIGKILL], "the run was over before it could be killed"
    run(stage, *options(stage, killed), *words(held_out, 1))
    assert scores(killed) == scores(whole)
    assert answers(killed) == answers(whole)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


@pytest.mark.slow
def test_two_processes_share_the_questions_and_a_stop_makes_up_for_what_it_left_out(
    tmp_path: Path, held_out: Path, options: Options  # noqa: F811
) -> None:  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    more = [*words(held_out, 1), "trainer.max_steps=2"]
    run("sft", *options("sft", one), *more)
    two.mkdir()
    # Stops after the first step, saving first: its evaluation comes when the run goes on.
    (two / "STOP").touch()
    run("sft", *options("sft", two), *more, processes=2, check=False)
    assert [step for step, *_ in scores(two)] == [0]
    run("sft", *options("sft", two), *more, processes=2)
    assert [step for step, *_ in scores(two)] == [step for step, *_ in scores(one)] == [0, 1, 2]
    # Before the first step both have the same weights to the last bit.
    assert scores(two)[0] == scores(one)[0]
    first = {k: v for k, v in answers(one).items() if "step-0" in k}
    assert first
    assert first.items() <= answers(two).items()
    row = json.loads(first["held_out/step-0/asr/predictions.jsonl"].splitlines()[0])
    assert {"id", "gt", "metric", "prediction", "truncated", "right"} <= row.keys()
    # The clips of the first questions lie beside the answers, as far as was asked for.
    kept = [json.loads(line).get("clip") for line in first["held_out/step-0/asr/predictions.jsonl"].splitlines()]
    assert [clip is not None for clip in kept] == [True] * 8 + [False]
    assert (two / "held_out" / kept[0]).stat().st_size > 500


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, held_out: Path, options: Options) -> Path:  # noqa: F811
    """One process, whole weights."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run("pretrain", *options("pretrain", folder), *words(held_out, 2), "trainer.max_steps=2")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "processes", "same_training"),
    [
        (["deepspeed=zero1"], 2, True),
        (["deepspeed=zero2"], 2, True),
        # Nothing small enough to stay whole: all weights are cut.
        (["deepspeed=zero3", "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"], 2, True),
        # Adapters start at zero: the same answers before the first step, and training of its own.
        (["model.lora.parts=[encoder,llm]", "model.lora.r=4"], 1, False),
    ],
    ids=["zero1", "zero2", "zero3", "lora"],
)
def test_answers_are_those_of_a_plain_run(
    more: list[str], processes: int, same_training: bool, tmp_path: Path, held_out: Path, undisturbed: Path,
    options: Options,  # noqa: F811
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    run(
        "pretrain", *options("pretrain", folder), *words(held_out, 2), "trainer.max_steps=2", *more, processes=processes
    )
    assert [step for step, *_ in scores(folder)] == [0, 2]
    expected, found = answers(undisturbed), answers(folder)
    assert len(found) == 4
    if same_training:
        losses = [[r["loss"] for r in metrics(side) if "loss" in r] for side in (folder, undisturbed)]
        np.testing.assert_allclose(*losses, rtol=2e-6)
    else:
        expected, found = ({k: v for k, v in side.items() if "step-0" in k} for side in (expected, found))
    assert found == expected
    # The tiny model says different things to different clips: equal answers are no accident.
    assert len({json.loads(line)["prediction"] for text in found.values() for line in text.splitlines()}) > 4


@pytest.mark.slow
def test_training_data_are_refused(tmp_path: Path, shards: Path, options: Options) -> None:  # noqa: F811
    sets = f"{{asr: {{shards: ['{shards}/speech-000.tar']}}}}"
    done = run("pretrain", *options("pretrain", tmp_path / "run"), "evaluation.every=1", f"+evaluation.sets={sets}",
               check=False)  # fmt: skip
    assert done.returncode == 2
    assert "data.sources.made read the same records" in done.stderr


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ({"split": "test"}, {"split": "train"}, True),
        ({"split": ["test", "dev"]}, {"split": ["train", "dev"]}, False),
        ({"split": "test"}, {"language": "en"}, False),
        ({}, {"split": "train"}, False),
    ],
)
def test_filters_that_keep_records_apart(one: dict[str, Any], other: dict[str, Any], apart: bool) -> None:
    assert _apart(one, other) is apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "without evaluation.sets"),
        ({"sets": {"a b": EvalSetConfig(["x.tar"])}}, "not a valid column name"),
        ({"sets": {"a": EvalSetConfig()}}, "sets.a.shards is empty"),
        ({"sets": {"a": EvalSetConfig(["x.tar"], template="x")}}, "use base or chat"),
        ({"sets": {"a": EvalSetConfig(["x.tar"], limit=0)}}, "limit is 0"),
        ({"batch_size": 0}, "evaluation.batch_size is 0: use 1 or more"),
        ({"keep_best": "eval/b"}, "will not measure"),
        ({"keep_best": "eval/a", "save_steps": 3}, "multiple of evaluation.every"),
        ({"keep_best": "eval/a", "save_steps": 4}, None),
    ],
)
def test_settings_that_contradict_each_other(change: dict[str, Any], message: str | None) -> None:
    cfg = StageConfig(evaluation=EvaluationConfig(every=2, sets={"a": EvalSetConfig(["x.tar"])}))
    for name, value in change.items():
        setattr(cfg.trainer if hasattr(cfg.trainer, name) else cfg.evaluation, name, value)
    if message is None:
        check_evaluation(cfg)
        return
    with pytest.raises(ValueError, match=message):
        check_evaluation(cfg)


def test_the_line_counts_odd_answers() -> None:
    found = {"metric": "wer", "ci_low": 20.0, "ci_high": 40.0, "n": 9, "empty": 1, "truncated": 0, "failed": 2}
    line = summary(4, {"eval/asr": 31.26, "evaluation": {"asr": found | {"unparsed": 0}}, "eval_s": 1.5})
    assert line == "evaluation at step 4: asr 31.3 (wer, 20.0 to 40.0, n = 9; 1 empty, 2 failed); 1.5 s"
