"""Keys of other tools: each is a setting of that name, or is answered by what it is here."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from qa_train.__main__ import main
from qa_train.config.habits import _HERE, _NONE, habit
from qa_train.config.nearest import valid_keys

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
    names = [name for table in (_HERE, _NONE) for names in table.values() for name in names.split()]
    assert Counter(names).most_common(1)[0][1] == 1


def test_the_keys_of_the_answers_exist() -> None:
    known = {*valid_keys(), "data.sources.NAME", "evaluation.sets.NAME"}
    said = {
        word
        for answer in (*_HERE, *_NONE)
        for word in re.findall(r"\b(?:trainer|data|model|dpo|run|tracking|evaluation)\.[a-z_.]+", answer)
    }
    unknown = [word for word in said if not any(key.startswith(word.rstrip(".")) for key in known)]
    assert len(said) > 30
    assert unknown == []


HABITS = {
    "output_dir=out": "run.dir",
    "num_train_epochs=3": "trainer.epochs",
    "trainer.num_train_epochs=3": "trainer.epochs",
    "per_device_train_batch_size=4": "data.tokens_per_batch",
    "trainer.gradient_accumulation_steps=8": "trainer.batches_per_step",
    "learning_rate=1e-4": "trainer.learning_rate",
    "lr=1e-4": "trainer.learning_rate",
    "trainer.warmup_ratio=0.1": "trainer.warmup_steps",
    "eval_steps=100": "evaluation.every",
    "trainer.eval_strategy=steps": "evaluation.every",
    "dataset=my.jsonl": "data.sources.NAME.shards",
    "val_dataset=my.jsonl": "evaluation.sets.NAME.shards",
    "lora_rank=8": "model.lora.r",
    "model.lora.lora_alpha=8": "model.lora.alpha",
    "model.lora.use_dora=true": "plain LoRA",
    "trainer.fp16=true": "trainer.bf16",
    "save_total_limit=2": "trainer.keep_checkpoints",
    "logging_steps=10": "metrics.jsonl",
    "report_to=wandb": "tracking.wandb",
    "resume_from_checkpoint=true": "the same command",
    "max_seq_length=2048": "data.tokens_per_batch",
    "packing=true": "real tokens only",
    "freeze_vit=true": "model.freeze",
    "trust_remote_code=true": "never executed",
    "dpo.rpo_alpha=1": "dpo.loss_weights",
    "model_name_or_path=x": "model.checkpoint",
    "model=Qwen/Qwen2-Audio-7B-Instruct": "model.checkpoint",
    "data=my.jsonl": "data.sources.NAME.shards",
    "data=/data/shards": "data.sources.NAME.shards",
    "model=/models/qwen2-audio": "model.checkpoint",
    "fsdp=full_shard": "deepspeed=zero",
    "push_to_hub=true": "qa-train export",
    "load_best_model_at_end=true": "trainer.keep_best",
}


@pytest.mark.parametrize("word", HABITS)
def test_what_is_typed_by_habit(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sft", "experiment=smoke", "run.dir=unused", word])
    told = capsys.readouterr().err
    assert HABITS[word] in told
    answers = [line for line in told.splitlines() if "loading libraries" not in line]
    assert len(answers) == 1, told
