"""Audio bytes to 16 kHz waveforms and 30-second segments.

``front_end`` has the numbers of frames and tokens, ``mel`` the frames themselves, so that reading audio needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr

from qa_train.data.audio import dr_flac
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.sound import AnySound, Sound, open_sound
from qa_train.data.audio.structure.containers import CONVERT, damaged
from qa_train.data.audio.structure.containers import BadAudio as BadAudio
from qa_train.data.audio.structure.formats import examine

SAMPLE_RATE = FRONT_END.sample_rate
MIN_CLIP_SAMPLES = FRONT_END.shortest_clip
MAX_CHANNELS = 8
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 192_000
# Samples of all channels in a second: 8 channels at 48 kHz, or 2 at 192 kHz. With the duration it bounds the work.
MAX_SAMPLES_PER_S = 384_000
# Samples of a clip that is kept in memory as a whole, at its own rate: 1 GiB, 4.6 hours at 16 kHz.
MAX_WHOLE_SAMPLES = 1 << 28
# Maximum length of a clip: bounds what a header can make the indexer decode.
MAX_CLIP_S = 24 * 3600.0


def resampled_length(num_samples: int, sample_rate: int) -> int:
    """Length after resampling to 16 kHz: the nearest integer, halves up (what soxr returns)."""
    return (2 * num_samples * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def read_header(source: bytes | str | Path) -> tuple[int, int]:
    """Samples (per channel) and rate of a file: the true number. Formats of libsndfile need no decoding for it.

    Raises BadAudio when the file is not audio, is truncated as far as its structure shows, or is invalid.
    """
    with open_sound(source) as sound:
        _check_header(sound)
        if sound.frames is not None:
            return sound.frames, sound.rate
        limit = _limit(sound, MAX_CLIP_S)
        count = sum(len(block) for block in sound.blocks(limit))
        _check_decoded(sound, count, limit, MAX_CLIP_S)
        return count, sound.rate


def read_clip(source: bytes | str | Path, *, max_duration_s: float = 600.0) -> np.ndarray:
    """Decode one clip to float32 mono at 16 kHz, shape [n].

    The read is bounded by ``max_duration_s``, and memory by what was decoded, whatever the header claims: an hour of
    silence fits in a megabyte of FLAC.

    Raises BadAudio when the clip is unreadable, empty, too long, not finite, or
    has a number of samples that differs from its header.
    """
    with open_sound(source, at_once=True) as sound:
        _check_header(sound)
        max_duration_s = min(max_duration_s, MAX_WHOLE_SAMPLES / sound.rate)
        limit = _limit(sound, max_duration_s)
        blocks = list(_mono_blocks(sound, limit))
        mono = blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])
        _check_decoded(sound, len(mono), limit, max_duration_s)
    if not np.isfinite(mono).all():
        raise BadAudio("it contains NaN or infinite samples")
    return resample(np.ascontiguousarray(mono), sound.rate)


def read_indexed(raw: bytes, num_samples: int) -> np.ndarray:
    """The clip with these bytes, of which an index states ``num_samples`` at 16 kHz: float32 [num_samples].

    A FLAC whose header states the same is not searched for others joined to it: the index would count theirs too.

    Raises BadAudio as `read_clip`, and for any other number of samples.
    """
    wave = dr_flac.decode(raw) if dr_flac.stated(raw) == (num_samples, SAMPLE_RATE, 1) else None
    if wave is None:
        # One second more than indexed: a wrong index ends the read early.
        wave = read_clip(raw, max_duration_s=num_samples / SAMPLE_RATE + 1)
    if len(wave) != num_samples:
        raise BadAudio(f"{len(wave)} samples at 16 kHz, the index has {num_samples}")
    return wave


def read_frames(source: bytes | str | Path, start: int, stop: int) -> np.ndarray:
    """Samples ``start`` to ``stop`` of every channel at the file's own rate, float32 [n, channels].

    Raises BadAudio when the decoder stops, or finds fewer samples than the header states.
    """
    with open_sound(source) as sound:
        _check_header(sound)
        skip = start - sound.seek(start) if isinstance(sound, Sound) else start
        blocks = [np.empty((0, sound.channels), np.float32)]
        for block in sound.blocks(skip + stop - start):
            block, skip = block[skip:], max(0, skip - len(block))
            blocks.append(block.reshape(len(block), sound.channels))
    found = np.concatenate(blocks)
    if len(found) < stop - start:
        raise BadAudio(f"its samples {start} to {stop} are {len(found)}: damaged or cut")
    return found


def describe(source: bytes | str | Path) -> str:
    """Format, rate and channels in words. Raises BadAudio as ``read_header``."""
    with open_sound(source) as sound:
        return f"{sound.kind}, {sound.rate} Hz, {sound.channels} channels"


def stored_kind(raw: bytes) -> str:
    """The extension under which shards keep this file, by its content ("flac", "m4a"). Raises BadAudio."""
    return examine(raw).kind


def decoded_length(source: bytes | str | Path, *, max_duration_s: float = MAX_CLIP_S) -> int:
    """Samples at 16 kHz of a clip, decoded to its end block by block: the checks of ``read_clip`` in little memory."""
    with open_sound(source) as sound:
        _check_header(sound)
        limit = _limit(sound, max_duration_s)
        count = 0
        for block in _mono_blocks(sound, limit):
            count += len(block)
            if not np.isfinite(block).all():
                raise BadAudio("it contains NaN or infinite samples")
        _check_decoded(sound, count, limit, max_duration_s)
        return resampled_length(count, sound.rate)


def resample(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Resample a mono float32 waveform to 16 kHz (soxr HQ), exactly ``resampled_length`` samples."""
    if sample_rate == SAMPLE_RATE:
        return wave
    expected = resampled_length(len(wave), sample_rate)
    out = np.asarray(soxr.resample(wave, sample_rate, SAMPLE_RATE), dtype=np.float32)
    # soxr agrees to the sample except for clips of a few samples.
    return np.pad(out, (0, max(0, expected - len(out))))[:expected]


def within_full_scale(wave: np.ndarray) -> np.ndarray:
    """A waveform [n], turned down if it goes beyond 1: resampling may overshoot, and encoders would clip audibly."""
    peak = float(np.abs(wave).max(initial=0.0))
    return wave / peak if peak > 1.0 else wave


def segments(wave: np.ndarray) -> list[np.ndarray]:
    """The clip in windows of at most 30 s, without loss or overlap."""
    ends = np.cumsum(FRONT_END.segments(len(wave)))
    return [part for part in np.split(wave, ends[:-1]) if len(part)]


def audio_tokens(num_samples: int) -> int:
    """Audio tokens (40 ms each) of a clip of ``num_samples`` at 16 kHz, over all its segments."""
    if num_samples < MIN_CLIP_SAMPLES:
        raise BadAudio(f"{num_samples} samples at 16 kHz: at least {MIN_CLIP_SAMPLES} give one audio token")
    return FRONT_END.tokens(num_samples)


def _limit(sound: AnySound, max_duration_s: float) -> int:
    """One sample more than may be read; BadAudio when the header already states more."""
    limit = int(max_duration_s * sound.rate) + 1
    if sound.frames is not None and sound.frames >= limit:
        raise BadAudio(_too_long(max_duration_s))
    return limit


def _mono_blocks(sound: AnySound, limit: int) -> Iterator[np.ndarray]:
    """The channels' mean, float32 [n], a block at a time, at most ``limit`` samples in all."""
    for block in sound.blocks(limit):
        yield block if block.ndim == 1 else block.mean(axis=1)


def _check_decoded(sound: AnySound, count: int, limit: int, max_duration_s: float) -> None:
    if count >= limit:
        raise BadAudio(_too_long(max_duration_s))
    if count == 0:
        raise BadAudio("it holds no samples")
    if sound.frames is not None and count != sound.frames:
        raise damaged(sound.container.name, f"it decodes to {count} samples, its header states {sound.frames}")


def _too_long(max_duration_s: float) -> str:
    return f"longer than max_duration_s={max_duration_s:g}; cut it, or raise the limit"


def _check_header(sound: AnySound) -> None:
    name = sound.container.name
    if not 1 <= sound.channels <= MAX_CHANNELS:
        raise BadAudio(
            f"{name}: {sound.channels} channels; at most {MAX_CHANNELS} are accepted; "
            'take one: ffmpeg -i IN -af "pan=mono|c0=c0" OUT.flac'
        )
    if not MIN_SAMPLE_RATE <= sound.rate <= MAX_SAMPLE_RATE:
        expected = f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}: ffmpeg -i IN -ar 16000 OUT.flac"
        raise BadAudio(f"{name}: {sound.rate} Hz; expected {expected}")
    if sound.rate * sound.channels > MAX_SAMPLES_PER_S:
        raise BadAudio(
            f"{name}: {sound.channels} channels at {sound.rate} Hz; at most {MAX_SAMPLES_PER_S} samples a second are "
            "accepted: ffmpeg -i IN -ac 1 -ar 16000 OUT.flac"
        )
    if sound.frames is not None and not 0 < sound.frames < 2**40:
        raise BadAudio(f"{name}: its header states {sound.frames} samples: empty, or of unknown length; {CONVERT}")
