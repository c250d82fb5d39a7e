"""Masks, noise and volume: within their bounds, the same for the same key and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qa_train.config import AugmentConfig
from qa_train.data.audio.augment import MAX_SPAN, ClipAugment, add_noise, check_augment, mask_spans
from qa_train.data.batches import open_data
from tests.data.conftest import mixture


def test_masks_cover_about_the_share_in_short_spans() -> None:
    states = torch.ones(400, 3)
    zeros = torch.stack([(mask_spans(states, 0.1, (0, 0, f"clip{i}")) == 0).all(1) for i in range(200)])
    assert 0.07 < zeros.float().mean() < 0.11  # spans may overlap or pass the end
    assert states.min() == 1, "the cached states themselves must not change"
    runs = mask_spans(torch.ones(30, 1), 0.1, (0, 0, "a")).flatten().tolist()
    longest = max(len(part) for part in "".join("x" if v == 0 else " " for v in runs).split(" "))
    assert longest <= 3 * MAX_SPAN


def test_the_key_decides() -> None:
    states = torch.ones(300, 2)
    assert torch.equal(mask_spans(states, 0.2, (1, 2, "a")), mask_spans(states, 0.2, (1, 2, "a")))
    for other in ((0, 2, "a"), (1, 3, "a"), (1, 2, "b")):
        assert not torch.equal(mask_spans(states, 0.2, (1, 2, "a")), mask_spans(states, 0.2, other))
    assert mask_spans(states, 0.0, (0, 0, "a")) is states


def test_augmented_clips_keep_their_length_and_depend_on_their_key_alone() -> None:
    cfg = AugmentConfig(gain_db=6, noise_share=1, time_masks=2, freq_masks=1)
    wave, mel = np.sin(np.arange(16_000, dtype=np.float32) / 9), torch.randn(80, 120)

    def draw(*key: int | str) -> tuple[np.ndarray, torch.Tensor]:
        augment = ClipAugment(cfg, key)
        return augment.wave(wave), augment.mel(mel)

    first, again, other = draw(0, "asr", 1, "a", 0), draw(0, "asr", 1, "a", 0), draw(0, "asr", 2, "a", 0)
    assert np.array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
    assert first[0].dtype == np.float32
    assert first[0].shape == wave.shape
    assert first[1].shape == mel.shape


def test_masks_stay_within_their_bounds() -> None:
    cfg = AugmentConfig(time_masks=4, time_mask_frames=40, time_mask_share=0.2, freq_masks=1, freq_mask_bins=10)
    for i in range(100):
        mel = torch.randn(80, 50 + i)
        masked = ClipAugment(cfg, (i,)).mel(mel)
        same = masked == mel
        columns, rows = (~same).all(0), (~same).all(1)
        assert columns.sum() <= 0.2 * mel.shape[1]
        assert rows.sum() <= 10
        assert torch.equal(masked[~rows][:, ~columns], mel[~rows][:, ~columns])


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_asked_power(snr_db: float) -> None:
    wave = np.sin(np.arange(48_000, dtype=np.float32) / 9)
    noise = add_noise(wave, snr_db, np.random.default_rng(0)).astype(np.float64) - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.01)
    silence = np.zeros(100, dtype=np.float32)
    assert np.array_equal(add_noise(silence, snr_db, np.random.default_rng(0)), silence)


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (AugmentConfig(noise_snr_db=[20, 10]), "lowest and the highest"),
        (AugmentConfig(noise_share=2), "noise_share is 2"),
        (AugmentConfig(time_masks=-1), "time_masks is -1"),
    ],
)
def test_values_out_of_range_are_named(cfg: AugmentConfig, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_augment(cfg)


def test_a_run_of_batches_repeats_its_augmentation_and_off_changes_nothing(
    shards: dict[str, str], tokenizer: Any
) -> None:
    def mels(k: int, **options: Any) -> torch.Tensor:
        cfg = mixture(shards, augment=AugmentConfig(**options))
        return open_data(cfg, tokenizer, 80, seed=3, batches_per_step=4).build(k)["input_features"]

    on = {"gain_db": 3.0, "noise_share": 0.5, "time_masks": 1, "freq_masks": 1}
    plain = open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=4)
    assert torch.equal(mels(2), plain.build(2)["input_features"])
    # A batch does not depend on those built before it: resume and world size change nothing.
    assert torch.equal(mels(2, **on), mels(2, **on))
    assert mels(2, **on).shape == mels(2).shape
    assert not torch.equal(mels(2, **on), mels(2))
