"""Keys of other tools: each is a setting of that name, or is answered by what it is here.

Those of the table in docs/coming-from.md are typed, and must be answered as it says.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from qa_train.__main__ import main
from qa_train.command_line.command_table import _ELSEWHERE, COMMANDS, NAMES
from qa_train.config import ChatConfig, EvalConfig, ExportConfig, ServeConfig
from qa_train.config.habits import habit, tables
from qa_train.config.nearest import valid_keys
from qa_train.data.shards.sidecar import SUFFIX
from tests.train.conftest import ROOT

# Fields whose section here has the same name, and groups.
SECTIONS = {
    TrainingArguments: ("trainer.", ""),
    SFTConfig: ("trainer.", ""),
    DPOConfig: ("dpo.", "trainer.", ""),
    LoraConfig: ("model.lora.",),
}


@pytest.mark.parametrize("library", SECTIONS, ids=lambda each: each.__name__)
def test_every_field_of_the_libraries_is_a_setting_or_is_answered(library: Any) -> None:
    known = {*valid_keys(), "deepspeed"}
    missing = [
        field.name
        for field in fields(library)
        if not any(section + field.name in known for section in SECTIONS[library]) and habit(field.name) is None
    ]
    assert missing == []


def test_every_name_is_answered_once() -> None:
    names = [name for table in ("settings", "no_setting") for names in tables()[table].values() for name in names]
    assert Counter(names).most_common(1)[0][1] == 1


def test_the_keys_of_the_answers_exist() -> None:
    known = {*valid_keys(), "data.sources.NAME", "evaluation.sets.NAME"}
    said = {
        word
        for answer in (*tables()["settings"], *tables()["no_setting"])
        for word in re.findall(r"\b(?:trainer|data|model|dpo|run|tracking|evaluation)\.[a-z_.]+", answer)
    }
    unknown = [word for word in said if not any(key.startswith(word.rstrip(".")) for key in known)]
    assert len(said) > 30
    assert unknown == []


HABITS = {
    "trainer.num_train_epochs=3": "trainer.epochs",
    "trainer.gradient_accumulation_steps=8": "trainer.batches_per_step",
    "lr=1e-4": "trainer.learning_rate",
    "trainer.warmup_ratio=0.1": "trainer.warmup_steps",
    "trainer.eval_strategy=steps": "evaluation.every",
    "model.lora.lora_alpha=8": "model.lora.alpha",
    "model.lora.use_dora=true": "plain LoRA",
    "trainer.fp16=true": "trainer.bf16",
    "report_to=wandb": "tracking.wandb",
    "max_seq_length=2048": "data.tokens_per_batch",
    "trust_remote_code=true": "never executed",
    "dpo.rpo_alpha=1": "dpo.loss_weights",
    "model_name_or_path=x": "model.checkpoint",
    "data=my.jsonl": "data.sources.NAME.shards",
    "data=/data/shards": "data.sources.NAME.shards",
    "model=/models/qwen2-audio": "model.checkpoint",
}


# Commands as they are typed -> the answers, without the name of the command.
PAGE = (
    (ROOT / "docs" / "coming-from.md")
    .read_text()
    .split("| typed after `qa-train` | error message |")[1]
    .split("\n\n")[0]
)
TYPED = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE, flags=re.MULTILINE))


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that wrong words are answered with."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (answer,) = [line for line in capsys.readouterr().err.splitlines() if "loading libraries" not in line]
    return answer


@pytest.mark.parametrize("word", HABITS)
def test_what_is_typed_by_habit(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert HABITS[word] in told(["sft", "experiment=smoke", "run.dir=unused", word], capsys)


@pytest.mark.parametrize("line", TYPED)
def test_the_answers_of_the_page(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(line.split(), capsys).partition(": ")[2].startswith(TYPED[line])


def test_the_page_has_twenty_of_them() -> None:
    assert len(TYPED) >= 20


# Options that were typed -> part of the answer.
OPTIONS = {
    "export --adapters run": "--adapters: here it is checkpoint=",
    "export model=run quant_bits=4": "here it is checkpoint=; there is no key quant_bits: not needed: nothing is",
    "export run out": "'run' is not of the form key=value: write checkpoint=run out=out",
    "export run out=dir": "write checkpoint=run;",
    "export run out more": "'run' is not of the form key=value; options",
    "eval run": "write checkpoint=run;",
    "chat checkpoint=run audios=[a.wav] max_tokens=5": "here it is audio=; there is no key max_tokens: here it is",
    "chat checkpoint=run audio_bitrate=5": "there is no option audio_bitrate=; options: ",
    "serve checkpoint=run served_model_name=x": "checkpoint={NAME: PATH}",
    "plan sft num_train_epochs=3": "there is no key num_train_epochs: here it is trainer.epochs",
    "sft --learning-rate 1e-4 --foo": "--learning-rate: here it is trainer.learning_rate; there is no key foo",
    "sft --run.dir x --data.storage.options.s3.anon=true": "write run.dir=x, not --run.dir; write data.storage.options",
    "eval --data q.jsonl --storage.timeout_s=9 --foo=1": "write data=q.jsonl, not --data; write storage.timeout_s=9",
    "deploy": "here it is serve; there are ",
    "data import jsonl wav=a.wav": "there is no key wav: here it is path=",
    "data label input=raw.tar audio=in_place": "there is no key input: here it is shards=",
    "chat checkpoint=run input=a.wav": "here it is audio=",
    "eval checkpoint=run dataset=q.jsonl": "here it is data=",
    "data index output=s3://b/dir a.tar": "there is no key output: here it is out=",
    "pairs run README.md CHANGELOG.md": "write checkpoint=run shards=[README.md,CHANGELOG.md]; options",
    "pairs run README.md": "write checkpoint=run shards=README.md; options",
    "export run docs": "'run' is not of the form key=value; options",
}


@pytest.mark.parametrize("line", OPTIONS)
def test_options_and_commands_typed_by_habit(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert OPTIONS[line] in told(line.split(), capsys)


def test_the_options_of_the_answers_exist() -> None:
    known = {field.name for kind in (ExportConfig, ChatConfig, ServeConfig, EvalConfig) for field in fields(kind)}
    known |= {"path", "shards"}
    assert {each for answer in tables()["options"] for each in answer.partition("=")[0].split()} <= known
    names = [name for names in tables()["options"].values() for name in names]
    assert Counter(names).most_common(1)[0][1] == 1
    assert not known & set(names)


def test_no_command_of_another_tool_hides_one_of_ours() -> None:
    others = [name for names in _ELSEWHERE.values() for name in names.split()]
    assert Counter(others).most_common(1)[0][1] == 1
    assert not {*NAMES, *COMMANDS} & set(others)


def test_a_path_may_look_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("output=1")
    folder.mkdir()
    shutil.copy(ROOT / "data" / "starter" / "sound-test.tar", folder / "a.tar")
    with pytest.raises(SystemExit, match="0"):
        main(["data", "index", "output=1/a.tar"])
    assert (folder / f"a.tar{SUFFIX}").is_file()
