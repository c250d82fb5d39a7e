"""What a person sees before a run: help, completion, and errors that name the nearest valid word."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qa_train.command_line.command_table import COMMANDS
from qa_train.command_line.completion import complete
from qa_train.command_line.help import command_help
from qa_train.config import STAGES, config_dir, register
from qa_train.config.guide import GROUPS, group_options
from qa_train.config.nearest import explain, nearest, valid_keys
from tests.train.conftest import ROOT, environment


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("trainer.max_step", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("learning_rate", "trainer.learning_rate"),
        ("data.token_per_batch", "data.tokens_per_batch"),
        ("modle", "model"),
        ("data.sources.mine.wieght", "data.sources.mine.weight"),
        ("trainer.gradient_checkpointing.lm", "trainer.gradient_checkpointing.llm"),
        ("trainer.lr", None),
        # Their last words are like those of keys elsewhere, which mean something else.
        ("dpo.rpo_alpha", None),
        ("dpo.simpo_gamma", None),
        ("dpo.ld_alfa", "dpo.ld_alpha"),
        ("nonsense", None),
    ],
)
def test_nearest_key(wrong: str, right: str | None) -> None:
    assert nearest(wrong) == right


def test_only_errors_of_the_configuration_are_explained() -> None:
    assert explain(ValueError("Key 'x' not in 'y'")) is None


def test_every_key_that_is_offered_exists() -> None:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        shown = OmegaConf.to_yaml(compose(config_name="pretrain", overrides=["experiment=smoke", "run.dir=unused"]))
    keys = {line.strip().partition(":")[0] for line in shown.splitlines()}
    assert {key.rpartition(".")[2] for key in valid_keys()} <= keys


@pytest.mark.parametrize("stage", STAGES)
def test_stage_help_lists_every_option_of_every_group(stage: str) -> None:
    text = command_help(COMMANDS[stage])
    for group in GROUPS[1:]:
        for path in (config_dir() / group).glob("*.yaml"):
            assert f"  {path.stem} " in text or f"  {path.stem}\n" in text
        assert all(about for _, about in group_options(group)), f"a file of configs/{group} opens with no comment"
    assert f"{stage}_7b" in text
    assert "experiment=" in text
    assert "smoke" in text


@pytest.mark.parametrize(
    "value",
    ["/tmp/ünï", "日本", "runs/lr=1e-4", "x(y)", "it's", "runs/#1", "a;b", "a&b", "x[1", 'ü"q', "ü\\b", "naïve folder"],
)
def test_a_value_that_hydra_cannot_read_is_answered_with_the_quotes(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create()
    with pytest.raises(OverrideParseException) as error:
        parser.parse_overrides([f"run.dir={value}"])
    told = explain(error.value)
    assert told is not None
    assert "\n" not in told
    _, _, written = told.partition("put the value into quotes: ")
    (word,) = shlex.split(written)
    assert parser.parse_override(word).value() == value


def test_a_url_in_a_list_is_answered_with_quotes() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    with pytest.raises(OverrideParseException) as error:
        OverridesParser.create().parse_overrides(["data.sources.x.shards=[https://h/x.tar?a=b&c=d]"])
    assert """'data.sources.x.shards=["https://h/x.tar?a=b&c=d"]'""" in str(explain(error.value))


def test_help_of_a_command_explains_its_options() -> None:
    for name, shown in (
        ("plan", "gpu=h100"), ("plan", "ZeRO stage 1, 2 or 3"), ("plan data", "steps="), ("eval", "checkpoint="),
        ("eval", "judge.model="), ("data mixtures", "snr_db=[0.0,20.0]"), ("data import", "where.KEY="),
        ("data import", "of them stop the import"), ("data voice-chat", "path=... (required)"),
    ):  # fmt: skip
        assert shown in command_help(COMMANDS[name])
    assert "Raises" not in "".join(command_help(command) for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("p", ["pretrain", "plan", "pairs"]),
        ("pretrain experiment=smo", ["experiment=smoke"]),
        ("pretrain trainer.max_st", ["trainer.max_steps="]),
        ("plan ", ["data", *STAGES]),
        ("plan s", ["sft"]),
        ("data st", ["stats"]),
        ("data rew", ["rewrite"]),
        ("data stats tok", ["tokenizer="]),
        ("data voice-chat noise_s", ["noise_share=", "noise_snr_db="]),
        ("data order world", ["world_size="]),
        ("data nosuch x", []),
        ("completion z", ["zsh"]),
        ("chat a", ["audio=", "allow_missing="]),
    ],
)
def test_completion(line: str, found: list[str]) -> None:
    assert complete(f"qa-train {line}") == found
    assert "gpu=" in complete("qa-train plan sft g")
    assert {"steps=", "data=", "data.seed="} <= set(complete("qa-train plan data "))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    """The script as bash runs it, where "=" ends a word."""
    (tmp_path / "qa-train").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qa_train "$@"\n')
    (tmp_path / "qa-train").chmod(0o755)
    script = """
eval "$(qa-train completion bash)"
ask() { COMP_LINE=$1 COMP_POINT=${#1}; COMPREPLY=(); _qa_train; echo "${COMPREPLY[*]}"; }
ask "qa-train sft experiment=smo"
ask "qa-train dash"
"""
    env = environment()
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env | {"PATH": f"{tmp_path}:{env['PATH']}"},
    )
    assert done.stdout.splitlines() == ["smoke", "dashboard"], done.stderr
