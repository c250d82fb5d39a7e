"""FLAC by dr_flac: every sample and every error is that of libsndfile, which the plain twin uses alone."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from qa_train.data.audio import dr_flac
from qa_train.data.audio.waveform import BadAudio, read_clip, read_indexed

DEPTHS = ("PCM_S8", "PCM_16", "PCM_24")


def waves(rng: np.random.Generator, length: int, channels: int) -> Iterator[tuple[str, np.ndarray]]:
    """Sounds that FLAC keeps in different ways: constant, verbatim, predicted, with wasted bits, channels alike."""
    time = np.arange(length)[:, None] / 50
    noise = rng.normal(0, 0.3, (length, channels))
    yield "noise", noise
    yield "loud", np.sign(noise)
    yield "silence", np.zeros((length, channels))
    yield "constant", np.full((length, channels), 0.3)
    yield "tone", 0.9 * np.sin(time * np.arange(1, channels + 1))
    yield "alike", np.repeat(noise[:, :1], channels, 1) + 0.001 * noise
    yield "coarse", np.round(noise * 16) / 16
    yield "steps", np.where(time % 7 < 3, noise, 0.0)


def encoded(wave: np.ndarray, rate: int, depth: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.clip(wave, -1, 1), rate, format="FLAC", subtype=depth)
    return out.getvalue()


def result(raw: bytes, **options: float) -> bytes | str:
    try:
        return read_clip(raw, **options).tobytes()
    except BadAudio as error:
        return str(error)


def twin(raw: bytes, **options: float) -> bytes | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dr_flac, "stated", lambda raw: None)
        return result(raw, **options)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("channels", "rate"), [(1, 16_000), (1, 8_000), (2, 44_100), (3, 11_025), (6, 22_050), (8, 48_000)]
)
def test_samples_are_equal_bit_for_bit(depth: str, channels: int, rate: int) -> None:
    rng = np.random.default_rng(channels)
    taken = 0
    for length in (400, 4096, 4097, 21_000):
        for name, wave in waves(rng, length, channels):
            raw = encoded(wave, rate, depth)
            samples, expected = dr_flac.decode(raw), soundfile.read(io.BytesIO(raw), dtype="float32")[0]
            assert samples is not None, name
            assert samples.dtype == np.float32
            assert np.array_equal(samples, expected), name
            assert dr_flac.stated(raw) == (length, rate, channels)
            found = result(raw)
            assert found == twin(raw), name
            taken += isinstance(found, bytes)
    assert taken >= 24


def test_damaged_and_odd_files_end_as_with_libsndfile_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    errors = set()
    for depth, channels in (("PCM_16", 1), ("PCM_24", 2), ("PCM_S8", 1)):
        raw = encoded(rng.normal(0, 0.2, (30_000, channels)), 16_000, depth)
        assert isinstance(result(raw), bytes)
        for _ in range(12):
            cut = raw[: int(rng.integers(0, len(raw)))]
            at = int(rng.integers(0, len(raw)))
            flipped = raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(0, 8))]) + raw[at + 1 :]
            head = int(rng.integers(8, 42))
            header = raw[:head] + bytes([int(rng.integers(0, 256))]) + raw[head + 1 :]
            hole = raw[:at] + bytes(500) + raw[at + 500 :]
            gone = raw[:at] + raw[at + 300 :]
            for broken in (cut, flipped, header, hole, gone, raw + cut, b"ID3" + raw):
                found = result(broken)
                assert found == twin(broken)
                errors.add(found if isinstance(found, str) else "")
    assert len(errors) > 5


def test_a_clip_of_the_index_has_all_flacs_that_are_joined_in_it() -> None:
    raw = encoded(np.random.default_rng(0).normal(0, 0.2, (5000, 1)), 16_000, "PCM_16")
    for joined, length in ((raw, 5000), (raw + raw, 10_000)):
        assert read_indexed(joined, length).tobytes() == result(joined)
        for wrong in (length - 1, length + 1, 3 * length):
            with pytest.raises(BadAudio, match=rf"{length} samples at 16 kHz, the index has {wrong}"):
                read_indexed(joined, wrong)


def test_what_the_header_states_is_bounded_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(np.zeros((100_000, 1)), 16_000, "PCM_16")
    monkeypatch.setattr(dr_flac, "lib", None)
    word = int.from_bytes(raw[18:26], "big")
    for frames in (0, dr_flac.MAX_AT_ONCE + 1, 2**36 - 1):
        claims = raw[:18] + struct.pack(">Q", word >> 36 << 36 | frames) + raw[26:]
        assert dr_flac.decode(claims) is None
        assert result(claims) == twin(claims)
    for bits in (4, 12, 20, 32):
        assert dr_flac.stated(raw[:18] + struct.pack(">Q", word & ~(31 << 36) | bits - 1 << 36) + raw[26:]) is None
    assert "longer than max_duration_s=2" in str(result(raw, max_duration_s=2))
    assert dr_flac.stated(raw[:41]) is None
