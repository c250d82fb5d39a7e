"""The configuration is typed: it composes, and wrong keys and contradictions are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf.errors import OmegaConfBaseException

from qa_train.config import (
    BY_NAME,
    EvalConfig,
    StageConfig,
    config_dir,
    parse_options,
    register,
    require_root,
    to_stage_config,
)
from qa_train.config.guide import check_experiment
from qa_train.config.nearest import explain
from qa_train.config.renamed import RENAMED, with_new_names

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
        # Weights in bfloat16 need DeepSpeed's float32 copies, or adapters.
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
@pytest.mark.parametrize("language", ["false", "[en,false]"])
def test_norwegian_is_not_false(composed: Any, section: str, language: str) -> None:
    words = ["experiment=smoke", "evaluation.every=1", f"+{section}.mine={{shards: [a.tar], task: asr}}"]
    with pytest.raises(ValueError, match=r"where\.language is false, which YAML reads for no: write 'no'"):
        composed("pretrain", *words, f"+{section}.mine.where.language={language}")


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


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED.items()))
def test_a_renamed_key_is_refused_by_its_new_name_and_read_in_old_runs(composed: Any, old: str, new: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed("pretrain", "experiment=smoke", f"{old}=7")
    assert explain(caught.value) == f"{old} is now {new}"
    (section, was), (_, now) = old.split("."), new.split(".")
    assert with_new_names({section: {was: 7, "other": 1}, "run": None}) == {
        section: {now: 7, "other": 1},
        "run": None,
    }


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
        (["trainer.max_steps=0"], "use 1 or more"),
        (["trainer.save_steps=0", "trainer.keep_every_steps=5"], "trainer.save_steps is 0: use 1 or more"),
        (["evaluation.every=-1"], "evaluation.every is -1: use 1 or more, or 0 for no evaluation"),
        (["+evaluation.sets.x=null"], "evaluation.sets.x is None: it takes keys"),
        (["+data.sources.y=3"], "data.sources.y is 3: it takes keys"),
        (["trainer.learning_rate=nan"], "trainer.learning_rate is nan: use a number of 0 or more"),
        (["trainer.parts.llm.weight_decay=-0.1"], "trainer.parts.llm.weight_decay is -0.1"),
        (["trainer.adam_beta2=1"], "trainer.adam_beta2 is 1.0: use 0 to below 1"),
        (["+data.sources.asr_en.loss_weight=0"], "use a factor above 0"),
        (["+data.sources.asr_en.last_turn_only=true"], "no effect on template base"),
        (["model.dtype=bfloat16"], "small updates would vanish"),
        (["data.time_mask=0.1"], "set data.encoder_cache"),
        (["model.lora.parts=[head]"], "use encoder, llm or both"),
        (["model.lora.parts=[llm]"], "add it to model.lora.parts or model.freeze"),
        (["model.lora.parts=[llm,encoder]", "model.freeze=[llm]"], "remove it from one of them"),
        (["model.lora.parts=[llm,encoder]", "model.lora.r=0"], "model.lora.r is 0: use 1 or more"),
        (["trainer.parts.encoder.learning_rate=1", "model.freeze=[encoder]"], "encoder is in model.freeze"),
        (["trainer.parts.projector.layer_decay=0.5"], "the projector is one layer"),
        (["trainer.gradient_checkpointing.llm=some"], "use none, selective or full"),
        (["trainer.on_nonfinite=rollback", "trainer.rollback_steps=11"], "no roll-back could ever happen"),
        (["trainer.compile_layers=true", "trainer.gradient_checkpointing.llm=selective"], "llm=selective: torch"),
        (["trainer.compile_layers=true", "trainer.gradient_checkpointing.encoder=full"], "in compiled code: use none"),
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
    with pytest.raises(ValueError, match=r"^runs/nowhere/pretrain is missing .*scripts/quickstart\.sh first"):
        require_root(composed("sft", *words, "data.root=runs/nowhere"))
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "data").mkdir()
    cfg = composed("sft", *words, f"data.root={tmp_path}/")
    with pytest.raises(ValueError, match=r"chat-train-\*\.tar is missing"):
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
        (
            ["checkpoint=a", "data=b", "out=c", "batchsize=3"],
            "no option batchsize=; did you mean batch_size=[?] options: ",
        ),
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


def test_adapters_need_no_float32_copy_of_what_is_stored_in_half_precision(composed: Any) -> None:
    for name in ("qwen2_audio_7b", "whisper_large_v3_qwen_7b"):
        for more in (["model.freeze=[encoder]"], ["model.freeze=[encoder,projector]"]):
            composed("sft", f"model={name}", "model.lora.parts=[llm]", *more)
    with pytest.raises(ValueError, match="small updates would vanish"):
        composed("sft", "model=qwen2_audio_7b", "model.freeze=[encoder]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["beta=0"], "dpo.beta is 0.0: use a number above 0"),
        (["beta=-1"], "dpo.beta is -1.0"),
        (["beta=inf"], "dpo.beta is inf"),
        (["loss_type=[sigmiod]"], "did you mean sigmoid? use a list of"),
        (["loss_type=[]"], "use a list of sigmoid, hinge"),
        (["loss_type=[sigmoid,sft]", "loss_weights=[1]"], "give one weight of 0 or more for each"),
        (["loss_weights=[-1]"], "give one weight of 0 or more"),
        (["loss_weights=[[]]"], "give one weight of 0 or more"),
        (["loss_weights=[0]"], "would always be 0"),
        (["loss_type=[robust]", "label_smoothing=0.5"], "label_smoothing is 0.5: use 0 or more, below 0.5"),
        (["loss_type=[aot]", "label_smoothing=-0.1"], "label_smoothing is -0.1"),
        (["label_smoothing=0.1"], "label_smoothing=0.1 has no effect on dpo.loss_type=['sigmoid']"),
        (["loss_type=[ipo,sft]", "label_smoothing=0.1"], "has no effect on dpo.loss_type=['ipo', 'sft']"),
        (["loss_type=[exo_pair]"], "exo_pair needs dpo.label_smoothing above 0"),
        (["ld_alpha=1.5"], "ld_alpha is 1.5: use a weight between 0 and 1"),
        (["ld_alpha=-0.1"], "ld_alpha is -0.1"),
        (["discopop_tau=0", "loss_type=[discopop]"], "discopop_tau is 0.0"),
        (["discopop_tau=0.1"], "discopop_tau=0.1 has no effect without dpo.loss_type=[discopop]"),
        (["f_divergence_type=kl"], "f_divergence_type is 'kl': use reverse_kl"),
        (["f_divergence_type=forward_kl", "loss_type=[apo_zero]"], "is not defined for apo_zero"),
        (["f_alpha_divergence_coef=0.3"], "has no effect without dpo.f_divergence_type=alpha_divergence"),
        (["use_weighting=true", "loss_type=[aot]"], "aot has no loss per pair"),
        (["use_weighting=true", "loss_type=[sigmoid,sft]"], "sft has no loss per pair"),
        (["ref_model_sync_steps=4"], "has no effect without dpo.sync_ref_model=true"),
        (["ref_model_mixup_alpha=0.5"], "has no effect without dpo.sync_ref_model=true"),
        (["sync_ref_model=true", "reference=precomputed"], "it needs dpo.reference=live"),
        (["sync_ref_model=true", "ref_model_mixup_alpha=1.5"], "use a share above 0 and up to 1"),
        (["sync_ref_model=true", "ref_model_sync_steps=0"], "1 step or more"),
        (["reference=late"], "use live or precomputed"),
    ],
)
def test_options_of_dpo_are_checked_before_anything_is_loaded(composed: Any, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        composed("dpo", *(f"dpo.{word}" for word in words))


def test_a_reference_that_moves_needs_a_model_of_its_own(composed: Any) -> None:
    composed("dpo", "dpo.sync_ref_model=true")
    for more in (["deepspeed=zero2"], ["model.lora.parts=[llm]", "model.freeze=[encoder]"]):
        with pytest.raises(ValueError, match="moves a whole second model"):
            composed("dpo", "dpo.sync_ref_model=true", *more)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.lr_scheduler_kwargs.num_cycles=2", "to add it: '+trainer.lr_scheduler_kwargs.num_cycles=VALUE'"),
        ("model.encoder.config.d_modell=2", "to add it: '+model.encoder.config.d_modell=VALUE'"),
        ("deepspeed.config.zero_optimization.stage=2", "to add it: '+deepspeed.config.zero_optimization.stage=VALUE'"),
        ("data.storage.options.s3={anon: true}", "to add it: '+data.storage.options.s3=VALUE'"),
        ("~trainer.lr_scheduler_kwargs", "'~trainer.lr_scheduler_kwargs.KEY' takes one out"),
        ("trainer.lr_scheduler_kwargs=null", "'+trainer.lr_scheduler_kwargs.KEY=VALUE' adds one"),
        ("~model.llm.config", "model.llm.config is cleared entry by entry"),
    ],
)  # fmt: skip
def test_a_dictionary_of_free_entries_says_how_it_is_changed(composed: Any, word: str, told: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed("pretrain", word)
    assert told in (explain(caught.value) or "")


@pytest.mark.parametrize("key", ["run.dir", "data.encoder_cache", "data.storage.cache_dir"])
def test_a_folder_of_this_machine_is_no_address(composed: Any, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is s3://bucket/x, which is no path of this machine"):
        composed("pretrain", "model.freeze=[encoder]", f"{key}=s3://bucket/x")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("run.dir=${oc.env:NOT_SET_HERE}", "run.dir needs the environment variable NOT_SET_HERE, which is not set"),
        ("run.dir=${SLURM_JOB_ID}", "a variable of the environment is ${oc.env:SLURM_JOB_ID}"),
    ],
)
def test_a_reference_to_nothing_says_how_to_refer(composed: Any, word: str, told: str) -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        composed("pretrain", word)
    assert told in (explain(caught.value) or "")


def test_a_dictionary_of_free_entries_is_changed_entry_by_entry(composed: Any) -> None:
    words = ["experiment=pretrain_7b", "trainer.lr_scheduler_type=linear"]
    cfg = composed("pretrain", *words, "~trainer.lr_scheduler_kwargs.min_lr")
    assert cfg.trainer.lr_scheduler_kwargs == {}
    cfg = composed("pretrain", *words, "+trainer.lr_scheduler_kwargs.num_cycles=2")
    assert cfg.trainer.lr_scheduler_kwargs == {"min_lr": 1e-5, "num_cycles": 2}
    for word in ("trainer.lr_scheduler_kwargs={}", "+model.llm.config={ }", "deepspeed.config={}"):
        with pytest.raises(ValueError, match=r"would clear nothing: .*'~.*\.KEY' takes one out"):
            check_experiment([word])
    check_experiment(["data={sources: {}}", "evaluation.sets={}"])


def test_what_tracking_needs_is_checked_before_the_model_is_loaded(
    composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qa_train.config.checks.stage_checks.find_spec", lambda name: None)
    words = ["experiment=smoke", "run.dir=x"]
    for fine in (["tracking=none"], ["tracking.wandb=disabled"], ["tracking=default"]):
        composed("sft", *words, *fine)
    for more, message in (
        (
            ["tracking.report_to=[tensorboard]"],
            r"tensorboard, which is not installed: pip install 'qa-train\[tensorboard\]'",
        ),
        (["tracking.wandb=online", "tracking.report_to=[wandb]"], "wandb, which is not installed"),
        (["tracking=none", "tracking.wandb=offline"], "has no effect: add wandb to tracking.report_to"),
        (["tracking.report_to=[comet]"], "'comet': use a list of wandb, tensorboard, mlflow, trackio"),
    ):
        with pytest.raises(ValueError, match=message):
            composed("sft", *words, *more)
