"""Runs with low-rank adapters through the command line: they train, resume, agree across processes, and export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen2AudioForConditionalGeneration

from qa_train.export.hugging_face import export
from qa_train.model import load_model
from qa_train.model.build import find_checkpoint, load_adapted
from qa_train.train.job import checkpoints
from tests.train.conftest import ROOT, environment, metrics, run

Options = Callable[[str, Path], list[str]]
LORA = ["model.lora.parts=[encoder,llm]", "model.lora.r=4"]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, options: Options) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    run("pretrain", *options("pretrain", folder), *LORA)
    return folder


def test_a_checkpoint_holds_what_trained_and_knows_its_base(plain: Path) -> None:
    assert losses(plain)[-1] < losses(plain)[0]
    folder = plain / "checkpoints" / "checkpoint-6"
    assert not (folder / "model.safetensors").exists()
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        names = {key.rpartition(".")[0].rpartition(".")[2] for key in stored.keys()}  # noqa: SIM118 (not a dict)
    assert names == {"lora_A", "lora_B", "linear"}
    model, processor = load_model(plain)
    adapted, _ = load_adapted(folder)
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    ids = torch.arange(40)[None] + 20
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_a_resumed_run_equals_an_undisturbed_one(plain: Path, tmp_path: Path, options: Options) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    (folder / "finished.json").unlink()
    run("pretrain", *options("pretrain", folder), *LORA)
    assert losses(folder) == losses(plain)
    digests = [checkpoints.read_manifest(f / "checkpoints/checkpoint-6")["weights_digest"] for f in (folder, plain)]
    assert digests[0] == digests[1]


def test_zero2_on_two_processes_equals_one(plain: Path, tmp_path: Path, options: Options) -> None:
    run("pretrain", *options("pretrain", tmp_path / "two"), *LORA, "deepspeed=zero2", processes=2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(plain), rtol=2e-5)
    ids = torch.arange(40)[None] + 20
    with torch.no_grad():
        logits = [load_model(folder)[0](input_ids=ids).logits for folder in (tmp_path / "two", plain)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


def test_dpo_against_the_model_without_adapters_and_export(plain: Path, tmp_path: Path, options: Options) -> None:
    # On top of the adapters of the pretraining, which become part of the base.
    words = [*options("dpo", tmp_path / "dpo"), "model.lora.parts=[llm]", "model.freeze=[encoder]"]
    run("dpo", *words, f"model.checkpoint={plain}", "trainer.learning_rate=1e-2")
    records = metrics(tmp_path / "dpo")
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert records[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(records[-1]["rewards/margins"]) > 1e-3
    adapted, processor = load_adapted(find_checkpoint(tmp_path / "dpo"))
    result = export(tmp_path / "dpo", tmp_path / "out")
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(result.path).eval()
    wave = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>What is said?"
    inputs = processor(text=text, audio=wave, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        found, expected = stock(**inputs).logits, adapted(**inputs).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(stock.generate(**inputs, **settings), adapted.generate(**inputs, **settings))


@pytest.mark.slow
def test_one_process_of_zero3_starts_from_adapters_on_a_checkpoint(
    plain: Path, tmp_path: Path, options: Options
) -> None:
    # The base of these adapters is a checkpoint itself, and ZeRO-3 would cut it while it is read.
    run("pretrain", *options("pretrain", tmp_path / "base"), "trainer.max_steps=1")
    start = f"model.checkpoint={tmp_path}"
    run("pretrain", *options("pretrain", tmp_path / "lora"), *LORA, f"{start}/base", "trainer.max_steps=1")
    for name in ("none", "zero3"):
        words = [f"{start}/lora", f"deepspeed={name}", "trainer.max_steps=2"]
        run("pretrain", *options("pretrain", tmp_path / name), *words)
    np.testing.assert_allclose(losses(tmp_path / "zero3"), losses(tmp_path / "none"), rtol=1e-5)


@pytest.mark.slow
def test_answers_of_the_merged_export_are_those_of_the_adapters(plain: Path, tmp_path: Path) -> None:
    exported = export(plain, tmp_path / "out").path
    words = [str(exported), "--run", str(plain), "--clips", "4", "--out", str(tmp_path / "figures.json")]
    program = [sys.executable, "scripts/check_export.py", *words]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["adapters"]
    assert figures["same"] == figures["clips"] == 4


def test_another_base_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(plain / "checkpoints" / "checkpoint-6", folder)
    record = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps({**record, "seed": 5}))
    with pytest.raises(ValueError, match=r"base\.json is not what was saved"):
        load_model(folder)
    with pytest.raises(ValueError, match="trained on other weights than those"):
        load_model(folder, verify=False)
    (folder / "base.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        load_model(folder, verify=False)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
def test_adapters_on_a_model_stored_in_half_precision_train_a_projector_in_float32(
    bf16: bool, tmp_path: Path, options: Options
) -> None:
    """The documented recipe for the released model, as small as it gets: adapters of the LLM, a frozen encoder."""
    recipe = ["model.lora.parts=[llm]", "model.freeze=[encoder]", "model.dtype=bfloat16", f"trainer.bf16={bf16}"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("sft", *options("sft", whole), *recipe, "trainer.learning_rate=1e-2")
    assert losses(whole)[-1] < losses(whole)[0]
    weights = {}
    for step in (4, 6):
        with safe_open(whole / f"checkpoints/checkpoint-{step}/adapter_model.safetensors", "pt") as stored:
            weights[step] = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
    assert {value.dtype for value in weights[6].values()} == {torch.float32}
    (projector,) = (key for key in weights[6] if key.endswith("linear.weight"))
    assert not torch.equal(weights[4][projector], weights[6][projector])
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "checkpoint-6")
    (resumed / "finished.json").unlink()
    run("sft", *options("sft", resumed), *recipe, "trainer.learning_rate=1e-2")
    assert losses(resumed) == losses(whole)
    # A pair's reference is the model without adapters, whose own projector is in half precision.
    pairs = [*options("dpo", tmp_path / "dpo"), *recipe, f"model.checkpoint={whole}", "trainer.max_steps=2"]
    run("dpo", *pairs)
    assert metrics(tmp_path / "dpo")[0]["loss"] == pytest.approx(np.log(2), abs=1e-2)
