#!/usr/bin/env python
"""Compare the unpadded model with the stock Qwen2AudioForConditionalGeneration, from waveforms to gradients.

Random batches (clips of 0.1 to 30 s, clips of a single audio token, clips of up to 75 s in windows, several clips in a
sample, samples and batches without audio) go through the stock processor and the stock model, padded to 30 s, and
through our log-mel and our model. In float32, logits, loss and the gradient of every parameter must agree to
1e-4 of their largest value; and a sample whose neighbour changes must keep its logits to the bit.

    python scripts/check_parity.py [--batches 200] [--seed 0] [--family qwen2] [--device cpu]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import MIN_CLIP_SAMPLES, SAMPLE_RATE, audio_tokens, segments
from qa_train.model import build_model

LIMIT = 1e-4
MEL_BINS = 80
MAX_SEGMENTS = 6
COUNTED = ("batches", "samples", "text only", "clips", "clips of one token", "clips above 30 s", "segments")
# Six mel frames; one more gives two tokens.
ONE_TOKEN_SAMPLES = 960
WORDS = "the quick brown fox jumps over a lazy dog while we wait for seven green birds".split()

Inputs = dict[str, torch.Tensor]


@dataclass
class Differences:
    """The largest differences met so far, each as a share of the largest value of its tensor."""

    logits: float = 0.0
    loss: float = 0.0
    gradient: float = 0.0
    neighbour: float = 0.0
    worst_parameter: str = ""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    @property
    def within(self) -> bool:
        """Whether every difference is allowed; one that is not a number is not."""
        return self.logits <= LIMIT and self.loss <= LIMIT and self.gradient <= LIMIT and self.neighbour == 0


def make_models(family: str, moved: bool) -> tuple[Any, Any, Any]:
    """(ours, stock, processor) with equal random weights; ``moved``: far from where initialization leaves them."""
    audio = {"num_mel_bins": MEL_BINS, "d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    text = {"model_type": family, "vocab_size": 1024, "hidden_size": 64, "max_position_embeddings": 8192}
    cfg = ModelConfig(
        name="parity",
        encoder=EncoderConfig(config=audio | {"encoder_ffn_dim": 96}),
        llm=LanguageModelConfig(config=text | heads),
        tokenizer="builtin:nano",
    )
    ours, processor = build_model(cfg)
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in ours.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 3 * parameter)
    stock = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_dict(ours.config.to_dict()))
    stock.load_state_dict(ours.state_dict())
    processor.tokenizer.padding_side = "right"
    return ours.eval(), stock.eval(), processor


def make_batch(rng: np.random.Generator, processor: Any, counts: dict[str, int]) -> tuple[Inputs, Inputs, torch.Tensor]:
    """One random batch as the stock model takes it, as ours takes it, and its labels [B, L]."""
    texts: list[str] = []
    waves: list[np.ndarray] = []
    silent = rng.random() < 0.05
    for _ in range(int(rng.integers(1, 5))):
        text = ""
        for _ in range(0 if silent else int(rng.choice([0, 1, 1, 1, 2, 3]))):
            parts = segments(make_wave(rng))
            if not waves and audio_tokens(len(parts[0])) == 1:
                # Where no two <|AUDIO|> are neighbours the stock model takes the batch for one of an older kind.
                parts = segments(make_wave(rng, usual=True))
            if len(waves) + len(parts) > MAX_SEGMENTS:
                break
            waves += parts
            counts["clips"] += 1
            counts["clips of one token"] += sum(map(len, parts)) <= ONE_TOKEN_SAMPLES
            counts["clips above 30 s"] += len(parts) > 1
            text += "<|audio_bos|>" + "<|AUDIO|>" * len(parts) + "<|audio_eos|>"
        counts["samples"] += 1
        counts["text only"] += not text
        texts.append(text + " ".join(rng.choice(WORDS, int(rng.integers(1, 30)))))
    counts["segments"] += len(waves)
    audio = {"audio": waves, "sampling_rate": SAMPLE_RATE} if waves else {}
    padded = dict(processor(text=texts, return_tensors="pt", padding=True, **audio))
    joined = {name: padded[name] for name in ("input_ids", "attention_mask")}
    if waves:
        joined["input_features"] = torch.cat([log_mel(wave, MEL_BINS) for wave in waves], 1)
        joined["feature_lengths"] = torch.tensor([FRONT_END.frames(len(wave)) for wave in waves])
    # The last tokens of each row are its answer; the rest is the prompt.
    ends = padded["attention_mask"].sum(1, keepdim=True)
    places = torch.arange(padded["input_ids"].shape[1])
    answer = (places < ends) & (places >= (ends - int(rng.integers(1, 20))).clamp(min=1))
    answer &= padded["input_ids"] != processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    return padded, joined, torch.where(answer, padded["input_ids"], -100)


def make_wave(rng: np.random.Generator, usual: bool = False) -> np.ndarray:
    """Noise that swells and a tone, at a random volume: 0.1 to 30 s (short ones as often as long ones) or, one time
    in twelve each, a clip of one audio token and one of 30 to 75 s. Most lengths are no whole number of hops."""
    kind = 1.0 if usual else rng.random()
    if kind < 1 / 12:
        count = int(rng.integers(MIN_CLIP_SAMPLES, ONE_TOKEN_SAMPLES + 1))
    elif kind < 2 / 12:
        count = int(SAMPLE_RATE * rng.uniform(30, 75))
    else:
        count = int(SAMPLE_RATE * np.exp(rng.uniform(np.log(0.1), np.log(30))))
    time_s = np.arange(count) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * rng.uniform(80, 4000) * time_s)
    noise = rng.standard_normal(count) * (1 + np.sin(2 * np.pi * rng.uniform(0.2, 3) * time_s))
    return ((0.2 * tone + 0.1 * noise) * 10 ** rng.uniform(-1.5, 0)).astype(np.float32)


def compare(ours: Any, stock: Any, batch: tuple[Inputs, Inputs, torch.Tensor], found: Differences) -> None:
    """Add one batch's differences to ``found``."""
    padded, joined, labels = batch
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        expected, logits = stock(**padded, use_cache=False).logits[real], ours(**joined).logits[real]
    found.logits = _worse(found.logits, logits, expected)
    for model in (ours, stock):
        model.zero_grad(set_to_none=True)
    losses = [ours(**joined, labels=labels).loss, stock(**padded, labels=labels, use_cache=False).loss]
    for loss in losses:
        loss.backward()
    found.loss = _worse(found.loss, *(loss.detach() for loss in losses))
    mine = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        gradient = mine[name].grad
        if "embed_positions" in name:
            continue
        if parameter.grad is None:
            # The stock model leaves the encoder out of a batch without audio; ours gives it zeros.
            assert gradient is None or not gradient.any(), name
            continue
        worse = _worse(found.gradient, gradient, parameter.grad)
        if worse != found.gradient:
            found.gradient, found.worst_parameter = worse, name
    found.counts["batches"] += 1


def change_a_neighbour(ours: Any, joined: Inputs, found: Differences) -> None:
    """Change the first sample of a batch, its text and its audio, and look at the logits of the others."""
    if len(joined["input_ids"]) < 2:
        return
    changed = {name: values.clone() for name, values in joined.items()}
    audio_id = ours.config.audio_token_id
    first, tokens = changed["input_ids"][0], changed["input_ids"]
    first[(first != audio_id) & (changed["attention_mask"][0] == 1)] = 300
    spans = int((tokens[0] == audio_id).sum())
    if "feature_lengths" in changed and spans:
        # The clips of the first sample come first; at least one column belongs to it.
        changed["input_features"][:, : int(changed["feature_lengths"][0])] += 1.0
    with torch.no_grad():
        before, after = ours(**joined).logits, ours(**changed).logits
    assert not torch.equal(before[0], after[0])
    found.neighbour = max(found.neighbour, float((before[1:] - after[1:]).abs().max()))


def _worse(worst: float, found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return difference if not difference <= worst else worst


def check(batches: int, seed: int, family: str = "qwen2", device: str = "cpu") -> Differences:
    """Compare ``batches`` random batches, every other one with weights moved out of their initialization."""
    models = [make_models(family, moved) for moved in (False, True)]
    for ours, stock, _ in models:
        ours.to(device)
        stock.to(device)
    found = Differences()
    for k in range(batches):
        ours, stock, processor = models[k % 2]
        padded, joined, labels = make_batch(np.random.default_rng((seed, k)), processor, found.counts)
        padded = {name: values.to(device) for name, values in padded.items()}
        # Lengths stay on the CPU, where batches have them.
        joined = {name: values if name == "feature_lengths" else values.to(device) for name, values in joined.items()}
        compare(ours, stock, (padded, joined, labels.to(device)), found)
        change_a_neighbour(ours, joined, found)
    return found


def main() -> int:
    """Print the largest differences; 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="qwen2", choices=("qwen2", "qwen3", "llama"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    started = time.perf_counter()
    found = check(options.batches, options.seed, options.family, options.device)
    print(
        ", ".join(f"{count} {name}" for name, count in found.counts.items()), f"{time.perf_counter() - started:.0f} s"
    )
    print(f"largest differences, as a share of the largest value (allowed {LIMIT:.0e}):")
    print(f"  logits    {found.logits:.2e}\n  loss      {found.loss:.2e}")
    print(f"  gradients {found.gradient:.2e} ({found.worst_parameter})")
    print(f"logits of a sample when another one changes: {found.neighbour:.2e} (allowed 0)")
    print("equal" if found.within else "NOT EQUAL")
    return 0 if found.within else 1


if __name__ == "__main__":
    sys.exit(main())
