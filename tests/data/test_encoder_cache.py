"""The encoder cache survives a killed writer, and refuses what it cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qa_train.data.audio.encoder_cache import EncoderCache, cache_writer


def states(seed: int, tokens: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, *seeds: int) -> None:
    with cache_writer(folder, "key", 3) as writer:
        for seed in seeds:
            writer.write(f"clip{seed}", states(seed))


@pytest.mark.parametrize("cut", ["index", "states", "neither"])
def test_a_killed_writer_loses_at_most_its_last_clip(cut: str, tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    index, data = tmp_path / "key" / "0.jsonl", tmp_path / "key" / "0.f16"
    if cut == "index":
        index.write_bytes(index.read_bytes()[:-4])
    elif cut == "states":
        data.write_bytes(data.read_bytes()[:-4])
    else:
        data.write_bytes(data.read_bytes() + b"partial")
    before = EncoderCache.open(tmp_path, "key")
    assert len(before) == (3 if cut == "neither" else 2)
    write(tmp_path, 2, 3)
    cache = EncoderCache.open(tmp_path, "key")
    for seed in range(4):
        found = cache.get(f"clip{seed}")
        assert found is not None
        torch.testing.assert_close(found, states(seed), atol=1e-3, rtol=1e-3)
    assert data.stat().st_size == 4 * 5 * 3 * 2
    assert cache.get("other") is None
    # Another encoder has its own folder.
    assert len(EncoderCache.open(tmp_path, "key2")) == 0


def test_writers_at_the_same_time_fill_parts_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with cache_writer(tmp_path, "key", 3) as one, cache_writer(tmp_path, "key", 3) as other:
        one.write("clip1", states(1))
        other.write("clip2", states(2))
        # What is there already is not written again, by whichever writer.
        other.write("clip0", states(0))
    cache = EncoderCache.open(tmp_path, "key")
    assert sorted(path.name for path in cache.folder.iterdir()) == ["0.f16", "0.jsonl", "1.f16", "1.jsonl"]
    assert len(cache) == 3
    for seed in range(3):
        found = cache.get(f"clip{seed}")
        assert found is not None
        torch.testing.assert_close(found, states(seed), atol=1e-3, rtol=1e-3)


def test_one_width_and_finite_values(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with pytest.raises(ValueError, match="width 3, not 4"):
        cache_writer(tmp_path, "key", 4).__enter__()
    with cache_writer(tmp_path, "key", 3) as writer:
        with pytest.raises(ValueError, match="not finite in float16"):
            writer.write("big", torch.full((2, 3), 1e6))
        with pytest.raises(ValueError, match=r"expected \[T, 3\]"):
            writer.write("wide", torch.zeros(2, 4))
    assert len(EncoderCache.open(tmp_path, "key")) == 1
