"""Sweeps: every job in a folder of its own, and one number for a sweeper that searches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qa_train.config.sweep import check_sweep, objective
from tests.train.conftest import environment

SMOKE = ["pretrain", "-m", "experiment=smoke", "trainer.max_steps=1", "trainer.save_steps=1"]


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qa_train", *SMOKE, *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


def test_jobs_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same for every job.*'run.dir=runs/a/\$\{hydra:job.num\}'"):
        check_sweep(["--multirun", "run.dir=runs/a/", "trainer.learning_rate=1,2"])
    for words in (["run.dir=x"], ["-m", "run.dir=x-${hydra:job.num}"], ["-m", "run.dir=a,b"], ["-m", "experiment=x"]):
        check_sweep(words)


def test_the_objective_is_the_end_of_the_run(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 100.0 - step, "bad": None} for step in range(1, 101)]
    rows[59]["eval/wer"] = 7.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert objective(tmp_path, "loss") == pytest.approx(sum(range(10)) / 10)
    assert objective(tmp_path, "eval/wer") == 7.0
    with pytest.raises(ValueError, match=r"run\.objective=bad: no step .* there are eval/wer, loss, step"):
        objective(tmp_path, "bad")


def test_skipped_steps_do_not_count(tmp_path: Path) -> None:
    lines = ['{"step": 19, "loss": 2.0}', '{"step": 20, "loss": 0.0, "skipped_because": "left out"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert objective(tmp_path, "loss") == 2.0


@pytest.mark.slow
def test_one_job_after_another(tmp_path: Path) -> None:
    done = sweep(tmp_path, "run.dir=s-${hydra:job.num}", "trainer.learning_rate=1e-3,1e-4")
    assert done.returncode == 0, done.stderr
    assert "s-1: run.objective" in done.stdout
    # A job that fails ends the sweep with its message and a code.
    failed = sweep(tmp_path, "run.dir=f-${hydra:job.num}", "model.checkpoint=nowhere,null")
    assert failed.returncode == 2
    assert "run.dir=f-0 ended with code 2" in failed.stderr


@pytest.mark.slow
def test_optuna_searches(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sweep(
        tmp_path, "run.dir=o-${hydra:job.num}", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1", "trainer.learning_rate=interval(1e-4,1e-2)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("multirun/*/*/optimization_results.yaml")
    best = yaml.safe_load(found.read_text())
    values = [objective(tmp_path / f"o-{i}", "loss") for i in range(2)]
    assert best["best_value"] == pytest.approx(min(values))


@pytest.mark.slow
def test_submitit_runs_the_jobs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("run.dir=s-${hydra:job.num}", "hydra/launcher=submitit_local", "trainer.learning_rate=1e-3,1e-4")
    assert sweep(tmp_path, *words).returncode == 0
    assert all((tmp_path / f"s-{i}" / "finished.json").is_file() for i in range(2))
