"""The wheel and the sdist: built here, installed into a venv of their own, and used far from the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from qa_train import __version__
from tests.train.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, made from the sdist, and the sdist."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)], cwd=ROOT, check=True)
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        tar.extractall(out / "source", filter="data")
    (unpacked,) = (out / "source").iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=unpacked, check=True)
    return out


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qa-train of a new venv that holds the wheel, and sees this environment's packages but not its qa-train."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Its own .pth files, such as that of an editable install, are not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = built.glob("*.whl")
    subprocess.run(
        [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--ignore-installed",
            wheel,
        ],
        check=True,
        cwd=folder,
        env=_environment(),
    )
    return folder / "bin" / "qa-train"


def _environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own


def test_what_is_inside(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"qa_train/_configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs <= names
    # Modules, the chat page, the tokenizer.
    code = {
        str(path.relative_to(ROOT))
        for folder in ("qa_train", "data_pipelines")
        for path in (ROOT / folder).rglob("*.*")
    }
    code = {name for name in code if "__pycache__" not in name}
    assert (
        {"qa_train/cli.py", "qa_train/infer/page/page.html", "qa_train/infer/page/vendor/purify.min.js"} < code <= names
    )
    assert any(name.endswith("licenses/qa_train/report/templates/uplot/LICENSE") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    assert f"Version: {__version__}\n" in zipfile.ZipFile(wheel).read(metadata).decode()
    owners = {name.split("/")[0] for name in names}
    assert owners == {"qa_train", "data_pipelines", f"qa_train-{__version__}.dist-info"}
    assert wheel.stat().st_size < 3e6
    with tarfile.open(next(built.glob("*.tar.gz"))) as tar:
        source = {name.partition("/")[2] for name in tar.getnames()}
    kept = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "configs/pretrain.yaml"}
    assert kept <= source
    for name in names | source:
        assert not name.startswith(("tests/", "data/", ".ci/", "runs/", "dist/")), name
        assert not re.search(r"__pycache__|\.pyc$|_cache/|\.egg-info", name), name


def test_it_works_in_another_folder(program: Path, tmp_path: Path) -> None:
    environ = _environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def qa_train(*words: str, code: int = 0) -> str:
        done = subprocess.run([program, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    where = subprocess.run(
        [program.parent / "python", "-c", "import qa_train; print(qa_train.__file__)"],
        cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(program.parent.parent))
    composed = yaml.safe_load(qa_train("pretrain", "--cfg", "job", "experiment=smoke", "run.dir=runs/x"))
    assert composed["run"]["dir"] == "runs/x"
    assert composed["trainer"]["max_steps"] == 8
    assert "packages" in qa_train("doctor")
    assert "fits" in qa_train("plan", "pretrain", "experiment=pretrain_7b", "gpu=h100", "gpus=8")
    assert "librispeech" in qa_train("data", "import", "--list")
    assert qa_train("--version") == f"qa-train {__version__}\n"
    assert "before a run" in qa_train("--help")
    # The starter recordings are part of the repository, not of the wheel: what stands for them is made once, and said.
    told = "generated melodies in " + str(tmp_path / "cache" / "qa-train")
    assert told in qa_train("pretrain", "experiment=smoke", "run.dir=runs/pretrain")
    for stage, before in (("sft", "pretrain"), ("dpo", "sft")):
        words = ("experiment=smoke", f"run.dir=runs/{stage}", f"model.checkpoint=runs/{before}")
        said = qa_train(stage, *words, "trainer.max_steps=2")
        assert "finished: 2 steps" in said
        assert told not in said
    losses = [json.loads(line)["loss"] for line in (tmp_path / "runs/pretrain/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
