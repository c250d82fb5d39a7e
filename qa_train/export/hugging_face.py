"""Turn a checkpoint into a Hugging Face folder that stock transformers loads, and prove it."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature, Qwen2AudioProcessor

from qa_train.data.audio.front_end import FRONT_END
from qa_train.export.model_card import model_card
from qa_train.model import find_checkpoint, load_model
from qa_train.model.build import load_adapted
from qa_train.model.lora import has_adapters, merge_adapters
from qa_train.model.stored.loading import read_stock
from qa_train.model.stored.weights import weights_digest
from qa_train.train.job.distributed import name_accelerator

_PROBE = "<|audio_bos|>{}<|audio_eos|>Detect the language and recognize the speech: <|en|>"
# Seconds of the probe clips: a short one, and one of two windows.
_PROBE_S = (1.3, 31.7)


@dataclass(frozen=True)
class Exported:
    """max_difference: largest difference of any logit of the probe, as a share of the largest logit."""

    path: Path
    parameters: int
    max_difference: float


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    results: str | Path | None = None,
    verify: bool = True,
    allow_missing: Sequence[str] = (),
) -> Exported:
    """Write weights, configuration, tokenizer, processor, chat template, generation settings and model card to ``out``.

    Adapters of a run with ``model.lora`` are merged into the weights. ``results``: the folder of an evaluation of
    these weights, or a quickstart's results.json, for the card (`qa_train.export.model_card`). ``verify`` and
    ``allow_missing`` are those of `load_model`.

    The folder is then read by the stock classes and must give the same logits for two probe clips, one of them over
    30 s, within 1e-4 of the largest logit (3e-2 in half precision, where only the order of summation differs).
    ValueError if ``out`` is not empty or the checkpoint cannot be read; RuntimeError if the reloaded model answers
    otherwise, and then ``out`` is not written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another place for the export")
    name_accelerator()
    folder = find_checkpoint(checkpoint)
    # Adapters answer the probe unmerged, as trained, so the merge is part of what is verified.
    if has_adapters(folder):
        model, processor = load_adapted(folder, verify=verify)
    else:
        model, processor = load_model(folder, verify=verify, allow_missing=allow_missing)
    probes = [_probe(processor, seconds) for seconds in _PROBE_S]
    with torch.no_grad():
        expected = [model(**probe.to(dtype=model.dtype)).logits.float() for probe in probes]
    if has_adapters(folder):
        model = merge_adapters(model)
    parameters = sum(p.numel() for p in model.parameters())
    digest = weights_digest(model) if results is not None else None
    card = model_card(Path(folder), name=out.name, parameters=parameters, results=results, weights=digest)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    del model
    gc.collect()
    difference = _compare(partial, probes, expected)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return Exported(out, parameters, difference)


def _compare(folder: Path, probes: list[BatchFeature], expected: list[torch.Tensor]) -> float:
    """Reload ``folder`` with the stock classes and compare inputs and logits of the probes."""
    model, stock = read_stock(folder)
    differences = []
    for seconds, probe, wanted in zip(_PROBE_S, probes, expected, strict=True):
        inputs = _probe(stock, seconds)
        if not torch.equal(inputs["input_ids"], probe["input_ids"]):
            raise RuntimeError(
                f"the processor in {folder} makes other tokens of the probe than the one of the checkpoint"
            )
        with torch.no_grad():
            logits = model(**inputs.to(dtype=model.dtype)).logits.float()
        differences.append(float((logits - wanted).abs().max() / wanted.abs().max()))
    # A value that is not a number is the largest.
    difference = max(differences, key=lambda value: (value != value, value))
    limit = 1e-4 if model.dtype == torch.float32 else 3e-2
    if not difference <= limit:
        raise RuntimeError(
            f"stock transformers gives other logits from {folder}: they differ by {difference:.2e} of the largest one, "
            f"allowed is {limit:.0e}; the export was left there for inspection"
        )
    return difference


def _probe(processor: Qwen2AudioProcessor, seconds: float) -> BatchFeature:
    """A text prompt with a rising tone, in windows of at most 30 s, as the stock processor prepares it."""
    time = np.arange(int(seconds * FRONT_END.sample_rate)) / FRONT_END.sample_rate
    wave = (0.3 * np.sin(2 * np.pi * (200 + 600 * time / seconds) * time)).astype(np.float32)
    parts = np.split(wave, np.cumsum(FRONT_END.segments(len(wave)))[:-1])
    text = _PROBE.format("<|AUDIO|>" * len(parts))
    return processor(text=text, audio=parts, sampling_rate=FRONT_END.sample_rate, return_tensors="pt")
