"""The guides: blocks marked ``bash run`` are executed, and every command they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from qa_train.config import config_dir
from qa_train.config.guide import GROUPS
from qa_train.config.nearest import valid_keys
from qa_train.config.planning import PlanConfig
from tests.train.conftest import ROOT, environment

GUIDES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```bash( run)?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([\w./-]+\.md)\)")


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
                if not mark or name.startswith(("data.sources", "hydra")) or name.split(".")[0] in own:
                    continue
                assert name in GROUPS or name in valid_keys(), f"{path.name}: {word}"
                if name in GROUPS:
                    assert (config_dir() / name / f"{value}.yaml").is_file(), f"{path.name}: {word}"


def test_links_between_guides_lead_somewhere() -> None:
    for path in GUIDES:
        for target in _LINK.findall(path.read_text()):
            assert (path.parent / target).is_file(), f"{path.name} -> {target}"
