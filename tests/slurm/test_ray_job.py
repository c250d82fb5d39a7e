"""slurm/ray.sbatch on a real Slurm: a node of Ray on each of two Slurm nodes of this machine."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.data_pipelines.corpora.made_up import write_tree
from tests.slurm.test_sbatch import ROOT, Slurm, slurm  # noqa: F401 (a fixture)

# Two nodes of Ray and of Slurm on two busy cores may take longer than the limit of a job here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra cluster is missing"),
    pytest.mark.skipif("RAY_ON_SLURM" not in os.environ, reason="takes minutes alone: RAY_ON_SLURM=1 runs it"),
]


def test_an_import_runs_on_the_nodes_of_a_job(slurm: Slurm, tmp_path: Path) -> None:  # noqa: F811
    names = [f"u{i:02d}" for i in range(24)]
    files = {
        "a.wav": 2.0,
        "wav.scp": "".join(f"{name} a.wav\n" for name in names),
        "text": "".join(f"{name} hello\n" for name in names),
    }
    corpus, out = write_tree(tmp_path / "in", files), tmp_path / "out"
    slurm.env["RAY_worker_niceness"] = "0"  # other programs of this machine have their own

    def submit(*words: str) -> str:
        log = f"--output={slurm.state}/job-%j.out"
        sbatch = ("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", log, "slurm/ray.sbatch")
        return slurm.call(*sbatch, *words, cwd=ROOT)

    job = submit("import", "kaldi", f"path={corpus}", f"out={out}", "samples_per_shard=2")
    facts = slurm.end_of(job)
    nodes = ROOT / f"slurm-{job}-ray.log"
    started = nodes.read_text() if nodes.exists() else ""
    nodes.unlink(missing_ok=True)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), slurm.log(job) + started
    assert json.loads((out / "kaldi-train.report.json").read_text())["made"] == 24
    assert len(list(out.glob("*.tar"))) == 12
    assert started.count("Ray runtime started") == 2, started

    # The code of the command is that of the job.
    job = submit("import", "kaldi", f"path={tmp_path / 'nothing'}", f"out={out}")
    assert slurm.end_of(job)["ExitCode"] == "2:0", slurm.log(job)
    (ROOT / f"slurm-{job}-ray.log").unlink()
