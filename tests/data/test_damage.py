"""The twelve kinds of damage, each through the whole path: found and located, left out within the budget, and refused
beyond it. (tests/data/hostile.py changes a good shard in hundreds of other places.)"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import open_data
from qa_train.data.shards.index import build_index, load_index
from qa_train.data.shards.tar import DamagedShard
from qa_train.data.tools.clean import CleanConfig, clean
from qa_train.data.tools.validate import Fault, validate
from tests.data.conftest import noise
from tests.data.hostile import encoded

KEY = "rec3"
Members = dict[str, bytes]
Infos = dict[str, tarfile.TarInfo]


def members(count: int = 10, seed: int = 0) -> Members:
    """Ten records of half a second."""
    out: Members = {}
    for i in range(count):
        out[f"rec{i}.flac"] = encoded("FLAC", wave=noise(0.5, seed + i))
        out[f"rec{i}.json"] = json.dumps({"text": f"number {seed + i}"}).encode()
    return out


def tar_bytes(files: Members) -> tuple[bytes, Infos]:
    """An uncompressed tar, and where its members lie."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        return buffer.getvalue(), {info.name: info for info in tar.getmembers()}


def data(paths: list[Path], tokenizer: Any, budget: float) -> Any:
    """The shards as training opens them."""
    source = SourceConfig(name="all", shards=list(map(str, paths)), task="asr")
    cfg = DataConfig(sources={"all": source}, tokens_per_batch=300, shuffle_window=10, error_budget=budget)
    return open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1)


def read_window(batches: Any) -> int:
    """Clips of the first window's batches that could be read."""
    numbers = range(len(batches.plan.window(0).batches))
    return sum(len(batches.build(k).get("feature_lengths", [])) for k in numbers)


# --- Damage of the tar itself -------------------------------------------------------------------------------


def cut(raw: bytes, at: int) -> bytes:
    return raw[:at]


def overwrite(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


TARS: dict[str, Callable[[bytes, Infos], tuple[bytes, int]]] = {
    "1 cut at a member boundary": lambda raw, at: (cut(raw, at["rec3.flac"].offset), at["rec3.flac"].offset),
    "2 cut in a header": lambda raw, at: (cut(raw, at["rec3.flac"].offset + 200), at["rec3.flac"].offset),
    "3 cut in a payload": lambda raw, at: (cut(raw, at["rec3.flac"].offset_data + 900), at["rec3.flac"].offset),
    "5 overwritten header": lambda raw, at: (
        overwrite(raw, at["rec3.flac"].offset, bytes(range(256)) * 2), at["rec3.flac"].offset
    ),
    "6 zero blocks in mid-file": lambda raw, at: (
        overwrite(raw, at["rec3.flac"].offset, bytes(1024)), at["rec3.flac"].offset
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARS)
def test_a_damaged_tar(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    raw, infos = tar_bytes(members())
    path.write_bytes(raw)
    build_index([path])
    changed, offset = TARS[kind](raw, infos)
    path.write_bytes(changed)
    # Against its index: the tar's damage, and what is no longer there. Training refuses a shard of another size, or
    # leaves out what it cannot read.
    faults: list[Fault] = []
    validate([str(path)], faults.append)
    damage = next(fault for fault in faults if fault.reason == "damaged shard")
    assert (damage.shard, damage.offset) == (str(path), offset)
    assert "rec2.json" in damage.detail
    if len(changed) != len(raw):
        with pytest.raises(ValueError, match=r"a\.tar"):
            data([path], tokenizer, budget=0.5)
    else:
        assert read_window(data([path], tokenizer, budget=0.5)) >= 9
    # Without one: refused, unless what precedes the damage is asked for; the damage counts against the budget.
    Path(f"{path}.index.parquet").unlink()
    with pytest.raises(DamagedShard, match=r"a\.tar.*at byte .*rec2\.json"):
        build_index([path])
    build_index([path], keep_damaged=True)
    assert read_window(data([path], tokenizer, budget=0.5)) == 10
    with pytest.raises(ValueError, match=rf"a\.tar, key '', byte {offset}.*rec2"):
        data([path], tokenizer, budget=0.0)


# --- Records that are damaged when they are indexed ---------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """What becomes of a record's members, and the reason that is given."""

    reason: str
    flac: bytes | None = b""
    json: bytes | None = b""


def short_flac() -> bytes:
    whole = encoded("FLAC", wave=noise(0.5))
    return whole[: len(whole) * 2 // 3]


RECORDS = {
    "4 audio without JSON": Bad("missing sibling", json=None),
    "4 JSON without audio": Bad("missing sibling", flac=None),
    "8 FLAC shorter than its header says": Bad("bad audio", flac=short_flac()),
    "8 WAV shorter than its header says": Bad("bad audio", flac=encoded("WAV", "PCM_16", noise(0.5))[:9000]),
    "9 NaN": Bad("bad audio", flac=encoded("WAV", "FLOAT", np.full(8000, np.nan, np.float32))),
    "9 no samples": Bad("bad audio", flac=encoded("WAV", "PCM_16", noise(0))),
    "10 invalid JSON": Bad("bad record", json=b'{"text": "number'),
    "10 wrong schema": Bad("bad record", json=b'["number 3"]'),
    "10 transcript of a wrong type": Bad("bad record", json=b'{"text": 3}'),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_damaged_record(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    bad, files = RECORDS[kind], members()
    for name, raw in (("flac", bad.flac), ("json", bad.json)):
        if raw is None:
            del files[f"{KEY}.{name}"]
        elif raw:
            files[f"{KEY}.{name}"] = raw
    path = tmp_path / "a.tar"
    raw, infos = tar_bytes(files)
    path.write_bytes(raw)
    first = infos[f"{KEY}.flac" if bad.flac is not None else f"{KEY}.json"]
    (index,) = build_index([path], decode=True)
    (problem,) = index.problems
    assert (problem.key, problem.offset, problem.reason) == (KEY, first.offset_data, bad.reason)
    faults: list[Fault] = []
    validate([str(path)], faults.append)
    assert [(f.shard, f.key, f.offset) for f in faults] == [(str(path), KEY, first.offset_data)]
    batches = data([path], tokenizer, budget=0.5)
    assert batches.table()[0]["problems"] == {bad.reason: 1}
    assert read_window(batches) == 10
    with pytest.raises(ValueError, match=rf"a\.tar, key '{KEY}', byte {first.offset_data}"):
        data([path], tokenizer, budget=0.0)


def test_silence_and_clipping_are_filtered_by_name(tmp_path: Path) -> None:
    files = members()
    files[f"{KEY}.flac"] = encoded("FLAC", wave=np.zeros(8000, np.float32))
    files["rec4.flac"] = encoded("FLAC", wave=np.sign(noise(0.5)))
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(files)[0])
    build_index([path])
    report = tmp_path / "drops.jsonl"
    clean([str(path)], CleanConfig(), apply=True, report=report)
    drops = {drop["key"]: drop["filter"] for drop in map(json.loads, report.read_text().splitlines())}
    assert drops[KEY] == "silence"
    assert drops["rec4"] == "clipping"
    assert not {KEY, "rec4"} & set(load_index(str(path)).table["key"].to_pylist())


# --- Damage after indexing ----------------------------------------------------------------------------------


def test_a_changed_bit_is_found_by_its_checksum(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    raw, infos = tar_bytes(members())
    place = infos[f"{KEY}.flac"].offset_data
    path.write_bytes(raw)
    build_index([path])
    path.write_bytes(overwrite(raw, place + 3000, bytes([raw[place + 3000] ^ 1])))
    faults: list[Fault] = []
    validate([str(path)], faults.append, decode=False)
    assert [(f.key, f.offset, f.reason) for f in faults] == [(KEY, place, "checksum")]
    batches = data([path], tokenizer, budget=0.5)
    assert read_window(batches) == 9
    assert batches.skipped == Counter({"changed shard": 1})
    with pytest.raises(ValueError, match=rf"{KEY} of .*a\.tar \(changed shard\): {KEY}\.flac.* at {place}"):
        read_window(data([path], tokenizer, budget=0.0))


def test_a_key_in_two_shards(tokenizer: Any, tmp_path: Path) -> None:
    """Equal records are found and used once; equal keys alone are usual in other people's shards and are no fault."""
    paths = [tmp_path / f"{name}.tar" for name in "abc"]
    raw, infos = tar_bytes(members())
    same_keys, _ = tar_bytes(members(seed=50))
    # The second repeats the first and has one member more: a copy of a whole shard is found without its rows.
    longer, _ = tar_bytes({**members(), "rec9.txt": b"x"})
    for path, content in zip(paths, (raw, longer, same_keys), strict=True):
        path.write_bytes(content)
    build_index(paths[::2])
    faults: list[Fault] = []
    validate(list(map(str, paths[::2])), faults.append)
    assert faults == []
    build_index([paths[1]])
    validate(list(map(str, paths[:2])), faults.append)
    repeated = [fault for fault in faults if fault.reason == "duplicate record"]
    assert [(f.shard, f.key, f.offset) for f in repeated] == [
        (str(paths[1]), f"rec{i}", infos[f"rec{i}.flac"].offset_data) for i in range(10)
    ]
    row = data(paths, tokenizer, budget=0.5).table()[0]
    assert (row["samples"], row["left_out"]) == (20, {"duplicate record": 10})


def test_another_shard_of_equal_size(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    files = members()
    raw, infos = tar_bytes(files)
    path.write_bytes(raw)
    build_index([path])
    # The same names, sizes and places, and other sound: nothing but the checksums can tell.
    other = {name: bytes(len(content)) if name.endswith("flac") else content for name, content in files.items()}
    path.write_bytes(tar_bytes(other)[0])
    assert path.stat().st_size == len(raw)
    faults: list[Fault] = []
    validate([str(path)], faults.append)
    assert {(f.key, f.offset) for f in faults} == {(f"rec{i}", infos[f"rec{i}.flac"].offset_data) for i in range(10)}
    batches = data([path], tokenizer, budget=0.5)
    assert read_window(batches) == 0
    assert batches.skipped == Counter({"changed shard": 10})
    with pytest.raises(ValueError, match=r"more than data.error_budget=0.005 allows; the last: rec\d of .*a\.tar"):
        read_window(data([path], tokenizer, budget=0.005))
