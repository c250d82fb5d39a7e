"""Runs of the real command line in processes of their own, on a small folder of made-up shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.data.shards.writer import ShardWriter

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 300


def environment() -> dict[str, str]:
    """One thread per process, nothing online."""
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **more, "PATH": path, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def command(stage: str, *words: str, processes: int = 1) -> list[str]:
    """The command line of a stage, under torchrun when there are several processes."""
    module = ["-m", "qa_train", stage, *words]
    if processes == 1:
        return [sys.executable, *module]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, *module]


def run(
    *words: str, processes: int = 1, check: bool = True, program: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command (or a Python file) to its end, one forked process a rank; see `tests.train.forks`."""
    from tests.train.forks import forks

    started = forks().start(list(words), ranks=processes, program=program, env=env)
    code, out, err = started.code(), started.stdout.read_text(), started.stderr.read_text()
    return _checked(subprocess.CompletedProcess(list(words), code, out, err), check)


def run_fresh(*words: str, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As `run`, as a user starts it: a new interpreter, under torchrun when there are several processes."""
    line = command(*words, processes=processes)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, cwd=ROOT)
    return _checked(done, check)


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    if check and done.returncode:
        pytest.fail(f"{done.args} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done


def tiny_model() -> tuple[Any, Any]:
    """A random model with one layer in each part, and its processor."""
    from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
    from qa_train.model import build_model

    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    text = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    cfg = ModelConfig(
        name="test", encoder=EncoderConfig(config={"num_mel_bins": 80} | audio),
        llm=LanguageModelConfig(config=text | heads), tokenizer="builtin:nano",
    )  # fmt: skip
    return build_model(cfg)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and checksum of every tensor's bytes in a torch archive, without unpickling it."""
    with zipfile.ZipFile(path) as archive:
        return sorted((i.filename, i.file_size, i.CRC) for i in archive.infolist() if "/data/" in i.filename)


def records(kind: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Keys and JSON of made-up clips: transcripts, or preference pairs about them."""
    words = "seven green birds sing over the quiet river while we wait".split()
    made = []
    for i in range(count):
        text = " ".join(words[j % len(words)] for j in range(i, i + 2 + i % 4))
        record: dict[str, Any] = {"text": text, "language": ("en", "fr")[i % 2], "split": "train"}
        if kind == "pairs":
            question = {"role": "user", "content": "<audio>What is said?"}
            record |= {"messages": [question], "chosen": text, "rejected": "no idea"}
        made.append((f"{kind}-{i:03d}", record))
    return made


def write_shards(folder: Path) -> Path:
    """speech.tar and pairs.tar: 60 clips of noise each, 0.4 to 1.9 s."""
    folder.mkdir(exist_ok=True)
    for kind in ("speech", "pairs"):
        rng = np.random.default_rng(0)
        with ShardWriter(str(folder / f"{kind}-%03d.tar"), max_samples=25) as writer:
            for key, record in records(kind, 60):
                wave = rng.normal(0, 0.1, int(16_000 * rng.uniform(0.4, 1.9))).astype(np.float32)
                writer.write(key, record, [wave])
    return folder


def stage_words(shards: Path, stage: str, folder: Path) -> list[str]:
    """Overrides that point a stage at the made-up shards and a run folder."""
    kind = "pairs" if stage == "dpo" else "speech"
    template = "base" if stage == "pretrain" else "chat"
    task = "chat" if stage == "dpo" else "asr"
    made = f"shards:['{shards}/{kind}-*.tar'],task:{task},template:{template}"
    # Two sources, so that what is recorded by source can go wrong.
    source = f"{{made:{{{made},weight:2}},french:{{{made},where:{{language:fr}}}}}}"
    return [
        "experiment=smoke", f"run.dir={folder}", "data=empty", f"+data.sources={source}",
        "data.tokens_per_batch=250", "data.shuffle_window=64", "trainer.max_steps=6",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `write_shards`."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def options(shards: Path) -> Callable[[str, Path], list[str]]:
    """`stage_words` with these shards."""
    return partial(stage_words, shards)
