"""Training where some ranks have audio and others have only text in the same step equals training in one process.

Half of the samples have a clip, half are text only, and a batch holds one or two of them, so that about four in
ten steps are mixed. A rank that skipped the encoder would leave the others waiting in a collective for ever: the run's
own hang_timeout_s would end it. ``MIXED_STEPS=1400`` makes the runs longer.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import open_data
from qa_train.data.shards.writer import ShardWriter
from qa_train.model.tokenizers import load_tokenizer
from tests.train.conftest import metrics, run

WORDS = "seven green birds sing over the quiet river while we wait".split()
TOKENS_PER_BATCH, RANKS = 160, 2
STEPS = int(os.environ.get("MIXED_STEPS", "20"))
# Differences of the last bit grow with the steps: a low rate keeps them small.
OPTIONS = [
    "experiment=smoke", "data=empty", f"data.tokens_per_batch={TOKENS_PER_BATCH}", "data.seed=0",
    "data.shuffle_window=128", f"trainer.max_steps={STEPS}", f"trainer.save_steps={STEPS}",
    "trainer.learning_rate=1e-4", f"trainer.batches_per_step={RANKS}", "trainer.hang_timeout_s=120",
]  # fmt: skip


def make_shards(folder: Path, clips: int = 400) -> str:
    """A shard of chats, every other one (at random) with a clip; its path."""
    rng = np.random.default_rng(0)
    path = folder / "mixed.tar"
    with ShardWriter(path, max_samples=clips) as writer:
        for i in range(clips):
            heard = rng.random() < 0.5
            # A text is as long as a clip: batches hold samples of one length.
            words = " ".join(rng.choice(WORDS, int(rng.integers(2, 9 if heard else 13))))
            question = "<audio>What is said?" if heard else f"Repeat: {words}"
            record = {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": words}],
                "language": "en",
            }
            wave = rng.normal(0, 0.1, int(16_000 * rng.uniform(0.3, 1.5))).astype(np.float32)
            writer.write(f"{'audio' if heard else 'text'}-{i:03d}", record, [wave] if heard else [])
    return str(path)


def mixed_steps(shard: str, steps: int, ranks: int) -> int:
    """Steps in which one rank's batch has audio and another's has none."""
    source = SourceConfig(name="chats", shards=[shard], task="chat", template="chat")
    cfg = DataConfig(sources={"chats": source}, tokens_per_batch=TOKENS_PER_BATCH, shuffle_window=128)
    batches = open_data(cfg, load_tokenizer("builtin:nano"), 80, seed=0, batches_per_step=ranks)
    heard = [any("audio" in key for key in batches.keys(k)) for k in range(steps * ranks)]
    return sum(len(set(heard[i : i + ranks])) > 1 for i in range(0, steps * ranks, ranks))


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("mixed"))


def words(shard: str, folder: Path) -> list[str]:
    source = f"+data.sources={{chats:{{shards:['{shard}'],task:chat,template:chat}}}}"
    return ["sft", *OPTIONS, source, f"run.dir={folder}"]


@pytest.fixture(scope="module")
def alone(shard: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(*words(shard, folder))
    return losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_ranks_with_and_without_audio_meet(name: str, shard: str, alone: list[float], tmp_path: Path) -> None:
    zero = [f"deepspeed={name}"]
    if name == "zero3":
        # Every parameter is cut, however small.
        zero += ["deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"]
    run(*words(shard, tmp_path / "run"), *zero, processes=RANKS)
    assert mixed_steps(shard, STEPS, RANKS) >= 3
    assert len(alone) == STEPS
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-5)
