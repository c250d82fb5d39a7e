"""Every documented training recipe trains, on a tiny stand-in: the same configuration with a small model and few data.

What is replaced is what a laptop has not: the released weights, the corpora, many GPUs (DeepSpeed, whose shards of
float32 weights stand for weights in half precision) and hours. Freezing, adapters, optimizer, schedule, recomputation,
precision, losses and prompts stay as they are documented.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from qa_train.config import (
    DeepspeedConfig,
    EncoderConfig,
    EvaluationConfig,
    LanguageModelConfig,
    SourceConfig,
    StageConfig,
    config_dir,
)
from qa_train.train.dpo import dpo
from qa_train.train.job.owner import release
from qa_train.train.pretrain import pretrain
from qa_train.train.sft import sft
from tests.docs.test_commands import PAGES, commands, compose_stage
from tests.train.conftest import shards  # noqa: F401

STAGES = {"pretrain": pretrain, "sft": sft, "dpo": dpo}
# Settings that the README names without a command of their own, and what they are for.
NAMED = {
    "model.lora.parts=[llm] model.freeze=[encoder]": ("sft", "model=qwen2_audio_7b data=paper_sft trainer.bf16=true"),
    "trainer.parts.encoder.learning_rate=1e-5 trainer.parts.llm.layer_decay=0.9": ("pretrain", "experiment=smoke"),
}
ENCODER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
LLM = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip


def documented() -> dict[str, tuple[str, list[str]]]:
    """Stage and words of every command of README and guides that trains, of the named settings, and of experiments.

    Those of experiment=smoke are left to the tests that run whole blocks (test_guides.py, test_own_data.py).
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for path in sorted((config_dir() / "experiment").glob("*.yaml")):
        for stage in STAGES:
            if re.search(rf"qa[-_]train {stage}\b", path.read_text()) and not path.stem.startswith("quickstart"):
                found[f"{stage} experiment={path.stem}"] = (stage, [f"experiment={path.stem}"])
    for page in PAGES:
        for stage, *words in commands(page):
            # Where a run lies and what it begins with differ; what it does is the rest.
            told = [w for w in words if not w.startswith(("run.dir=", "model.checkpoint=", "-")) and w not in STAGES]
            told = [w for w in told if "=" in w]
            if stage in STAGES and told and "experiment=smoke" not in told:
                found.setdefault(" ".join([stage, *told]), (stage, told))
    readme = PAGES[0].read_text()
    for settings, (stage, base) in NAMED.items():
        assert f"`{settings}`" in readme
        found[f"{stage} {settings}"] = (stage, [*base.split(), *settings.split()])
    found.pop("pretrain experiment=smoke", None)
    return found


RECIPES = documented()


def stand_in(cfg: StageConfig, made: Path, folder: Path) -> StageConfig:
    """``cfg`` with a tiny model and the made-up shards at ``made``, for two steps in ``folder``."""
    stage = cfg.stage
    cfg.run.dir, cfg.from_environment = str(folder / "run"), {}
    mels = cfg.model.encoder.config.get("num_mel_bins", 80)
    cfg.model.checkpoint, cfg.model.tokenizer = None, "builtin:nano"
    cfg.model.encoder = EncoderConfig(config={**ENCODER, "num_mel_bins": mels})
    cfg.model.llm = LanguageModelConfig(config=dict(LLM))
    if cfg.deepspeed.config:
        cfg.deepspeed, cfg.model.dtype = DeepspeedConfig(), "float32"
    task, kind = ("chat", "pairs") if stage == "dpo" else ("asr", "speech")
    template = "base" if stage == "pretrain" else "chat"
    source = SourceConfig(name="made", shards=[f"{made}/{kind}-*.tar"], task=task, template=template)
    cfg.data.sources = {"made": source}
    cfg.data.tokens_per_batch, cfg.data.shuffle_window, cfg.data.root = 900, 64, None
    if cfg.data.encoder_cache:
        cfg.data.encoder_cache = str(folder / "cache")
    cfg.data.num_workers, cfg.trainer.dataloader_prefetch_factor = 0, None
    cfg.trainer.max_steps, cfg.trainer.batches_per_step, cfg.trainer.save_steps = 2, 1, 2
    cfg.trainer.cpu_threads, cfg.trainer.compile_layers, cfg.trainer.use_liger_kernel = 1, False, False
    cfg.evaluation = EvaluationConfig()
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_documented_recipe_trains(
    recipe: str,
    shards: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    stage, words = RECIPES[recipe]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        cfg = stand_in(compose_stage(stage, words), shards, tmp_path)
    # A recipe whose run would be refused on the way is refused here as well.
    assert STAGES[stage](cfg) == 0
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["grad_norm"] > 0 for step in steps)
    # Its beats would go on in this process.
    release()
    shutil.rmtree(tmp_path / "run")


def test_the_guides_hold_recipes() -> None:
    assert {stage for stage, _ in RECIPES.values()} == set(STAGES)
    assert sum("experiment=" in recipe for recipe in RECIPES) >= 8
