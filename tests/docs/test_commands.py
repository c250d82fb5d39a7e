"""Every command in the bash blocks of README, CONTRIBUTING and the guides: it is known, and so is each of its keys.

Stages and plans are composed as they stand, without running; the options of other commands must be in their ``--help``.
The guides' blocks marked ``bash run`` are executed besides (test_guides.py).
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qa_train.cli import main
from qa_train.commands.plan import PlanDataConfig
from qa_train.config import OrderConfig, PlanConfig, StageConfig, config_dir, register, to_stage_config
from qa_train.config.guide import GROUPS
from qa_train.utils import plugins
from tests.train.conftest import ROOT

register()

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```bash(?: run)?\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<\s*'?(\w+)'?.*?^\1$", flags=re.MULTILINE | re.DOTALL)
_OWN = {"plan": PlanConfig, "data": PlanDataConfig, "order": OrderConfig}
# What a reader replaces: left out of a command, or given one of its meanings.
_PLACEHOLDERS = ("...", "…")
_MEANT = {"STAGE": "pretrain"}
# Not checked, and why.
EXCEPTIONS = {"data=mine": "a file of the reader's own, shown above the command"}


def commands(page: Path) -> list[list[str]]:
    """The words after ``qa-train`` (or ``-m qa_train``, or the SLURM script) of every command of a page."""
    found = []
    page_text = page.read_text()
    rest = _HERE.sub("", _BLOCK.sub("", page_text)).replace("\\\n", " ")
    # Besides the blocks: code by indentation, and commands within a sentence.
    texts = [block for _, block in _BLOCK.findall(page_text)]
    texts += re.findall(r"^ {4,}(?:qa-train|torchrun) .*$", rest, flags=re.MULTILINE)
    texts += [span.replace("\n", " ") for span in re.findall(r"`(qa-train\s[^`]+)`", rest)]
    for block in texts:
        text = _HERE.sub("", block).replace("\\\n", " ")
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word and set(word) <= set("|;&"):
                    found += _after_program(words)
                    words = []
                else:
                    words.append(word)
    return found


def _after_program(words: list[str]) -> list[list[str]]:
    for i, word in enumerate(words):
        if word in ("qa-train", "qa_train") or word.endswith(("train.sbatch", "qa-train.sif")):
            rest = [_MEANT.get(w, w) for w in words[i + 1 :] if not w.endswith(_PLACEHOLDERS) and w not in EXCEPTIONS]
            rest = [w for w in rest if not w.startswith(("<", ">"))]
            # docker build -t qa-train . and apptainer build qa-train.sif apptainer.def name an image, no command.
            return [] if not rest or (words[0] in ("docker", "apptainer") and words[1] == "build") else [rest]
    return []


@cache
def help_of(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0, f"qa-train {' '.join(words)} --help"
    return out.getvalue()


def check(words: list[str]) -> None:
    """AssertionError, ValueError or Hydra's error for a command that could not be meant."""
    name, rest = words[0], [w for w in words[1:] if w != "--help"]
    if not rest and name in ("pretrain", "sft", "dpo", "plan"):
        return  # a command that is named, not given
    if name in ("pretrain", "sft", "dpo"):
        compose_stage(name, rest)
    elif name == "plan" or words[:2] == ["data", "order"]:
        kind = _OWN["order" if name == "data" else "data" if rest[0] == "data" else "plan"]
        own = [w for w in rest[1:] if w.partition("=")[0].split(".")[0] in kind.__dataclass_fields__]
        stage = next((w.partition("=")[2] for w in own if w.startswith("stage=")), "pretrain")
        compose_stage(stage if rest[0] in ("data", "order") else rest[0], [w for w in rest[1:] if w not in own])
    elif not words[-1].startswith("--"):
        sub = words[: 2 if name == "data" else 1]
        text = help_of(*sub)
        for key in (w.partition("=")[0] for w in words[len(sub) :] if re.match(r"[a-z_.]+=", w)):
            assert re.search(rf"(?:^|[\s\[]){re.escape(key.split('.')[0])}[=.]", text), f"{key} is not in its --help"


def compose_stage(stage: str, words: list[str]) -> StageConfig:
    """The configuration of a stage as the words say it; of a sweep, with the first value of each list."""
    words, _ = plugins.taken_from(words)
    words = [w for w in words if not w.startswith("hydra") and w not in ("--cfg", "job", "-m", "-c")]
    words = [re.sub(r"=(tag\(.*|interval\(.*)$", "=1e-5", w) for w in words]
    words = [re.sub(r"^([\w.]+=[^\[{,$]+),.*", r"\1", w).replace("${hydra:job.num}", "0") for w in words]
    if not any(w.startswith("run.dir=") for w in words):
        words.append("run.dir=unused")
    for group, _, option in (w.partition("=") for w in words):
        # Hydra passes over an experiment that does not exist; the command line does not.
        assert group not in GROUPS or (config_dir() / group / f"{option}.yaml").is_file(), f"no {group}={option}"
    return to_stage_config(compose(config_name=stage, overrides=words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_commands_can_be_meant(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        wrong = []
        for words in commands(page):
            try:
                check(words)
            except Exception as error:  # every fault of a page at once
                wrong.append(f"{' '.join(words)}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_bash(page: Path) -> None:
    for indent, block in _BLOCK.findall(page.read_text()):
        text = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize(
    "line",
    ["pretrain experiment=smoke trainer.max_stepz=1", "sft experiment=nosuch", "eval checkpoint=x dataa=y",
     "plan sft experiment=sft_7b gpuz=8", "data stats x.tar storge.retries=8", "data nosuch x"],
)  # fmt: skip
def test_a_wrong_key_or_name_is_found(line: str) -> None:
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())),
        pytest.raises(BaseException),  # noqa: B017
    ):
        check(line.split())


def test_the_pages_hold_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 60
