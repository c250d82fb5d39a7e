"""Turn a checkpoint into a Hugging Face folder that stock transformers loads, and prove it."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, Qwen2AudioProcessor

from qa_train.data.audio.front_end import FRONT_END
from qa_train.export.model_card import model_card
from qa_train.model import find_checkpoint, load_model
from qa_train.model.build import load_adapted
from qa_train.model.lora import has_adapters, merge_adapters, read_base, write_adapters
from qa_train.model.stored.loading import read_stock_model, read_stock_processor
from qa_train.model.stored.weights import weights_digest
from qa_train.train.job.distributed import name_accelerator
from qa_train.utils.atomic import local

_PROBE = "<|audio_bos|>{}<|audio_eos|>Detect the language and recognize the speech: <|en|>"
# Seconds of the probe clips: a short one, and one of two windows.
_PROBE_S = (1.3, 31.7)
# A clip in the released chat template, and the same where `windows=true` joins clips that follow each other to one.
_CLIP = (
    "{% set audio_count.value = audio_count.value + 1 %}"
    "Audio {{ audio_count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
)
_WINDOW = (
    "{% if not (windows and loop.previtem and loop.previtem.type == 'audio') %}"
    "{% set audio_count.value = audio_count.value + 1 %}Audio {{ audio_count.value }}: <|audio_bos|>{% endif %}"
    "<|AUDIO|>"
    "{% if not (windows and loop.nextitem and loop.nextitem.type == 'audio') %}<|audio_eos|>\n{% endif %}"
)


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
    merge: bool = True,
    facts: Mapping[str, Any] | None = None,
    results: str | Path | None = None,
    verify: bool = True,
    allow_missing: Sequence[str] = (),
) -> Exported:
    """Write weights, configuration, tokenizer, processor, chat template, generation settings and model card to ``out``.

    Adapters of a run with ``model.lora`` are merged into the weights; without ``merge`` they alone are written, as peft
    reads them. ``facts``: base_model, license, language and datasets for the card (`model_card`).
    ``results``: the folder of an evaluation of these weights, or a quickstart's results.json, for the card
    (`qa_train.export.model_card`). ``verify`` and ``allow_missing`` are those of `load_model`.

    The folder is then read by the stock classes and must give the same logits for two probe clips, one of them over
    30 s, within 1e-4 of the largest logit (3e-2 in half precision, where only the order of summation differs).
    ValueError if ``out`` is not empty, the checkpoint cannot be read, or is none of adapters on a base that others can
    read, and ``merge`` is off; RuntimeError if the reloaded model answers
    otherwise, and then ``out`` is not written.
    """
    out = local(out, "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another place for the export")
    name_accelerator()
    folder = find_checkpoint(checkpoint)
    adapted = has_adapters(folder)
    base = base_of(folder)
    if not merge:
        _check_base(folder, base)
    # Adapters answer the probe unmerged, as trained, so the merge is part of what is verified.
    if adapted:
        model, processor = load_adapted(folder, verify=verify)
    else:
        model, processor = load_model(folder, verify=verify, allow_missing=allow_missing)
    dtype = model.dtype
    probes = [_probe(processor, seconds) for seconds in _PROBE_S]
    with torch.no_grad():
        expected = [model(**probe.to(dtype=dtype)).logits.float() for probe in probes]
    facts = dict(facts or {})
    with _new_folder(out) as partial:
        if not merge:
            if not Path(str(base)).exists():
                facts.setdefault("base_model", base)
            parameters = write_adapters(model, partial, facts.get("base_model") or str(base))
        model = merge_adapters(model) if adapted else model
        digest = weights_digest(model) if results is not None else None
        if merge:
            parameters = sum(p.numel() for p in model.parameters())
            model.save_pretrained(partial)
        # Servers pass a clip of more than 30 s as several, and settings of the template with the request.
        processor.chat_template = str(processor.chat_template).replace(_CLIP, _WINDOW)
        processor.save_pretrained(partial)
        card = model_card(
            Path(folder),
            name=out.name,
            parameters=parameters,
            results=results,
            weights=digest,
            merged=merge,
            facts=facts,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        del model
        gc.collect()
        difference = _compare(partial, probes, expected, dtype, None if merge else base)
    return Exported(out, parameters, difference)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """The folder to write to; it becomes ``out`` at the end, and is deleted after an error."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def base_of(checkpoint: str | Path) -> str | None:
    """The folder or hub id of the model that a checkpoint's adapters were trained on.

    None without adapters, or if it is not one model that others can read.
    """
    folder = find_checkpoint(checkpoint)
    base = read_base(folder)[0].checkpoint if has_adapters(folder) else None
    return None if base is None or has_adapters(find_checkpoint(base)) else find_checkpoint(base)


def _check_base(folder: str | Path, base: str | None) -> None:
    if not has_adapters(folder):
        raise ValueError(f"{folder} holds a whole model and no adapters: drop merge=false")
    if base is None:
        raise ValueError(
            f"the adapters in {folder} were trained on a model assembled when it is loaded, or on other adapters, "
            "which no other tool can do: drop merge=false, or export the base first and train on the export"
        )


def _compare(
    folder: Path, probes: list[BatchFeature], expected: list[torch.Tensor], dtype: torch.dtype, base: str | None
) -> float:
    """Reload ``folder`` with the stock classes, as adapters on ``base`` if given, and compare the probes' logits.

    dtype: of the model that gave ``expected``; a base may be stored in another one than it was trained in.
    """
    model = read_stock_model(folder) if base is None else read_stock_model(base, folder, dtype)
    stock = read_stock_processor(folder)
    differences = []
    for seconds, probe, wanted in zip(_PROBE_S, probes, expected, strict=True):
        inputs = _probe(stock, seconds)
        if not torch.equal(inputs["input_ids"], probe["input_ids"]):
            raise RuntimeError(f"the processor in {folder} tokenizes the probe differently from the checkpoint's")
        with torch.no_grad():
            logits = model(**inputs.to(dtype=dtype)).logits.float()
        differences.append(float((logits - wanted).abs().max() / wanted.abs().max()))
    # A value that is not a number is the largest.
    difference = max(differences, key=lambda value: (value != value, value))
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    if not difference <= limit:
        raise RuntimeError(
            f"stock transformers computes different logits from the export: they differ by {difference:.2e} of the "
            f"largest one, allowed is {limit:.0e}; nothing was written"
        )
    return difference


def _probe(processor: Qwen2AudioProcessor, seconds: float) -> BatchFeature:
    """A text prompt with a rising tone, in windows of at most 30 s, as the stock processor prepares it."""
    time = np.arange(int(seconds * FRONT_END.sample_rate)) / FRONT_END.sample_rate
    wave = (0.3 * np.sin(2 * np.pi * (200 + 600 * time / seconds) * time)).astype(np.float32)
    parts = np.split(wave, np.cumsum(FRONT_END.segments(len(wave)))[:-1])
    text = _PROBE.format("<|AUDIO|>" * len(parts))
    return processor(text=text, audio=parts, sampling_rate=FRONT_END.sample_rate, return_tensors="pt")
