"""Encoding every clip of a run once, before its first step, when the encoder is frozen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainingArguments

from qa_train.data.audio.encoder_cache import EncoderCache, share_of
from qa_train.data.batches import Batches
from qa_train.data.cached_clips import WantedShard, wanted_shards
from qa_train.data.clips import Clip
from qa_train.model import encoder_hash, encoder_states
from qa_train.model.layers.parts import module_of
from qa_train.train.job.distributed import is_main, whole
from qa_train.utils.progress import duration, progress, say

# Clips encoded at a time when the encoder cache is filled, in seconds of audio.
_CACHE_BATCH_S = 60.0
# Time after which the encoding reports how long it will take.
_LOOK_S = 5.0
# Each process gets at least so many shards, or shares of shards, so that all take about the same time.
_UNITS = 16
# Why a clip is not encoded, if that will not change: it is noted in the cache, and not tried at every start.
_FINAL = "bad audio"


@dataclass(frozen=True)
class _Unit:
    """What one process encodes: a share of a shard's clips, ``seconds`` of audio at most."""

    digest: str
    share: int
    of: int
    seconds: float


def use_encoder_cache(folder: str, model: Any, data: Batches, args: TrainingArguments) -> None:
    """Encode every clip of the data once, and let the batches carry the outputs instead of mels.

    Every process reads the manifests of its part of the shards, and encodes its share of what is missing on its own
    device.
    """
    encoder = module_of(model, "encoder")
    # Also where ZeRO-3 shards them.
    with whole(*encoder.parameters()):
        key = f"{encoder_hash(model)[:16]}-{data.reader.num_mel_bins}" + ("-bf16" if args.bf16 else "")
        cache = EncoderCache(folder, key, model.config.audio_config.d_model)
        units = _my_units(cache, data, args.process_index, args.world_size)
        if units:
            with (
                _on_device(encoder, args.device),
                torch.inference_mode(),
                torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16),
            ):
                _fill(cache, model, data, units)
        PartialState().wait_for_everyone()
    data.use_encoder_cache(cache)


def _my_units(cache: EncoderCache, data: Batches, rank: int, ranks: int) -> list[_Unit]:
    """What this process encodes of the shards that are not complete, which all processes find out together."""
    part = wanted_shards(data.sources, lambda digest: share_of(digest, ranks) == rank)
    found = [(each.seconds, digest) for digest, each in part.items() if not each.taken <= cache.complete(digest)]
    # The longest first: the shortest then even out the sums.
    missing = sorted(gather_object(found), reverse=True)
    if missing and is_main():
        minutes = sum(seconds for seconds, _ in missing) / 60
        say(f"encoding at most {minutes:.0f} minutes of audio once (the encoder is frozen)")
    of = min(ranks, -(-_UNITS * ranks // max(len(missing), 1)))
    units = [_Unit(digest, share, of, seconds / of) for seconds, digest in missing for share in range(of)]
    return units[rank::ranks]


def _fill(cache: EncoderCache, model: Any, data: Batches, units: list[_Unit]) -> None:
    digests = {unit.digest for unit in units}
    wanted = wanted_shards(data.sources, digests.__contains__)
    total_s = sum(unit.seconds for unit in units)
    started, said, done = time.monotonic(), not is_main(), 0.0
    with progress(total=round(total_s), desc="encoding", unit="s of audio", disable=not is_main()) as bar:
        for unit in units:
            before = done
            for seconds in _encode(cache, model, data, wanted[unit.digest], unit):
                bar.update(round(seconds))
                done += seconds
                # The first groups also prepare.
                if not said and (took := time.monotonic() - started) > _LOOK_S:
                    said = True
                    left = duration(took / done * (total_s - done))
                    say(f"encoding takes about {left} more here; then training starts")
            # Clips that were there, and those that several sources share, need no time.
            total_s -= unit.seconds - (done - before)


def _encode(cache: EncoderCache, model: Any, data: Batches, shard: WantedShard, unit: _Unit) -> Iterator[float]:
    """Encode what the cache lacks of a unit, and note that it is complete; the seconds of each group of clips."""
    lost: dict[str, str] = {}
    final = True
    with cache.writer(unit.digest) as writer:
        missing = [clip for clip in shard.clips(unit.share, unit.of) if clip.id not in writer]
        for group in _groups(missing):
            mels = data.read_mels(group)
            if mels.clips:
                states = encoder_states(model, mels.input_features, mels.feature_lengths)
                for clip, part in zip(mels.clips, states.split(mels.clip_tokens), strict=True):
                    writer.write(clip.id, part)
            lost |= {clip.id: str(skip) for clip, skip in mels.skipped}
            final = final and all(skip.reason == _FINAL for _, skip in mels.skipped)
            yield sum(clip.duration_s for clip in group)
    if final:
        for taken in shard.taken:
            cache.mark(unit.digest, taken, unit.share, unit.of, lost)


@contextmanager
def _on_device(encoder: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Within, the encoder is on the device that encodes; weights that ZeRO-3 shards are there already."""
    if any(hasattr(weight, "ds_id") for weight in encoder.parameters()):
        yield
        return
    encoder.to(device)
    yield
    encoder.to("cpu")


def _groups(clips: list[Clip]) -> list[list[Clip]]:
    """Clips in groups of at most ``_CACHE_BATCH_S`` seconds (one clip at least)."""
    groups: list[list[Clip]] = []
    filled = 0.0
    for clip in clips:
        if not groups or filled + clip.duration_s > _CACHE_BATCH_S:
            groups.append([])
            filled = 0.0
        groups[-1].append(clip)
        filled += clip.duration_s
    return groups
