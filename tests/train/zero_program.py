"""What each of two processes of a ZeRO run holds and adds up. Run by torchrun; prints one line of JSON a rank.

zero_program.py load SOURCE     # build_model under ZeRO-3: of a stored model, or "parts"
zero_program.py add NAME        # gradients of 16 micro-batches under configs/deepspeed/NAME.yaml
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from qa_train.config import DeepspeedConfig, EncoderConfig, LanguageModelConfig, ModelConfig, config_dir
from qa_train.model import build_model
from qa_train.train.job.distributed import deepspeed_options

MICRO_BATCHES = 16


def model_config(source: str, layers: int = 11) -> ModelConfig:
    """48 M parameters, 198 MB: far above what a process allocates by the way."""
    audio = {"d_model": 256, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
    text = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 512, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 2048}
    return ModelConfig(
        name="big",
        checkpoint=None if source == "parts" else source,
        encoder=EncoderConfig(config={"num_mel_bins": 80} | audio),
        llm=LanguageModelConfig(config=text | heads),
        tokenizer="builtin:nano",
    )


@contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """The most bytes of memory of its own (no files mapped) that this process had, above what it has now."""

    def own() -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon"))

    gc.collect()
    before, found, done = own(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            found[0] = max(found[0], 1024 * (own() - before))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def load(source: str, out: Path) -> dict[str, Any]:
    """Peak memory of building the model, and what is left of it; rank 0 puts a digest of gathered weights together."""
    import deepspeed

    from qa_train.model import weights_digest

    options = deepspeed_options(settings("zero3"))
    arguments = TrainingArguments(output_dir=str(out), deepspeed=options, use_cpu=False, report_to="none")
    # Imports and buffers for messages are not what is measured.
    build_model(model_config("parts", layers=1))
    with peak_of_own_memory() as peak:
        model, _ = build_model(model_config(source), seed=3)
    parameters = list(model.parameters())
    whole = sum(4 * p.ds_numel for p in parameters)
    held = sum(4 * p.ds_tensor.numel() for p in parameters)
    with deepspeed.zero.GatheredParameters(parameters):
        digest = weights_digest(model)
    del arguments
    return {"peak": peak[0], "whole": whole, "held": held, "digest": digest}


def settings(name: str) -> DeepspeedConfig:
    config = yaml.safe_load((config_dir() / "deepspeed" / f"{name}.yaml").read_text())["config"]
    if name == "zero3":
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return DeepspeedConfig(name=name, config=config)


def add(name: str) -> dict[str, Any]:
    """The weight after a step of gradient descent on one gradient of 1 and fifteen of 1/512, from 0."""
    import deepspeed

    options = deepspeed_options(settings(name))
    assert options is not None
    options |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": MICRO_BATCHES}
    options |= {"gradient_clipping": 0.0, "bf16": {"enabled": True}}
    deepspeed.init_distributed("gloo")
    layer = torch.nn.Linear(64, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    engine, *_ = deepspeed.initialize(
        model=layer.bfloat16(), optimizer=torch.optim.SGD(layer.parameters(), lr=1.0), config=options
    )
    for number in range(MICRO_BATCHES):
        size = 1.0 if number == 0 else 1 / 512
        engine.backward(engine(torch.full((1, 64), MICRO_BATCHES * size, dtype=torch.bfloat16)).float().sum())
        engine.step()
    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        return {"weight": float(layer.weight[0, 0])}


if __name__ == "__main__":
    what, argument, folder = sys.argv[1:4]
    result = load(argument, Path(folder)) if what == "load" else add(argument)
    rank = torch.distributed.get_rank()
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Threads of the group must end before Python does: one that frees a tensor later aborts the process.
    torch.distributed.destroy_process_group()
