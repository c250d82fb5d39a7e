"""Decoding, segments and log-mel against the reference feature extractor."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioEncoder, WhisperFeatureExtractor

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import BadAudio, audio_tokens, read_clip, resampled_length, segments
from tests.data.conftest import noise


def encoded(wave: np.ndarray, rate: int = 16_000, container: str = "FLAC", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("num_samples", [321, 480, 1601, 12_345, 159 + 160 * 700, 479_680, 479_700, 479_999, 480_000])
def test_log_mel_equals_the_padded_reference(num_samples: int, bins: int) -> None:
    # Loud first, silent last: the dynamic range depends on the whole clip.
    wave = noise(num_samples / 16_000) * np.linspace(1, 1e-4, num_samples, dtype=np.float32)
    ours = log_mel(wave, bins)
    extractor = WhisperFeatureExtractor(feature_size=bins)
    reference = torch.from_numpy(extractor(wave, sampling_rate=16_000, padding="max_length").input_features[0])
    frames = -(-num_samples // 160)
    assert ours.shape == (bins, frames + min(2, 3000 - frames))
    torch.testing.assert_close(ours, reference[:, : ours.shape[1]], atol=1e-5, rtol=0)


def test_silence_is_flat() -> None:
    assert log_mel(np.zeros(16_000, dtype=np.float32), 80).unique().tolist() == pytest.approx([-1.5])


@pytest.mark.parametrize("num_samples", [480, 479_999, 480_000, 480_001, 481_599, 481_600, 960_001, 1_234_567])
def test_segments_cover_the_clip_once(num_samples: int) -> None:
    wave = np.arange(num_samples, dtype=np.float32)
    parts = segments(wave)
    assert [len(part) for part in parts] == FRONT_END.segments(num_samples)
    assert np.array_equal(np.concatenate(parts), wave)
    assert all(1600 <= len(part) <= FRONT_END.segment for part in parts) or num_samples < 1600
    assert audio_tokens(num_samples) == sum(FRONT_END.tokens_of(log_mel(p, 80).shape[1] - _tail(p)) for p in parts)


def _tail(part: np.ndarray) -> int:
    return min(2, 3000 - -(-len(part) // 160))


@pytest.mark.parametrize("num_samples", [321, 480, 481, 640, 641, 1600, 1601, 12_345, 64_799, 479_999, 480_000])
def test_frames_are_those_that_the_reference_marks(num_samples: int) -> None:
    wave = np.zeros(num_samples, dtype=np.float32)
    marked = WhisperFeatureExtractor()(wave, sampling_rate=16_000, padding="max_length", return_attention_mask=True)
    assert FRONT_END.frames(num_samples) == marked.attention_mask.sum()


def test_token_counts_are_those_of_the_stock_encoder() -> None:
    shape = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 8}
    encoder = Qwen2AudioEncoder(Qwen2AudioConfig(audio_config=shape).audio_config)
    lengths = torch.arange(3, 3001)
    stock = encoder._get_feat_extract_output_lengths(lengths)[1]
    assert [FRONT_END.tokens_of(int(n)) for n in lengths] == stock.tolist()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000])
def test_resampled_length_is_that_of_soxr(rate: int) -> None:
    for samples in (101, 4_409, 12_345):
        wave = noise(1)[:samples]
        assert resampled_length(samples, rate) == len(soxr.resample(wave, rate, 16_000))
        assert len(read_clip(encoded(wave, rate))) == resampled_length(samples, rate)


@pytest.mark.parametrize("kind", [("FLAC", None), ("WAV", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_every_allowed_format_is_read(kind: tuple[str, str | None], tmp_path: Path) -> None:
    stereo = np.stack([noise(0.5), noise(0.5)], axis=1)
    raw = encoded(stereo, 16_000, *kind)
    wave = read_clip(raw)
    assert wave.dtype == np.float32
    assert wave.shape == (8_000,)
    assert wave.std() > 0.01
    (tmp_path / "clip").write_bytes(raw)
    assert np.array_equal(read_clip(tmp_path / "clip"), wave)


def test_bad_audio_says_why() -> None:
    nan = noise(0.1)
    nan[7] = np.nan
    flac = encoded(noise(1.0))
    cases = {
        "not a readable": b"RIFF but not really",
        "NaN": encoded(nan, container="WAV", subtype="FLOAT"),
        "empty": encoded(noise(0.0), container="WAV"),
        "longer than max_duration_s": encoded(noise(3.0)),
        "damaged or cut|decoder stopped": flac[: len(flac) // 2],
        "channels": encoded(np.zeros((400, 9), dtype=np.float32), container="WAV"),
    }
    for message, raw in cases.items():
        with pytest.raises(BadAudio, match=message):
            read_clip(raw, max_duration_s=2.0)


@pytest.mark.parametrize("stated", [2**36 - 1, 17_000])
def test_lying_flac_headers_are_bounded(stated: int) -> None:
    """STREAMINFO's 36-bit sample count is at byte 21 (low 4 bits) to 25 of the file."""
    raw = bytearray(encoded(noise(1.0)))
    raw[21] = (raw[21] & 0xF0) | (stated >> 32)
    raw[22:26] = struct.pack(">I", stated & 0xFFFFFFFF)
    with pytest.raises(BadAudio):
        read_clip(bytes(raw), max_duration_s=5.0)


def test_a_bomb_is_refused_without_decoding_it_all() -> None:
    hour = encoded(np.zeros(16_000 * 1800, dtype=np.float32))
    assert len(hour) < 500_000
    with pytest.raises(BadAudio, match="longer than max_duration_s=10"):
        read_clip(hour, max_duration_s=10)


def test_too_short_for_one_token() -> None:
    with pytest.raises(BadAudio, match="at least 321"):
        audio_tokens(320)
    with pytest.raises(BadAudio):
        log_mel(noise(0.01), 80)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_wav_that_was_cut_is_refused(tmp_path: Path, as_bytes: bool) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    whole = path.read_bytes()
    path.write_bytes(whole[:10_000])
    with pytest.raises(BadAudio, match="32000 bytes of audio, the file has 9956"):
        read_clip(path.read_bytes() if as_bytes else path)
    # Written into a pipe: the length was not known, and all that is there counts.
    at = whole.index(b"data") + 4
    path.write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
    assert len(read_clip(path.read_bytes() if as_bytes else path)) == 16_000
