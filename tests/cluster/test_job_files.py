"""Files for other schedulers: their fields exist there, and their scripts save, stop and go on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.processes import free_port
from tests.train.conftest import ROOT, environment, metrics, options, shards  # noqa: F401

HERE, FILES = Path(__file__).parent, ROOT / "scripts" / "cluster"
RUNTIME, JOB = yaml.safe_load_all((FILES / "trainjob.yaml").read_text())
SKY = yaml.safe_load((FILES / "skypilot.yaml").read_text())
NODE = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def schemas(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / f"{name}_schemas.json").read_text()))


@pytest.mark.parametrize("document", [RUNTIME, JOB], ids=lambda each: each["kind"])
def test_kubeflow_knows_the_fields(document: dict[str, Any]) -> None:
    schema = schemas("kubeflow")[document["kind"]]
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "spec": {**document["spec"], "numNodes": 2}}, schema)
    assert JOB["spec"]["runtimeRef"]["name"] == RUNTIME["metadata"]["name"]


def test_skypilot_knows_the_fields() -> None:
    known = schemas("skypilot")
    jsonschema.validate(SKY, known["task"])
    jsonschema.validate(SKY["resources"], known["resources"])
    jsonschema.validate(SKY["file_mounts"]["/runs"], known["storage"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SKY["resources"], "spot": True}, known["resources"])


def kubernetes(words: list[str], run: Path) -> tuple[list[str], dict[str, str]]:
    """The command of the training container and the variables that Kubeflow gives it."""
    pod = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "PET_NODE_RANK": "0", "RUN_DIR": str(run)}
    pod |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    return [*JOB["spec"]["trainer"]["command"], *words], pod


def skypilot(words: list[str], run: Path) -> tuple[list[str], dict[str, str]]:
    stage, *settings = words
    machine = {"SKYPILOT_NUM_GPUS_PER_NODE": "2", "STAGE": stage, "SETTINGS": " ".join(settings), "RUN_DIR": str(run)}
    return ["bash", "-c", SKY["run"]], machine


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [kubernetes, skypilot])
def test_a_job_that_is_evicted_saves_and_goes_on(
    scheduler: Any, tmp_path: Path, options: Callable[[str, Path], list[str]]  # noqa: F811
) -> None:  # fmt: skip
    """Two ranks under torchrun; the hook of the pod asks them to stop; the next attempt trains the rest."""
    run = tmp_path / "run"
    words = [word for word in options("pretrain", run) if not word.startswith("run.dir=")]
    words = [word.replace(" ", "").replace("'", '"') if scheduler is skypilot else word for word in words]
    command, variables = scheduler(["pretrain", *words, "trainer.max_steps=400", "trainer.save_steps=400"], run)
    env = environment() | variables
    job = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
    try:
        while not (run / "metrics.jsonl").is_file() and job.poll() is None:
            time.sleep(0.2)
        (hook,) = [container["lifecycle"]["preStop"]["exec"]["command"] for container in NODE["containers"]]
        subprocess.run(hook, env=env, check=True)
        # What a pod gets next: its first process, that is.
        job.terminate() if scheduler is kubernetes else None
        assert job.wait(120) == 75
    finally:
        if job.poll() is None:
            os.killpg(job.pid, 9)
    done = len(metrics(run))
    assert 0 < done < 400
    assert not (run / "STOP").exists()
    command, _ = scheduler(["pretrain", *words, f"trainer.max_steps={done + 2}"], run)
    if scheduler is skypilot:
        env |= scheduler(["pretrain", *words, f"trainer.max_steps={done + 2}"], run)[1]
    assert subprocess.run(command, env=env, cwd=ROOT, timeout=300).returncode == 0
    assert [record["step"] for record in metrics(run)] == list(range(1, done + 3))
