"""The configuration is typed: it composes, and wrong keys and contradictions are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from qa_train.config import EvalConfig, StageConfig, config_dir, parse_options, register, to_stage_config
from qa_train.config.checks import require_root
from qa_train.config.nearest import explain
from qa_train.config.sections import BY_NAME

register()


@pytest.fixture
def composed() -> Iterator[Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        yield lambda stage, *words: to_stage_config(compose(config_name=stage, overrides=["run.dir=unused", *words]))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_every_experiment_composes_for_its_stages(composed: Any, stage: str) -> None:
    for path in sorted((config_dir() / "experiment").glob("*.yaml")):
        text = path.read_text()
        if f"qa-train {stage}" in text or "pretrain|sft|dpo" in text:
            assert isinstance(composed(stage, f"experiment={path.stem}"), StageConfig)


def test_every_experiment_opens_with_its_facts() -> None:
    for path in sorted((config_dir() / "experiment").glob("*.yaml")):
        head = path.read_text()
        for fact in ("# Command:", "# Hardware:", "# Time:", "# Expected:"):
            assert fact in head, f"{path.name} lacks {fact!r}"


@pytest.mark.parametrize("group", ["model", "data", "trainer", "deepspeed", "tracking"])
def test_every_option_of_every_group_composes(composed: Any, group: str) -> None:
    names = [p.stem for p in sorted((config_dir() / group).glob("*.yaml"))]
    assert names
    for name in names:
        if name == "empty":
            with pytest.raises(ValueError, match="list at least one source"):
                composed("pretrain", "data=empty")
            continue
        # Weights in bfloat16 need DeepSpeed's float32 copies.
        more = ["deepspeed=zero2"] if name in ("qwen2_audio_7b", "whisper_large_v3_qwen_7b") else []
        stage = "dpo" if name.endswith("dpo") else "sft" if name.endswith("sft") else "pretrain"
        composed(stage, f"{group}={name}", *more)


@pytest.mark.parametrize("section", ["data.sources", "evaluation.sets"])
def test_the_command_line_adds_to_a_section_by_name(composed: Any, section: str) -> None:
    group, _, name = section.partition(".")
    whole = [f"+{section}.mine={{shards: [a.tar], task: asr, where: {{language: [en, fr]}}}}"]
    apart = [f"+{section}.mine.shards=[a.tar]", f"+{section}.mine.task=asr", f"+{section}.mine.where.language=[en,fr]"]
    for words in (whole, apart):
        entries = getattr(getattr(composed("pretrain", "experiment=smoke", *words), group), name)
        mine = entries["mine"]
        assert type(mine) is BY_NAME[section]
        assert (mine.shards, mine.task, mine.where) == (["a.tar"], "asr", {"language": ["en", "fr"]})


@pytest.mark.parametrize("section", ["data.sources", "evaluation.sets"])
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+{}.mine={{shards: [a.tar], tsk: asr}}", "no key {}.mine.tsk: did you mean {}.mine.task?"),
        ("{}.mine.task=asr", r"no {}.mine; to add it: '\+{}.mine="),
    ],
)
def test_a_wrong_key_in_a_section_by_name_is_explained(composed: Any, section: str, word: str, said: str) -> None:
    with pytest.raises(Exception) as caught:
        composed("pretrain", "experiment=smoke", word.format(section))
    assert re.search(said.format(section, section), explain(caught.value) or "")


@pytest.mark.parametrize("word", ["trainer.max_step=3", "data.token_per_batch=1", "nonsense=1"])
def test_unknown_keys_fail(composed: Any, word: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed("pretrain", word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.freeze=[encoder,projector,llm]"], "nothing would train"),
        (["model.freeze=[tower]"], "use any of"),
        (["data.encoder_cache=x", "model.freeze=[]"], "add encoder to model.freeze"),
        (["data.encoder_cache=x", "model.freeze=[encoder]", "deepspeed=zero3"], "use deepspeed=zero2"),
        (["trainer.max_steps=0"], "at least 1"),
        (["+data.sources.asr_en.loss_weight=0"], "use a factor above 0"),
        (["+data.sources.asr_en.last_turn_only=true"], "no effect on template base"),
        (["model.dtype=bfloat16"], "small updates would vanish"),
        (["data.time_mask=0.1"], "set data.encoder_cache"),
        (["model.lora.parts=[head]"], "use encoder, llm or both"),
        (["model.lora.parts=[llm]"], "put it into model.lora.parts or model.freeze"),
        (["model.lora.parts=[llm,encoder]", "model.freeze=[llm]"], "take it out of one of them"),
        (["model.lora.parts=[llm,encoder]", "model.lora.r=0"], "r must be at least 1"),
        (["trainer.parts.encoder.learning_rate=1", "model.freeze=[encoder]"], "encoder is in model.freeze"),
        (["trainer.parts.projector.layer_decay=0.5"], "the projector is one layer"),
        (["trainer.gradient_checkpointing.llm=some"], "use none, selective or full"),
        (["trainer.on_nonfinite=rollback", "trainer.rollback_steps=11"], "no roll-back could ever happen"),
        (["trainer.compile_layers=true", "trainer.gradient_checkpointing.llm=full"], "use one of the two"),
        (["trainer.use_liger_kernel=true", "trainer.compile_layers=true"], "fuse the same operations"),
        (["trainer.use_liger_kernel=true", "trainer.gradient_checkpointing.llm=selective"], "use none or full"),
        (["data.augment.gain_db=3", "data.encoder_cache=x", "model.freeze=[encoder]"], "no longer reads"),
    ],
)
def test_contradictions_say_the_remedy(composed: Any, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        composed("pretrain", *words)


def test_an_experiment_says_who_makes_what_it_looks_for(composed: Any, tmp_path: Path) -> None:
    words = ["experiment=quickstart_sft", "run.dir=/elsewhere/x"]
    with pytest.raises(ValueError, match=r"^runs/nowhere/pretrain is not there .*scripts/quickstart\.sh first"):
        require_root(composed("sft", *words, "data.root=runs/nowhere"))
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "data").mkdir()
    cfg = composed("sft", *words, f"data.root={tmp_path}/")
    with pytest.raises(ValueError, match=r"chat-train-\*\.tar is not there"):
        require_root(cfg)
    for name in ("chat-train-0", "facts-train", "asr-train-0", "joined-train", "domain-train-0", "denial-train"):
        (tmp_path / "data" / f"{name}.tar").touch()
    require_root(cfg)
    # Only what lies under it is looked for; remote shards and the user's own are opened later.
    require_root(composed("pretrain", "data=starter_pretrain", "run.dir=x", "data.root=runs/nowhere"))
    require_root(composed("pretrain", "experiment=smoke", "run.dir=x"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=a", "data=b", "out=c", "batchsize=3"], "known keys"),
        (["a"], "key=value"),
        (["checkpoint=a", "data=b", "out=c", "batch_size=many"], "batch_size"),
    ],
)
def test_command_options_are_checked(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(EvalConfig, words, "eval")


def test_the_wheel_would_hold_every_config(tmp_path: Path) -> None:
    text = (config_dir().parent / "pyproject.toml").read_text()
    assert '"configs" = "qa_train/_configs"' in text
