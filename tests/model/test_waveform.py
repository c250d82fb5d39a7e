"""From the waveform: our log-mel and unpadded model against the stock processor and model, end to end."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.data.audio.mel import log_mel
from qa_train.model import build_model
from tests.model.conftest import TINY_TEXT


def test_logits_of_real_waveforms_equal_stock() -> None:
    audio = {"num_mel_bins": 80, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
    model, processor = build_model(
        ModelConfig(
            name="test",
            encoder=EncoderConfig(config=audio | {"encoder_ffn_dim": 32}),
            llm=LanguageModelConfig(config=TINY_TEXT | {"vocab_size": 1100}),
            tokenizer="builtin:nano",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    stock = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_dict(model.config.to_dict()))
    stock.load_state_dict(model.state_dict())
    noise = np.random.default_rng(0)
    waves = [
        (0.2 * noise.standard_normal(samples) * np.hanning(samples)).astype(np.float32)
        # Most are no whole number of hops: the last one counts as a frame all the same.
        for samples in (321, 1600, 1601, 28_440, 28_481, 64_480, 64_799, 479_920)
    ]
    # A clip that ends loudly: the last frames depend on what follows it.
    waves[3][-800:] += 0.5
    texts = [f"<|audio_bos|><|AUDIO|><|audio_eos|>What is it? {i}" for i in range(len(waves))]
    processor.tokenizer.padding_side = "right"
    batch = processor(text=texts, audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True)
    joined = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "input_features": torch.cat([log_mel(wave, 80) for wave in waves], 1),
        "feature_lengths": torch.tensor([-(-len(wave) // 160) for wave in waves]),
    }
    with torch.no_grad():
        expected = stock.eval()(**batch, use_cache=False).logits
        found = model.eval()(**joined).logits
    real = batch["attention_mask"].bool()
    scale = float(expected[real].abs().max())
    torch.testing.assert_close(found[real] / scale, expected[real] / scale, atol=1e-5, rtol=0)
