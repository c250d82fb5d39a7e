"""Audio bytes to 16 kHz waveforms and 30-second segments, and how many frames and tokens these give.

The frames themselves are in ``qa_train.data.audio.mel``, so that reading audio needs no torch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
HOP = 160
N_FFT = 400
SEGMENT_FRAMES = 3000
SEGMENT_SAMPLES = SEGMENT_FRAMES * HOP
# The last window of a long clip borrows from the one before it rather than be shorter than this:
# fewer than 3 mel frames give no audio token at all.
MIN_SEGMENT_SAMPLES = 1600
# Below 3 mel frames the encoder's two halvings leave nothing.
MIN_CLIP_SAMPLES = 2 * HOP + 1
MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 192_000
# No single clip may be longer: it bounds what a header can make the indexer decode.
MAX_CLIP_S = 24 * 3600.0
_BLOCK_FRAMES = 1 << 18
_UNKNOWN_LENGTH = 0x7FFF0000
# Bytes by which the headers of harmless WAV files may be wrong.
_WAV_SLACK = 64


class BadAudio(ValueError):
    """A clip that cannot be used; the message says why, ``reason`` in two words for the counts."""

    reason = "bad audio"


def resampled_length(num_samples: int, sample_rate: int) -> int:
    """Length after resampling to 16 kHz: the nearest integer, halves up (what soxr returns)."""
    return (2 * num_samples * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def read_header(source: bytes | str | Path) -> tuple[int, int]:
    """Frames and sample rate that the file's header states; raises BadAudio when it makes no sense."""
    with _open(source) as file:
        _check_header(file)
        return file.frames, file.samplerate


def read_clip(source: bytes | str | Path, *, max_duration_s: float = 600.0) -> np.ndarray:
    """Decode one clip to float32 mono at 16 kHz, shape [n].

    The read is bounded by ``max_duration_s`` whatever the header claims: an hour of silence fits
    in a megabyte of FLAC. Raises BadAudio when the clip is unreadable, empty, too long, not
    finite, or holds another number of samples than its header says.
    """
    with _open(source) as file:
        _check_header(file)
        limit = _limit(file, max_duration_s)
        if file.channels == 1 and not _estimated(file):
            # One call; frames are bounded by the header's, which were compared with the limit.
            blocks = [_read(file, limit)]
        else:
            blocks = list(_mono_blocks(file, limit))
        mono = blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])
        _check_decoded(file, len(mono), limit, max_duration_s)
        rate = file.samplerate
    if not np.isfinite(mono).all():
        raise BadAudio("it contains NaN or infinite samples")
    return resample(np.ascontiguousarray(mono), rate)


def decoded_length(source: bytes | str | Path, *, max_duration_s: float = MAX_CLIP_S) -> int:
    """Samples at 16 kHz of a clip, decoded to its end block by block: the checks of ``read_clip`` in little memory."""
    with _open(source) as file:
        _check_header(file)
        limit = _limit(file, max_duration_s)
        count = 0
        for block in _mono_blocks(file, limit):
            count += len(block)
            if not np.isfinite(block).all():
                raise BadAudio("it contains NaN or infinite samples")
        _check_decoded(file, count, limit, max_duration_s)
        return resampled_length(count, file.samplerate)


def resample(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Resample a mono float32 waveform to 16 kHz (soxr HQ), exactly ``resampled_length`` samples."""
    if sample_rate == SAMPLE_RATE:
        return wave
    expected = resampled_length(len(wave), sample_rate)
    out = np.asarray(soxr.resample(wave, sample_rate, SAMPLE_RATE), dtype=np.float32)
    # soxr agrees to the sample except for clips of a few samples.
    return np.pad(out, (0, max(0, expected - len(out))))[:expected]


def segment_samples(num_samples: int) -> list[int]:
    """Lengths of the windows of at most 30 s that cover a clip; they sum to ``num_samples``."""
    full, rest = divmod(num_samples, SEGMENT_SAMPLES)
    lengths = [SEGMENT_SAMPLES] * full + ([rest] if rest else [])
    if full and 0 < rest < MIN_SEGMENT_SAMPLES:
        lengths[-2:] = [SEGMENT_SAMPLES - MIN_SEGMENT_SAMPLES, rest + MIN_SEGMENT_SAMPLES]
    return lengths


def segments(wave: np.ndarray) -> list[np.ndarray]:
    """The clip in windows of at most 30 s, nothing lost and nothing shared."""
    ends = np.cumsum(segment_samples(len(wave)))
    return [part for part in np.split(wave, ends[:-1]) if len(part)]


def mel_frames(num_samples: int) -> int:
    """Real mel frames of a segment: every frame whose centre lies inside it, the last part of a hop included.

    That is how many ``WhisperFeatureExtractor`` marks in its attention mask (every 160th sample of the mask).
    """
    return -(-num_samples // HOP)


def frame_tokens(num_frames: int) -> int:
    """Audio tokens of ``L`` mel frames: a stride-2 convolution, then pooling by two."""
    return ((num_frames - 1) // 2 + 1 - 2) // 2 + 1


def audio_tokens(num_samples: int) -> int:
    """Audio tokens (40 ms each) of a clip of ``num_samples`` at 16 kHz, over all its segments."""
    if num_samples < MIN_CLIP_SAMPLES:
        raise BadAudio(f"{num_samples} samples at 16 kHz: at least {MIN_CLIP_SAMPLES} give one audio token")
    return sum(frame_tokens(mel_frames(length)) for length in segment_samples(num_samples))


def tail_frames(num_frames: int) -> int:
    """Extra mel frames after the real ones that the convolutions look at: two, within 30 s."""
    return min(2, SEGMENT_FRAMES - num_frames)


def _open(source: bytes | str | Path) -> soundfile.SoundFile:
    if isinstance(source, bytes):
        _refuse_cut_wav(io.BytesIO(source), len(source))
    else:
        with contextlib.suppress(OSError), Path(source).open("rb") as raw:
            _refuse_cut_wav(raw, Path(source).stat().st_size)
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise BadAudio(f"not a readable audio file: {error}") from error


def _refuse_cut_wav(raw: BinaryIO, size: int) -> None:
    """BadAudio for a WAV that ends before its audio does: libsndfile would take what is there for the whole."""
    start = raw.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return
    while len(head := raw.read(8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            left = size - raw.tell()
            # Programs that write into a pipe cannot know the length, and state the largest one.
            if length < _UNKNOWN_LENGTH and length - left > _WAV_SLACK:
                raise BadAudio(f"its header says {length} bytes of audio, {left} are there: damaged or cut")
            return
        raw.seek(length + length % 2, io.SEEK_CUR)


def _limit(file: soundfile.SoundFile, max_duration_s: float) -> int:
    """One sample more than may be read; BadAudio when the header already says more."""
    limit = int(max_duration_s * file.samplerate) + 1
    if not _estimated(file) and file.frames >= limit:
        raise BadAudio(_too_long(max_duration_s))
    return limit


def _estimated(file: soundfile.SoundFile) -> bool:
    """Whether the length is a guess: MP3 headers have none; every other allowed format states it exactly."""
    return bool(file.format == "MP3")


def _mono_blocks(file: soundfile.SoundFile, limit: int) -> Iterator[np.ndarray]:
    """The channels' mean, float32, a block at a time, at most ``limit`` samples in all."""
    while limit > 0 and len(block := _read(file, min(limit, _BLOCK_FRAMES // file.channels))):
        yield block if block.ndim == 1 else block.mean(axis=1)
        limit -= len(block)


def _read(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    try:
        return file.read(frames=frames, dtype="float32")
    except (soundfile.SoundFileError, ValueError, RuntimeError, MemoryError) as error:
        raise BadAudio(f"the decoder stopped: {error}") from error


def _check_decoded(file: soundfile.SoundFile, count: int, limit: int, max_duration_s: float) -> None:
    if count >= limit:
        raise BadAudio(_too_long(max_duration_s))
    if count == 0:
        raise BadAudio("it holds no samples")
    if not _estimated(file) and count != file.frames:
        raise BadAudio(f"it decodes to {count} samples, its header says {file.frames}: damaged or cut")


def _too_long(max_duration_s: float) -> str:
    return f"longer than max_duration_s={max_duration_s:g}; cut it, or raise the limit"


def _check_header(file: soundfile.SoundFile) -> None:
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise BadAudio(f"the header says {file.channels} channels; at most {MAX_CHANNELS} are accepted")
    if not 1000 <= file.samplerate <= MAX_SAMPLE_RATE:
        raise BadAudio(f"the header says {file.samplerate} Hz; expected 1000 to {MAX_SAMPLE_RATE}")
    # libsndfile reports 2**63 - 1 when the length is unknown.
    if not 0 < file.frames < 2**40:
        raise BadAudio(f"the header says {file.frames} samples: empty, or of unknown length")
