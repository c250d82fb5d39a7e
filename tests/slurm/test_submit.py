"""slurm/submit.sh and the array jobs, with stand-ins for sbatch and for the commands they start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent.parent / "slurm"
SCRIPTS = sorted(SLURM.glob("*.s*"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_can_read_every_script(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Checkout:
    """A small git checkout with slurm/, and programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        shutil.copytree(SLURM, self.folder / "slurm")
        (self.folder / "qa_train").mkdir()
        (self.folder / "qa_train" / "__init__.py").write_text("version = 1\n")
        (self.folder / ".gitignore").write_text("runs/\n.venv/\n")
        programs = folder / "bin"
        programs.mkdir()
        self.calls = folder / "calls"
        self.program(programs / "sbatch", f'echo "sbatch $*" >> {self.calls}; echo $((100 + $(wc -l < {self.calls})))')
        self.program(programs / "qa-train", f'echo "qa-train $*" >> {self.calls}')
        # Stands for the resolved configuration.
        self.program(programs / "python", 'echo "resolved: $*"; echo "from: $PYTHONPATH $PYTHONSAFEPATH"')
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "activate").touch()
        self.env = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "QA_TRAIN_VENV": ".venv"}
        self.env.pop("PYTHONPATH", None)
        self.env |= {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
            assert self.run("git", *words).returncode == 0

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.folder, env=self.env | more, capture_output=True, text=True, timeout=60
        )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    return Checkout(tmp_path)


def test_three_stages_are_frozen_and_chained(checkout: Checkout) -> None:
    done = checkout.run(
        "slurm/submit.sh", "--sbatch=-N2", "pretrain", "run.dir=runs/p", "--", "sft", "model.checkpoint=runs/p",
        "run.dir=runs/s", "--", "dpo", "run.dir=runs/d",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = checkout.calls.read_text().splitlines()
    assert [call.split("slurm/train.sbatch ")[1] for call in calls] == [
        "pretrain run.dir=runs/p", "sft model.checkpoint=runs/p run.dir=runs/s", "dpo run.dir=runs/d",
    ]  # fmt: skip
    assert "--dependency" not in calls[0]
    assert "--dependency=afterok:101 --kill-on-invalid-dep=yes" in calls[1]
    assert "--dependency=afterok:102" in calls[2]
    assert all("-N2" in call for call in calls)
    run = checkout.folder / "runs" / "p"
    assert f"QA_TRAIN_CODE={run}/code" in calls[0]
    assert (run / "code" / "qa_train" / "__init__.py").read_text() == "version = 1\n"
    assert (run / "submitted.yaml").read_text().splitlines() == [
        "resolved: -m qa_train pretrain run.dir=runs/p --cfg job --resolve", f"from: {run}/code 1",
    ]  # fmt: skip
    commit = checkout.run("git", "rev-parse", "HEAD").stdout.strip()
    assert (run / "code" / "COMMIT").read_text().startswith(commit)


def test_a_dirty_checkout_is_refused_unless_told(checkout: Checkout) -> None:
    (checkout.folder / "qa_train" / "__init__.py").write_text("version = 2\n")
    (checkout.folder / "new.py").touch()
    refused = checkout.run("slurm/submit.sh", "pretrain", "run.dir=runs/p")
    assert refused.returncode == 2
    assert "--allow-dirty" in refused.stderr
    assert not checkout.calls.exists()
    assert checkout.run("slurm/submit.sh", "--allow-dirty", "pretrain", "run.dir=runs/p").returncode == 0
    code = checkout.folder / "runs" / "p" / "code"
    assert (code / "qa_train" / "__init__.py").read_text() == "version = 2\n"
    assert (code / "new.py").is_file()
    assert "qa_train/__init__.py" in (code / "COMMIT").read_text()


def test_a_run_that_is_submitted_again_keeps_its_code(checkout: Checkout) -> None:
    checkout.run("slurm/submit.sh", "pretrain", "run.dir=runs/p")
    (checkout.folder / "qa_train" / "__init__.py").write_text("version = 2\n")
    checkout.run("git", "commit", "-qam", "second")
    again = checkout.run("slurm/submit.sh", "--after=77", "pretrain", "run.dir=runs/p")
    assert again.returncode == 0
    assert "it goes on with that code" in again.stderr
    assert "--dependency=afterok:77" in checkout.calls.read_text()
    assert (checkout.folder / "runs" / "p" / "code" / "qa_train" / "__init__.py").read_text() == "version = 1\n"


@pytest.mark.parametrize("words", [[], ["--nonsense"], ["pretrain"], ["pretrain", "run.dir=a", "--", "--"]])
def test_wrong_use_submits_nothing_more(checkout: Checkout, words: list[str]) -> None:
    assert checkout.run("slurm/submit.sh", *words).returncode == 2
    assert not checkout.calls.exists() or len(checkout.calls.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("eval.sbatch", ["checkpoint=c", "data={}", "out=r/{name}"], "eval checkpoint=c data=b/two.x.jsonl out=r/two"),
        ("data.sbatch", ["index", "{}"], "data index b/two.x.jsonl"),
    ],
)
def test_an_array_task_takes_its_line(checkout: Checkout, script: str, words: list[str], expected: str) -> None:
    (checkout.folder / "list.txt").write_text("a/one.jsonl\nb/two.x.jsonl\n")
    here = {"SLURM_SUBMIT_DIR": str(checkout.folder)}
    done = checkout.run("bash", f"slurm/{script}", "list.txt", *words, SLURM_ARRAY_TASK_ID="2", **here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkout.calls.read_text() == f"qa-train {expected}\n"
    late = checkout.run("bash", f"slurm/{script}", "list.txt", *words, SLURM_ARRAY_TASK_ID="3", **here)
    assert late.returncode == 2
    assert "no line 3" in late.stdout
    alone = checkout.run("bash", f"slurm/{script}", "list.txt", *words, **here)
    assert alone.returncode == 2
    assert "submit it as an array" in alone.stdout
