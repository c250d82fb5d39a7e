"""The three stages through the command line: they run, resume exactly, and agree across processes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qa_train.config import STAGES
from qa_train.config.compose import compose_stage
from qa_train.planner.balance import open_planned
from qa_train.train.job import checkpoints
from tests.train.conftest import metrics, run
from tests.train.forks import forks
from tests.train.make_golden import GOLDEN, golden_of

Options = Callable[[str, Path], list[str]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, options: Options) -> Callable[[str], Path]:
    """An undisturbed run of a stage in one process, made once."""
    made: dict[str, Path] = {}

    def folder_of(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp("plain") / stage
            done = run(stage, *options(stage, made[stage]))
            (made[stage] / "screen.txt").write_text(done.stdout + done.stderr)
        return made[stage]

    return folder_of


@pytest.mark.parametrize("stage", STAGES)
def test_the_numbers_are_those_of_the_golden_file(stage: str, plain: Callable[[str], Path], options: Options) -> None:
    """Losses, gradient norms and the order of samples: no change of the code may move them unsaid (make_golden.py)."""
    folder = plain(stage)
    found, golden = golden_of(stage, options(stage, folder), folder), json.loads(GOLDEN.read_text())[stage]
    assert found["order"] == golden["order"]
    assert len(found["steps"]) == len(golden["steps"])
    for step, expected in zip(found["steps"], golden["steps"], strict=True):
        # Other processors round float32 sums otherwise; on one machine the numbers are equal.
        assert step == pytest.approx(expected, rel=2e-5)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_and_explains_itself(stage: str, plain: Callable[[str], Path], options: Options) -> None:
    folder = plain(stage)
    records = metrics(folder)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        assert {"loss", "grad_norm", "supervised_tokens", "tokens_per_s", "audio_s_per_s"} <= set(record)
        assert record["supervised_tokens"] > 0
        assert record["audio_s"] > 0
        assert record["tokens/made"] + record["tokens/french"] == record["supervised_tokens"]
        if stage == "dpo":
            assert {"rewards/margins", "kl/chosen", "lengths/rejected"} <= set(record)
            assert ("rewards/margins/french" in record) == (record["tokens/french"] > 0)
        else:
            parts = [record.get(f"loss/{source}", 0) * record[f"tokens/{source}"] for source in ("made", "french")]
            assert sum(parts) / record["supervised_tokens"] == pytest.approx(record["loss"], rel=1e-5)
    assert 0 < records[0]["epoch/french"] < records[-1]["epoch/french"]
    assert {row["source"]: row["weight"] for row in json.loads((folder / "mixture.json").read_text())} == {
        "made": 2, "french": 1,
    }  # fmt: skip
    assert records[-1]["loss"] < records[0]["loss"]
    assert (folder / "config.yaml").is_file()
    assert checkpoints.newest_complete(folder / "checkpoints") == folder / "checkpoints" / "checkpoint-6"
    # Commands that build no model know the same order: data order, plan data and the planner.
    planned = open_planned(compose_stage(stage, options(stage, folder))).plan
    manifest = checkpoints.read_manifest(folder / "checkpoints" / "checkpoint-6")
    assert planned.fingerprint == manifest["plan_fingerprint"]
    screen = (folder / "screen.txt").read_text()
    assert [line.partition(" ")[0] for line in screen.splitlines()[:11]] == [
        stage, "weights", "data", "skipped", "mixture", "steps", "planning", "machine", "time", "saves", "writes"
    ]  # fmt: skip
    # Nothing of the libraries in between: no bars, no warnings; steps as plain lines.
    assert len(screen.splitlines()) < 18
    assert "\r" not in screen
    assert " left" in screen
    assert "made" in (folder / "data.txt").read_text()
    again = run(stage, *options(stage, folder))
    assert "finished after 6 steps" in again.stdout
    assert len(metrics(folder)) == 6


def test_dpo_starts_at_ln_2(plain: Callable[[str], Path]) -> None:
    first = metrics(plain("dpo"))[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_an_interrupted_run_equals_an_undisturbed_one(
    stage: str, tmp_path: Path, plain: Callable[[str], Path], options: Options
) -> None:
    folder = tmp_path / "run"
    words = options(stage, folder)
    for _ in range(9):
        started = forks().start([stage, *words])
        started.until(lambda started=started: started.steps >= 2, "two steps")
        started.kill(number=signal.SIGTERM)
        (code,) = started.codes()
        if code == 75:
            break
        # It had taken its last step before the signal came.
        assert (folder / "finished.json").is_file(), started.said()
        shutil.rmtree(folder)
    assert code == 75
    # What a crash leaves behind: an unfinished checkpoint and half a line.
    (folder / "checkpoints" / "checkpoint-5").mkdir(exist_ok=True)
    (folder / "checkpoints" / "checkpoint-6").mkdir(exist_ok=True)
    (folder / "checkpoints" / "checkpoint-6" / "manifest.json.part").write_text("{")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run(stage, *words)
    keep = ("step", "loss", "grad_norm", "supervised_tokens")
    assert [{k: r[k] for k in keep} for r in metrics(folder)] == [
        {k: r[k] for k in keep} for r in metrics(plain(stage))
    ]
    digests = [
        checkpoints.read_manifest(f / "checkpoints" / "checkpoint-6")["weights_digest"] for f in (folder, plain(stage))
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(stage: str, tmp_path: Path, plain: Callable[[str], Path], options: Options) -> None:
    run(stage, *options(stage, tmp_path / "two"), processes=2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(plain(stage)), rtol=1e-5)
    # Adam hides a wrong scale of the gradient from the loss, not from this.
    norms = [[record["grad_norm"] for record in metrics(f)] for f in (tmp_path / "two", plain(stage))]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    for found, expected in zip(metrics(tmp_path / "two"), metrics(plain(stage)), strict=True):
        by_source = {name: value for name, value in expected.items() if "/" in name}
        assert {f"tokens/{source}" for source in ("made", "french")} <= set(by_source)
        for name, value in by_source.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, plain: Callable[[str], Path], options: Options
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain("pretrain"), folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    (folder / "finished.json").unlink()
    run("pretrain", *options("pretrain", folder), processes=2)
    np.testing.assert_allclose(losses(folder), losses(plain("pretrain")), rtol=1e-5)
    # Killed between the last save and the mark of the finish.
    (folder / "finished.json").unlink()
    run("pretrain", *options("pretrain", folder))
    assert (folder / "finished.json").is_file()
    assert len(metrics(folder)) == 6


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_a_step_without_a_usable_sample_is_no_end(stage: str, tmp_path: Path, shards: Path, options: Options) -> None:
    kind = "pairs" if stage == "dpo" else "speech"
    for path in sorted(shards.glob(f"{kind}-*")):
        shutil.copy(path, tmp_path)
        if path.suffix == ".tar":
            # The index still fits the size, but no clip fits its checksum.
            (tmp_path / path.name).write_bytes(bytes(path.stat().st_size))
    words = [word.replace(str(shards), str(tmp_path)) for word in options(stage, tmp_path / "run")]
    sft_term = ["dpo.loss_type=[sigmoid,sft]", "dpo.loss_weights=[1.0,0.2]"] if stage == "dpo" else []
    run(stage, *words, *sft_term, "trainer.max_steps=2", "data.error_budget=1")
    records = metrics(tmp_path / "run")
    assert [record["grad_norm"] for record in records] == [0, 0]
    assert records[-1]["skipped_samples"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("stage", [*STAGES, "dpo with a precomputed reference"])
def test_zero_on_two_processes_equals_one(
    stage: str, zero: int, tmp_path: Path, plain: Callable[[str], Path], options: Options
) -> None:
    folder = tmp_path / "zero"
    stage, _, reference = stage.partition(" with a ")
    words = options(stage, folder)
    more = [f"deepspeed=zero{zero}"]
    more += ["dpo.reference=precomputed"] if reference else []
    if zero == 3:
        # Every parameter is cut, however small.
        more.append("deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0")
    run(stage, *words, *more, processes=2)
    np.testing.assert_allclose(losses(folder), losses(plain(stage)), rtol=1e-5)
    if stage == "dpo":
        # The reference is known by its weights, cut or not.
        facts = [
            json.loads((each / "reference/reference.json").read_text())["facts"] for each in (folder, plain(stage))
        ]
        assert facts[0]["weights_digest"] == facts[1]["weights_digest"]
    if stage == "pretrain" and zero == 3:
        _resume_zero3(words, folder, losses(plain(stage)))


def _resume_zero3(words: list[str], folder: Path, expected: list[float]) -> None:
    """A ZeRO-3 run goes on as it was, and says what it needs when it is asked to go on otherwise."""
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    (folder / "finished.json").unlink()
    other = run("pretrain", *words, check=False)
    assert other.returncode == 2
    assert "use the same deepspeed=" in other.stderr
    run("pretrain", *words, "deepspeed=zero3",
        "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0", processes=2)  # fmt: skip
    np.testing.assert_allclose(losses(folder), expected, rtol=2e-5)


def test_other_settings_in_the_same_folder_are_refused(plain: Callable[[str], Path], options: Options) -> None:
    words = [w for w in options("pretrain", plain("pretrain")) if not w.startswith("trainer.max_steps")]
    done = run("pretrain", *words, "trainer.max_steps=9", "data.tokens_per_batch=300", check=False)
    assert done.returncode == 2
    assert "data.tokens_per_batch" in done.stderr
    assert "run.allow_config_change=true" in done.stderr


def test_weights_that_did_not_arrive_stop_the_run(
    tmp_path: Path, plain: Callable[[str], Path], options: Options
) -> None:
    folder = tmp_path / "run"
    words = options("pretrain", folder)
    shutil.copytree(plain("pretrain"), folder)
    (folder / "finished.json").unlink()
    manifest_file = folder / "checkpoints" / "checkpoint-6" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    manifest["weights_digest"] = "0" * 64
    manifest_file.write_text(json.dumps(manifest))
    done = run("pretrain", *words, "trainer.max_steps=8", check=False)
    assert done.returncode == 1
    assert "not those that were saved" in done.stderr
