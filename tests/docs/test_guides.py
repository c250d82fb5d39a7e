"""The guides: blocks marked ``bash run`` are executed, and every command they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qa_train.config import PlanConfig, config_dir
from qa_train.config.guide import GROUPS
from qa_train.config.nearest import valid_keys
from tests.train.conftest import ROOT, environment

GUIDES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/start").glob("*.md")])
_BLOCK = re.compile(r"^```bash( run)?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[bool, str]]:
    """(whether it is executed, its text) of every bash block."""
    return [(bool(run), text) for run, text in _BLOCK.findall(path.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in GUIDES if any(run for run, _ in blocks(p))], ids=lambda p: p.stem)
def test_the_commands_of_a_guide_work(path: Path, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(text for run, text in blocks(path) if run)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


# What a reader has at hand: a recording, and questions about it.
_OF_THE_READER = """
import json, numpy, soundfile
soundfile.write("recording.wav", numpy.random.default_rng(0).normal(0, 0.1, 16000), 16000)
line = {"audio": "recording.wav", "prompt": "What is said?", "gt": "good morning", "source": "mine", "metric": "wer"}
open("questions.jsonl", "w").write(json.dumps(line))
"""
# Instead of the reader's: what its walk-through made before, and the environment of the tests.
_STANDS_FOR = {"source .venv/bin/activate": "", "runs/quickstart/export": "runs/smoke-hf"}


@pytest.mark.slow
def test_the_walk_through_of_the_readme_works(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("## Use it")[1]
    text = next(text for _, text in _BLOCK.findall(section))
    for old, new in _STANDS_FOR.items():
        assert old in text
        text = text.replace(old, new)
    subprocess.run([sys.executable, "-c", _OF_THE_READER], cwd=tmp_path, check=True)
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{text}"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs/smoke-hf/README.md").is_file()
    assert (tmp_path / "runs/smoke-eval").is_dir()


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)
def test_stage_commands_use_keys_that_exist(path: Path) -> None:
    own = set(PlanConfig.__dataclass_fields__) | {"stage", "steps", "world_size", "num_workers"}
    for _, text in blocks(path):
        for line in text.replace("\\\n", " ").splitlines():
            found = re.search(
                r"(?:qa-train|qa_train)(?: plan| plan data| data order)? +(?:pretrain|sft|dpo)\b(.*)", line
            )
            if not found:
                continue
            for word in shlex.split(found[1].partition("|")[0]):
                name, mark, value = word.lstrip("+").partition("=")
                if (
                    not mark
                    or name.startswith(("data.sources", "evaluation.sets", "hydra", "plugins"))
                    or name.split(".")[0] in own
                ):
                    continue
                assert name in GROUPS or name in valid_keys(), f"{path.name}: {word}"
                if name in GROUPS:
                    assert (config_dir() / name / f"{value}.yaml").is_file(), f"{path.name}: {word}"
