"""A tiny byte-level BPE tokenizer, and small shards of noise, for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.records import LANGUAGES

CORPUS = [
    "Detect the language and recognize the speech: the quick brown fox jumps over the lazy dog",
    "You are a helpful assistant. system user assistant Audio 1: What language is spoken here?",
    "one two three four five six seven eight nine ten, said the old man. Hello world!",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIALS})
    # As in the released tokenizer, the language tags are added tokens like any other.
    fast.add_tokens([f"<|{code}|>" for code in [*LANGUAGES, "unknown"]])
    return fast


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """White noise of a given length, float32."""
    return (np.random.default_rng(seed).standard_normal(int(seconds * rate)) * 0.1).astype(np.float32)


def speech_record(number: int) -> dict[str, Any]:
    """A record of speech; every third one is Spanish with a translation."""
    words = " ".join(CORPUS[number % 3].split()[: 2 + number % 7])
    if number % 3 == 0:
        return {"text": words, "language": "es", "translation": {"en": "hello " + words}, "split": "train"}
    return {"text": words, "language": "en", "split": "train"}


def write_shards(folder: Path, prefix: str, count: int, per_shard: int, make: Callable[[int], dict[str, Any]]) -> str:
    """Shards of ``count`` clips of 0.3 to 1.7 s; returns their glob."""
    with ShardWriter(folder / f"{prefix}-%03d.tar", max_samples=per_shard) as writer:
        for i in range(count):
            writer.write(f"{prefix}{i:04d}", make(i), noise(0.3 + 1.4 * (i * 37 % 100) / 100, seed=i))
    return str(folder / f"{prefix}-*.tar")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small corpora, "speech" (90 records in 3 shards) and "sound" (20 records in 1)."""
    folder = tmp_path_factory.mktemp("shards")
    return {
        "speech": write_shards(folder, "speech", 90, 30, speech_record),
        "sound": write_shards(folder, "sound", 20, 100, lambda i: {"label": ["dog bark", "bell"][i % 2]}),
    }


def mixture(shards: dict[str, str], **options: Any) -> DataConfig:
    """ASR, translation and sounds, 3 : 1 : 2."""
    sources = {
        "asr": SourceConfig(name="asr", shards=[shards["speech"]], task="asr", weight=3),
        "st": SourceConfig(name="st", shards=[shards["speech"]], task="translate", weight=1),
        "sounds": SourceConfig(name="sounds", shards=[shards["sound"]], task="sound_class", template="chat", weight=2),
    }
    return DataConfig(sources=sources, **{"tokens_per_batch": 500, "shuffle_window": 120, **options})


@pytest.fixture
def batches(shards: dict[str, str], tokenizer: Any) -> Batches:
    return open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=4)
