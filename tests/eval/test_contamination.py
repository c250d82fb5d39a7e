"""Items that are in the training shards are found by their bytes, by their sound and by their words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_model import tone

from qa_train.data.shards.tar import members
from qa_train.data.shards.writer import ShardWriter
from qa_train.eval.contamination import LIKELY, SAME, contamination, correlation, sketch


def test_clips_and_words_are_found(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.tar"
    with ShardWriter(shard) as writer:
        writer.write("a", {"text": "The quick, brown fox JUMPS!"}, tone(0.5))
        writer.write("b", {"text": "yes", "translation": {"zh": "今天天气很好"}}, tone(0.7))
    with shard.open("rb") as file:
        found_members = list(members(file, str(shard), shard.stat().st_size))
        clip = next(m for m in found_members if m.key == "b" and m.extension != "json")
        file.seek(clip.offset)
        (tmp_path / "b.flac").write_bytes(file.read(clip.size))
    rows = [
        {"id": "1", "audio": "", "gt": "the quick brown fox jumps", "language": "en"},
        {"id": "2", "audio": "b.flac", "gt": "something else that is long", "language": "en"},
        {"id": "3", "audio": "none.wav", "gt": ["今天，天气很好。"], "language": "zh"},
        {"id": "4", "audio": "", "gt": "yes", "language": "en"},
        {"id": "5", "audio": "", "gt": "the quick brown fox sleeps", "language": "en"},
    ]
    found = contamination(rows, [str(shard)], tmp_path)
    assert (found["n"], found["same_clip"], found["same_words"]) == (5, 1, 2)
    assert (found["checked_clips"], found["checked_texts"]) == (1, 4)
    assert {example["id"] for example in found["examples"]} == {"1", "2", "3"}
    assert found["examples"][0]["where"].endswith("train-00000.tar:b")


def speechlike(seed: int, seconds: float, rate: int = 16_000) -> np.ndarray:
    """Syllables: bursts of coloured noise over a harmonic, at times of their own; the same for every rate."""
    draw = np.random.default_rng(seed)
    n = int(seconds * 48_000)
    time = np.arange(n, dtype=np.float32) / 48_000
    wave = np.zeros(n)
    for _ in range(int(4 * seconds)):
        centre, pitch, width = draw.uniform(0, seconds), draw.uniform(90, 250), draw.uniform(0.04, 0.12)
        burst = np.exp(-(((time - centre) / width) ** 2))
        wave += burst * sum(np.sin(2 * np.pi * pitch * k * time + draw.uniform(0, 6)) / k for k in (1, 2, 5))
    wave += 0.05 * draw.standard_normal(n)
    spectrum = np.fft.rfft(0.1 * wave)
    return np.fft.irfft(spectrum[: int(seconds * rate) // 2 + 1] * rate / 48_000, int(seconds * rate))


def test_recordings_in_another_encoding_are_found(tmp_path: Path) -> None:
    """As `data import` makes shards: 16 kHz FLAC of whatever the corpus is. Also Opus, other rates and levels."""
    shard = tmp_path / "train-00000.tar"
    with ShardWriter(shard) as writer:
        for i in range(8):
            wave = speechlike(i, 2.0)
            if i == 1:
                buffer = io.BytesIO()
                soundfile.write(buffer, wave, 16_000, format="OGG", subtype="OPUS")
                writer.write("opus", {"text": "x"}, buffer.getvalue(), extension="opus")
            else:
                writer.write(f"{i}", {"text": "x"}, (0.3 * wave).astype(np.float32))
    for name, seed, rate, gain in [("same", 0, 16_000, 1.0), ("opus", 1, 16_000, 1.0), ("rate", 2, 44_100, 2.5),
                                   ("turned", 3, 8_000, -1.0), ("other", 100, 16_000, 1.0)]:  # fmt: skip
        soundfile.write(tmp_path / f"{name}.wav", gain * speechlike(seed, 2.0, rate), rate)
    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000), 16_000)
    names = ["same", "opus", "rate", "turned", "other", "silence"]
    rows = [{"id": name, "audio": f"{name}.wav", "gt": "a", "language": "en"} for name in names]
    found = contamination(rows, [str(shard)], tmp_path)
    assert (found["same_clip"], found["same_sound"]) == (0, 4)
    assert {e["id"]: e["where"].rpartition(":")[2] for e in found["examples"]} == {
        "same": "0", "opus": "opus", "rate": "2", "turned": "3"
    }  # fmt: skip
    assert (found["checked_clips"], found["checked_sounds"], found["as_long"], found["compared"]) == (6, 5, 8, 8)


def test_unrelated_clips_stay_far_below_the_thresholds() -> None:
    waves = [speechlike(seed, 1.5) for seed in range(12)]
    sketches = np.stack([one for wave in waves if (one := sketch(wave)) is not None])
    alike = (sketches @ sketches.T)[~np.eye(12, dtype=bool)]
    assert alike.max() < LIKELY
    assert max(correlation(waves[i], waves[i + 1]) for i in range(11)) < SAME - 0.1


def test_clips_that_were_not_compared_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qa_train.eval.contamination.MAX_READ", 2)
    shard = tmp_path / "train-00000.tar"
    with ShardWriter(shard) as writer:
        for i in range(5):
            writer.write(f"{i}", {"text": "x"}, speechlike(i, 1.0).astype(np.float32))
    soundfile.write(tmp_path / "a.wav", speechlike(9, 1.0), 16_000)
    found = contamination([{"id": "a", "audio": "a.wav", "gt": "a"}], [str(shard)], tmp_path)
    assert (found["as_long"], found["compared"], found["same_sound"]) == (5, 2, 0)
