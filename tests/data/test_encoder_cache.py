"""The encoder cache survives a killed writer, refuses what it cannot hold, and knows by its manifests what it has."""

from __future__ import annotations

import errno
import io
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch

from qa_train.data.audio import encoder_cache
from qa_train.data.audio.encoder_cache import EncoderCache, share_of


def states(seed: int, tokens: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, *seeds: int) -> None:
    with EncoderCache(folder, "key", 3).writer("shard") as writer:
        for seed in seeds:
            writer.write(f"clip{seed}", states(seed))


def held(folder: Path, seeds: range = range(10)) -> list[int]:
    """Clips of the cache, all of which must have the states they were given, in float16."""
    cache = EncoderCache(folder, "key", 3)
    found = {seed: cache.get("shard", f"clip{seed}") for seed in seeds}
    for seed, value in found.items():
        assert value is None or torch.equal(value, states(seed).half())
    return [seed for seed, value in found.items() if value is not None]


@pytest.mark.parametrize("cut", ["index", "states", "neither"])
def test_a_killed_writer_loses_at_most_its_last_clip(cut: str, tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    shard = EncoderCache(tmp_path, "key", 3).folder_of("shard")
    index, data = shard / "0.jsonl", shard / "0.f16"
    if cut == "index":
        index.write_bytes(index.read_bytes()[:-4])
    elif cut == "states":
        data.write_bytes(data.read_bytes()[:-4])
    else:
        data.write_bytes(data.read_bytes() + b"partial")
    assert held(tmp_path) == ([0, 1, 2] if cut == "neither" else [0, 1])
    write(tmp_path, 2, 3)
    assert held(tmp_path) == [0, 1, 2, 3]
    assert data.stat().st_size == 4 * 5 * 3 * 2
    # Another encoder has its own folder, and so has another shard, whatever its digest is.
    assert EncoderCache(tmp_path, "key2", 3).get("shard", "clip0") is None
    for other in ("shard2", "../key", "", "/etc"):
        assert EncoderCache(tmp_path, "key", 3).get(other, "clip0") is None
        assert EncoderCache(tmp_path, "key", 3).folder_of(other).parent == tmp_path / "key"


def test_damaged_states_are_named_and_those_of_an_earlier_version_are_taken(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    shard = EncoderCache(tmp_path, "key", 3).folder_of("shard")
    raw = bytearray((shard / "0.f16").read_bytes())
    raw[7] ^= 1
    (shard / "0.f16").write_bytes(raw)
    cache = EncoderCache(tmp_path, "key", 3)
    with pytest.raises(ValueError, match=r"0\.f16: the states of clip0 do not match their checksum: delete .*"):
        cache.get("shard", "clip0")
    assert cache.get("shard", "clip1") is not None
    # Lines without a checksum.
    lines = [json.loads(line) for line in (shard / "0.jsonl").read_text().splitlines()]
    (shard / "0.jsonl").write_text("".join(json.dumps(line[:4]) + "\n" for line in lines))
    assert EncoderCache(tmp_path, "key", 3).get("shard", "clip0") is not None
    write(tmp_path, 2)
    assert held(tmp_path, range(1, 4)) == [1, 2]
    assert [len(json.loads(line)) for line in (shard / "0.jsonl").read_text().splitlines()] == [4, 4, 5]


def test_writers_at_the_same_time_fill_parts_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, 0)
    cache = EncoderCache(tmp_path, "key", 3)
    with cache.writer("shard") as one, cache.writer("shard") as other:
        one.write("clip1", states(1))
        other.write("clip2", states(2))
        # What is there already is not written again, by whichever writer.
        assert "clip0" in other
        other.write("clip0", states(0))
    names = sorted(path.name for path in cache.folder_of("shard").iterdir())
    assert names == ["0.f16", "0.jsonl", "1.f16", "1.jsonl"]
    assert held(tmp_path) == [0, 1, 2]
    assert cache.folder_of("shard").joinpath("1.f16").stat().st_size == 5 * 3 * 2


@pytest.mark.parametrize("line", ["\0" * 40, '["clip', '["clip", 1]', '["clip", -2, 2, 8]', "1"])
def test_a_damaged_index_is_named(line: str, tmp_path: Path) -> None:
    cache = EncoderCache(tmp_path, "encoder", 8)
    with cache.writer("shard") as writer:
        writer.write("first", torch.zeros(3, 8))
    index = cache.folder_of("shard") / "0.jsonl"
    index.write_text(index.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"0\.jsonl, entry 2 is damaged .*: delete its folder"):
        cache.get("shard", "first")


def test_storage_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(encoder_cache.fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"cannot be locked .No locks available.: put data.encoder_cache on storage"):
        write(tmp_path, 0)


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    with EncoderCache(tmp_path, "key", 3).writer("shard") as writer:
        kept, writer._states = writer._states, io.FileIO("/dev/full", "w")  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            writer.write("clip0", states(0))
        writer._states = kept
    assert held(tmp_path) == []


def test_one_width_and_finite_values(tmp_path: Path) -> None:
    write(tmp_path, 0)
    wrong = EncoderCache(tmp_path, "key", 4)
    for work in (lambda: wrong.get("shard", "clip0"), wrong.writer("shard").__enter__):
        with pytest.raises(ValueError, match=r"0.jsonl holds states of width 3, not 4: delete its folder"):
            work()
    with EncoderCache(tmp_path, "key", 3).writer("shard") as writer:
        with pytest.raises(ValueError, match="not finite in float16"):
            writer.write("big", torch.full((2, 3), 1e6))
        with pytest.raises(ValueError, match=r"expected \[T, 3\]"):
            writer.write("wide", torch.zeros(2, 4))
    assert held(tmp_path) == [0]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.0), (torch.bfloat16, 0.0), (torch.float32, 2**-11)])
def test_what_float16_costs(dtype: torch.dtype, error: float, tmp_path: Path) -> None:
    """Values of bfloat16 above 6.1e-5 come back as they were; those of float32 rounded to 11 bits."""
    given = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    given = given[given.abs().amin(1) > 2**-14]
    cache = EncoderCache(tmp_path, "key", 3)
    with cache.writer("shard") as writer:
        writer.write("clip", given)
    found = cache.get("shard", "clip")
    assert found is not None
    assert found.dtype == torch.float16
    assert float(((found.double() - given.double()) / given.double()).abs().max()) <= error
    assert float(found.float().sub(given.float()).abs().max()) == 0 or dtype == torch.float32


def test_a_choice_is_complete_with_the_last_of_its_shares(tmp_path: Path) -> None:
    cache = EncoderCache(tmp_path, "key", 3)
    assert cache.complete("shard") == set()
    write(tmp_path, 0)
    for share in (0, 2):
        cache.mark("shard", "some", share, 3, {})
    cache.mark("shard", "all", 0, 2, {})
    assert cache.complete("shard") == set(), "shares of different divisions do not add up"
    cache.mark("shard", "some", 1, 3, {"clip7": "cut"})
    assert cache.complete("shard") == {"some"}
    cache.mark("shard", "all", 0, 1, {})
    assert cache.complete("shard") == {"some", "all"}
    assert cache.complete("other") == set()
    assert held(tmp_path) == [0]
    marks = [path.read_text() for path in sorted(cache.folder_of("shard").glob("some.*"))]
    assert ["clip7" in mark for mark in marks] == [False, True, False]


def test_every_clip_is_in_one_share_and_shares_are_equal() -> None:
    ids = [f"key{i:05d}.flac/{i}/{i:08x}" for i in range(4000)]
    for of in (1, 2, 7):
        sizes = [len(list(same)) for _, same in itertools.groupby(sorted(share_of(each, of) for each in ids))]
        assert len(sizes) == of
        assert max(sizes) < 1.15 * min(sizes)


def test_readers_forget_shards_and_travel_to_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qa_train.data.audio.encoder_cache._REMEMBERED", 2)
    cache = EncoderCache(tmp_path, "key", 3)
    for shard in range(4):
        with cache.writer(str(shard)) as writer:
            writer.write("a", states(shard))
    for reader in (cache, pickle.loads(pickle.dumps(cache))):
        for shard in (0, 1, 2, 3, 0, 3):
            found = reader.get(str(shard), "a")
            assert found is not None
            assert torch.equal(found, states(shard).half())
            assert len(reader._shards) <= 2
