"""One optimizer step has the same update however its batches are spread over ranks, accumulation and workers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from qa_train.config import DataConfig, SourceConfig
from qa_train.config.compose import compose_stage
from qa_train.data.batches import open_data
from qa_train.data.shards.index import load_index
from qa_train.train.arguments import prefetch_factor
from tests.train.conftest import metrics, run, stage_words, tiny_model

# Plain gradient descent at an absurd rate: after one step the weights are the gradients, whatever they were before.
STEP = [
    "trainer.max_steps=1", "trainer.batches_per_step=4", "trainer.optim=sgd", "trainer.learning_rate=1e6",
    "trainer.weight_decay=0", "trainer.warmup_steps=0", "trainer.max_grad_norm=1e9", "data.tokens_per_batch=300",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_four_batches_on_one_two_and_four_processes(
    stage: str, tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    records, weights = [], []
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        run(stage, *options(stage, folder), *STEP, processes=processes)
        records.append(metrics(folder)[0])
        weights.append(load_file(folder / "checkpoints" / "checkpoint-1" / "model.safetensors"))
    assert records[0]["supervised_tokens"] == records[1]["supervised_tokens"] == records[2]["supervised_tokens"]
    for record in records[1:]:
        assert record["loss"] == pytest.approx(records[0]["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(records[0]["grad_norm"], rel=1e-5)
    for name, expected in weights[0].items():
        if "embed_positions" not in name:
            largest = float(expected.abs().max())
            assert largest > 2, name
            for other in weights[1:]:
                assert float((other[name] - expected).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("template", ["base", "chat"])
def test_four_batches_in_one_forward(template: str, shards: Path) -> None:
    model, processor = tiny_model()
    source = SourceConfig(name="made", shards=[f"{shards}/speech-*.tar"], task="asr", template=template)
    data = DataConfig(sources={"made": source}, tokens_per_batch=300, shuffle_window=64)
    opened = open_data(data, processor.tokenizer, 80, seed=0, batches_per_step=4)
    batches = [opened.build(k) for k in range(4)]
    joined = {
        name: pad_sequence([row for batch in batches for row in batch[name]], batch_first=True, padding_value=fill)
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    }
    joined["input_features"] = torch.cat([batch["input_features"] for batch in batches], 1)
    joined["feature_lengths"] = torch.cat([batch["feature_lengths"] for batch in batches])
    assert len({int((batch["labels"] != -100).sum()) for batch in batches}) > 1, "a mean of means would be right"
    supervised = int((joined["labels"][:, 1:] != -100).sum())

    def gradients(micro_batches: list[dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        losses = [model(**batch, num_items_in_batch=supervised).loss for batch in micro_batches]
        sum(losses).backward()  # type: ignore[union-attr]
        return float(sum(losses)), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (loss, expected), (found_loss, found) = gradients([joined]), gradients(batches)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


@pytest.mark.slow
def test_batches_built_ahead_by_workers_and_a_damaged_clip_give_the_update_of_one_process_that_builds_its_own(
    tmp_path: Path, shards: Path
) -> None:
    copied = tmp_path / "shards"
    shutil.copytree(shards, copied)
    with (copied / "speech-000.tar").open("r+b") as tar:
        for row in (3, 11):
            # Two clips fail their checksums: their tokens are planned, and never supervised.
            tar.seek(load_index(str(copied / "speech-000.tar")).table["offsets"][row].as_py()[0] + 60)
            tar.write(bytes(200))
    records, weights = [], []
    for processes, workers in ((1, 0), (1, 3), (2, 2)):
        folder = tmp_path / f"{processes}-{workers}"
        words = [*stage_words(copied, "pretrain", folder), *STEP, "trainer.batches_per_step=16"]
        run("pretrain", *words, f"data.num_workers={workers}", "data.error_budget=0.1", processes=processes)
        records.append(metrics(folder)[0])
        weights.append(load_file(folder / "checkpoints" / "checkpoint-1" / "model.safetensors"))
    plain = records[0]
    assert plain["skipped_samples"] >= 1
    for record in records[1:]:
        assert record["supervised_tokens"] == plain["supervised_tokens"]
        assert record["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name
        if "embed_positions" not in name:
            assert float((weights[2][name] - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), name


class Notes:
    """Collator that records which batches were built."""

    def __init__(self, built: torch.Tensor) -> None:
        self.built = built

    def __call__(self, numbers: list[int]) -> int:
        self.built[numbers[0]] += 1
        return numbers[0]


@pytest.mark.parametrize(("per_step", "workers", "expected"), [(1, 4, 2), (4, 2, 2), (16, 4, 4), (16, 3, 6), (5, 1, 5)])
def test_the_next_step_is_built_while_one_is_computed(
    per_step: int, workers: int, expected: int, tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    words = options("pretrain", tmp_path)
    cfg = compose_stage("pretrain", [*words, f"data.num_workers={workers}", f"trainer.batches_per_step={per_step}"])
    factor = prefetch_factor(cfg)
    assert factor == expected
    built = torch.zeros(5 * per_step + 2 * workers, dtype=torch.int64).share_memory_()
    numbers: Any = list(range(len(built)))
    loader = iter(
        DataLoader(numbers, batch_size=1, num_workers=workers, prefetch_factor=factor, collate_fn=Notes(built))
    )
    taken = [next(loader) for _ in range(per_step)]
    deadline = time.monotonic() + 60
    # The device computes: nobody asks the loader for more.
    while int(built[: 2 * per_step].min()) < 1:
        assert time.monotonic() < deadline, "the next step is not built ahead"
        time.sleep(0.01)
    assert taken == list(range(per_step))
    assert int(built.sum()) <= per_step + workers * expected, "what waits is bounded"


def test_what_is_set_or_not_needed_is_kept(tmp_path: Path, options: Callable[[str, Path], list[str]]) -> None:
    words = [*options("pretrain", tmp_path), "trainer.batches_per_step=64"]
    assert prefetch_factor(compose_stage("pretrain", words)) is None
    words += ["data.num_workers=2", "trainer.dataloader_prefetch_factor=3"]
    assert prefetch_factor(compose_stage("pretrain", words)) == 3
