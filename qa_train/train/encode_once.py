"""Encoding every clip of a run once, before its first step, when the encoder is frozen."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from qa_train.data.audio.encoder_cache import EncoderCache, cache_writer
from qa_train.data.batches import Batches
from qa_train.model import encoder_hash, encoder_states
from qa_train.model.layers.parts import module_of
from qa_train.train.job.distributed import is_main
from qa_train.utils.progress import duration, progress, say

# Clips encoded at a time when the encoder cache is filled, in seconds of audio.
_CACHE_BATCH_S = 60.0
# Time after which the encoding reports how long it will take.
_LOOK_S = 5.0


def use_encoder_cache(folder: str, model: Any, data: Batches, args: TrainingArguments) -> None:
    """Encode every clip of the data once, and let the batches carry the outputs instead of mels.

    Every process encodes its share, on its own device.
    """
    key = f"{encoder_hash(model)[:16]}-{data.reader.num_mel_bins}" + ("-bf16" if args.bf16 else "")
    missing = data.clips_not_in(folder, key)
    # No rank may write before all ranks have listed what is missing: the shares would differ.
    PartialState().wait_for_everyone()
    # They are sorted by length, so that every share takes the same time.
    share = missing[args.process_index :: args.world_size]
    if missing:
        total_s = sum(clip.duration_s for clip in missing)
        if args.process_index == 0:
            print(f"encoding {total_s / 60:.0f} minutes of audio once (the encoder is frozen)", flush=True)
        encoder = module_of(model, "encoder").to(args.device)
        with torch.inference_mode(), torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            _fill_encoder_cache(folder, key, model, data, share)
        encoder.to("cpu")
        PartialState().wait_for_everyone()
    data.use_encoder_cache(EncoderCache.open(folder, key))


def _fill_encoder_cache(folder: str, key: str, model: Any, data: Batches, clips: list[Any]) -> None:
    width = model.config.audio_config.d_model
    total_s = round(sum(clip.duration_s for clip in clips))
    started, said, done = time.monotonic(), not is_main(), 0.0
    with (
        cache_writer(folder, key, width) as writer,
        progress(total=total_s, desc="encoding", unit="s of audio", disable=not is_main()) as bar,
    ):
        for group in _groups(clips):
            mels = data.read_mels(group)
            if mels.clips:
                states = encoder_states(model, mels.input_features, mels.feature_lengths)
                for clip, part in zip(mels.clips, states.split(mels.clip_tokens), strict=True):
                    writer.write(clip.id, part)
            seconds = sum(clip.duration_s for clip in group)
            bar.update(round(seconds))
            done += seconds
            # The first groups also prepare.
            if not said and (took := time.monotonic() - started) > _LOOK_S:
                said = True
                say(f"encoding takes about {duration(took / done * (total_s - done))} more here; then training starts")


def _groups(clips: list[Any]) -> list[list[Any]]:
    """Clips in groups of at most ``_CACHE_BATCH_S`` seconds (one clip at least)."""
    groups: list[list[Any]] = []
    filled = 0.0
    for clip in clips:
        if not groups or filled + clip.duration_s > _CACHE_BATCH_S:
            groups.append([])
            filled = 0.0
        groups[-1].append(clip)
        filled += clip.duration_s
    return groups
