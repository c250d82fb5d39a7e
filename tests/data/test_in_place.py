"""Sets that other libraries wrote (NeMo, Lhotse Shar, Energon, MosaicML, Hugging Face), left where they are."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest

from data_pipelines.corpora.formats import mosaic
from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing import import_shard
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from qa_train.config import CleanConfig, DataConfig, SourceConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import delivered
from qa_train.data.shards.catalog import open_shards, write_catalog
from qa_train.data.shards.index import build_index, load_index
from qa_train.data.tools.clean import clean
from qa_train.data.tools.stats import stats
from qa_train.data.tools.validate import validate
from qa_train.data.tools.view import describe_shard
from qa_train.utils.digests import sha256_of_file
from scripts.quickstart_data.clip import read_shard
from tests.data_pipelines.corpora.foreign_cases import SETS, tar_bytes
from tests.data_pipelines.corpora.made_up import audio_cell, tone

# Set -> its reader, its records, and how many of them have to be copied.
WHOLE = {
    "nemo": ("nemo", 3, 0),
    "nemo_parts": ("nemo", 4, 3),
    "nemo_chats": ("nemo", 3, 0),
    "shar": ("lhotse", 3, 0),
    "shar_original": ("lhotse", 3, 0),
    "energon": ("energon", 4, 0),
    "mosaic": ("mosaic", 5, 0),
    "mosaic_zstd": ("mosaic", 5, 5),
    "mosaic_gz": ("mosaic", 5, 5),
    "huggingface": ("huggingface", 4, 0),
    "huggingface_saved": ("huggingface", 4, 0),
}


def imported(name: str, path: Any, out: Path, audio: str = "in_place", **options: Any) -> Report:
    """One import, in this process; nothing bad is allowed."""
    known = {"path": str(path), "out": str(out), "split": "train", "workers": 0, "error_budget": 0.0, "audio": audio}
    (report,) = import_corpus(corpus_of(name), ImportConfig(**(known | options)))
    return report


def clips_of(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Key -> record and samples."""
    return {c.key: (c.record, c.wave.tobytes()) for tar in sorted(folder.glob("*.tar")) for c in read_shard(tar)}


def copy_of(name: str, folder: Path) -> Path:
    """A set that a test may change."""
    return Path(shutil.copytree(SETS / name, folder / name))


@pytest.mark.parametrize("name", WHOLE)
def test_a_set_is_read_where_it_is(name: str, tmp_path: Path) -> None:
    reader, records, copied = WHOLE[name]
    before = {path: sha256_of_file(path) for path in SETS.rglob("*") if path.is_file()}
    report = imported(reader, SETS / name, tmp_path / "out")
    assert report.made == records
    assert f"{records - copied} records are read where they are, {copied} were copied" in report.text()
    imported(reader, SETS / name, tmp_path / "kept", "keep")
    found, kept = clips_of(tmp_path / "out"), clips_of(tmp_path / "kept")
    assert len(found) == records
    assert found == kept
    links = [tar for tar in (tmp_path / "out").glob("*.tar") if tar.is_symlink()]
    assert sum(len(load_index(str(link))) for link in links) == records - copied
    assert all(SETS / name in link.resolve().parents for link in links)
    own = {path for path in (tmp_path / "out").glob("*.tar") if not path.is_symlink()}
    assert all(path.name.endswith("-copied.tar") for path in own) or not links
    assert {path: sha256_of_file(path) for path in SETS.rglob("*") if path.is_file()} == before


def opened(folder: Path, tokenizer: Any, task: str) -> Batches:
    source = SourceConfig(name="one", shards=[f"{folder}/*.tar"], task=task, weight=1)
    cfg = DataConfig(sources={"one": source}, tokens_per_batch=150, shuffle_window=3)
    return open_data(cfg, tokenizer, 80, seed=3, batches_per_step=4)


@pytest.mark.parametrize(
    ("name", "task", "per_shard", "workers"),
    [
        ("shar", "asr", 2, 1),
        ("energon", "sound_caption", 2, 0),
        ("huggingface", "asr", 4, 0),
        ("huggingface_saved", "asr", 4, 0),
    ],
)
def test_order_resume_and_batches_are_those_of_our_own_shards(
    name: str, task: str, per_shard: int, workers: int, tmp_path: Path, tokenizer: Any
) -> None:
    reader, *_ = WHOLE[name]
    imported(reader, SETS / name, tmp_path / "in_place")
    imported(reader, SETS / name, tmp_path / "own", "keep", samples_per_shard=per_shard)
    own, there = (opened(tmp_path / folder, tokenizer, task) for folder in ("own", "in_place"))
    whole = list(delivered(own, 0, 8, 1, 0))
    assert len({key for keys in whole for key in keys}) == WHOLE[name][1]
    assert list(delivered(there, 0, 8, 2, workers)) == whole
    # Resumed on another number of ranks.
    assert list(delivered(opened(tmp_path / "in_place", tokenizer, task), 4, 4, 4, 0)) == whole[4:]
    for k in range(4):
        ours, theirs = own.build(k), there.build(k)
        assert ours.keys() == theirs.keys()
        assert all((ours[part] == theirs[part]).all() for part in ours)
    assert not there.skipped


def test_again_makes_what_is_missing_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = copy_of("nemo", tmp_path), tmp_path / "out"
    plain, written = import_shard.write_index, []

    def write_index(index: Any) -> None:
        written.append(Path(index.path).name)
        if len(written) == 2:
            raise KeyboardInterrupt
        plain(index)

    monkeypatch.setattr(import_shard, "write_index", write_index)
    with pytest.raises(KeyboardInterrupt):
        imported("nemo", root, out)
    report = imported("nemo", root, out)
    imported("nemo", root, out)
    assert written == ["nemo-train-00000.tar", "nemo-train-00001.tar", "nemo-train-00001.tar"]
    # As after `data index`, which knows nothing of manifests, where the index was lost before.
    for side in out.glob("*.index.parquet"):
        side.unlink()
    build_index([out / "nemo-train-00000.tar"])
    assert imported("nemo", root, out) == report
    assert len(written) == 5
    (root / "audio_0.tar").write_bytes((root / "audio_0.tar").read_bytes())
    imported("nemo", root, out)
    assert written[5:] == ["nemo-train-00000.tar"]
    # Without links: what was one is replaced, and its file is not touched.
    before = sha256_of_file(root / "audio_0.tar")
    imported("nemo", root, out, "keep", samples_per_shard=2)
    assert not (out / "nemo-train-00000.tar").is_symlink()
    assert sha256_of_file(root / "audio_0.tar") == before


def test_parts_are_copied_next_to_the_link(tmp_path: Path) -> None:
    imported("nemo", SETS / "nemo_parts", tmp_path)
    assert {path.name for path in tmp_path.glob("*.tar")} == {"nemo-train-00000.tar", "nemo-train-00000-copied.tar"}
    # They would stay behind where a later import has no such shard.
    (tmp_path / "nemo-train-00001-copied.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 1 shards of an earlier import"):
        imported("nemo", SETS / "nemo_parts", tmp_path)


def test_the_tools_know_a_link(tmp_path: Path) -> None:
    root, out = copy_of("mosaic", tmp_path), tmp_path / "out"
    imported("mosaic", root, out)
    shards = sorted(map(str, out.glob("*.tar")))
    assert "indexed in place (mosaic)" in describe_shard(shards[0])
    assert "2 members .flac" in describe_shard(shards[0])
    assert validate(shards, print).faults == 0
    known = [load_index(path).fingerprint for path in shards]
    # What `data index` writes again is the same.
    assert [index.fingerprint for index in build_index(shards)] == known
    write_catalog(shards, tmp_path / "all.catalog.parquet")
    assert open_shards([tmp_path / "all.catalog.parquet"]).fingerprints == known
    assert stats(shards).records == 5
    clean(shards, CleanConfig(max_same_text=1, max_duration_s=0.1), apply=True)
    assert [load_index(path).origin for path in shards] == ["mosaic"] * 3
    assert [len(load_index(path)) for path in shards] == [0] * 3
    # And again from the set, where its recipe is gone.
    for recipe in out.glob("*.recipe"):
        recipe.unlink()
    assert imported("mosaic", root, out).made == 5
    place = load_index(shards[1]).table.to_pylist()[0]
    with (root / "train/shard.00001.mds").open("r+b") as file:
        file.seek(place["offsets"][0] + 60)
        file.write(b"\xff" * 9)
    faults: list[Any] = []
    validate(shards, faults.append)
    assert {fault.key for fault in faults} == {place["key"]}
    (root / "train/shard.00001.mds").write_bytes(b"short")
    faults.clear()
    validate(shards, faults.append)
    assert "has 5 bytes, its index was made for" in "".join(map(str, faults))


def test_the_index_also_fits_the_files_in_a_bucket(tmp_path: Path) -> None:
    imported("mosaic", SETS / "mosaic", tmp_path)
    bucket = fsspec.filesystem("memory")
    for number in range(3):
        place = f"/mds/shard.{number:05d}.mds"
        link = tmp_path / f"mosaic-train-{number:05d}.tar"
        bucket.pipe_file(place, link.read_bytes())
        bucket.pipe_file(f"{place}.index.parquet", Path(f"{link}.index.parquet").read_bytes())
    shards = [f"memory://mds/shard.{number:05d}.mds" for number in range(3)]
    assert open_shards(shards).rows.tolist() == [2, 2, 1]
    assert validate(shards, print).faults == 0


def test_tables_at_an_address_are_read_by_their_parts(tmp_path: Path) -> None:
    raw = (SETS / "huggingface/data/train-00000-of-00001.parquet").read_bytes()
    for number in range(2):
        fsspec.filesystem("memory").pipe_file(f"/hub/train-{number}.parquet", raw)
    report = imported("huggingface", "memory://hub/train-{0..1}.parquet", tmp_path / "out")
    assert "0 records are read where they are, 8 were copied" in report.text()
    texts = [record["text"] for record, _ in clips_of(tmp_path / "out").values()]
    assert texts == ["one bird", "two birds", "three small birds", "no bird at all"] * 2
    with pytest.raises(ValueError, match="split=test would be the same recordings"):
        imported("huggingface", "memory://hub/train-0.parquet", tmp_path / "test", split="test", purpose="eval")
    with pytest.raises(ValueError, match=r"expected \.parquet files"):
        imported("huggingface", "memory://hub/train-0.arrow", tmp_path / "none")
    with pytest.raises(ValueError, match=r"train-7\.parquet: not a readable"):
        imported("huggingface", "memory://hub/train-7.parquet", tmp_path / "none")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_table_is_searched_for_its_clips(compression: str, tmp_path: Path) -> None:
    # One clip twice, and two captions of one clip.
    names = ("a.wav", "b.wav", "a.wav", "c.flac")
    rows = [{"audio": audio_cell(name), "caption": ["one", f"two {i}"]} for i, name in enumerate(names)]
    table = pyarrow.Table.from_pylist(rows)
    (tmp_path / "in").mkdir()
    place = tmp_path / "in/train.parquet"
    pyarrow.parquet.write_table(table, place, row_group_size=2, compression=compression, use_dictionary=False)
    report = imported("huggingface", place, tmp_path / "out")
    assert f"{8 if compression == 'none' else 0} records are read where they are" in report.text()
    imported("huggingface", place, tmp_path / "kept", "keep")
    assert clips_of(tmp_path / "out") == clips_of(tmp_path / "kept")


def test_braces_of_both_kinds_and_one_manifest_for_all(tmp_path: Path) -> None:
    root = SETS / "nemo"
    imported("nemo", root, tmp_path / "a")
    wanted = sorted(clips_of(tmp_path / "a").values(), key=str)
    for number, path in enumerate(
        (
            [f"{root}/audio__OP_0..1_CL_.tar", f"{root}/sharded_manifests/manifest__OP_0..1_CL_.json"],
            [f"{root}/sharded_manifests/manifest_{{0..1}}.json", f"{root}/audio_{{0,1}}.tar"],
            [f"{root}/tarred_audio_manifest.json", f"{root}/audio_0.tar", f"{root}/audio_1.tar"],
            [str(root / "sharded_manifests"), f"{root}/audio_{{0..1}}.tar"],
        )
    ):
        options = ImportConfig(path=path, out=str(tmp_path / str(number)), audio="in_place", workers=0, error_budget=0)
        (report,) = import_corpus(corpus_of("nemo"), options)
        assert report.made == 3
        assert sorted(clips_of(tmp_path / str(number)).values(), key=str) == wanted


def edited(root: Path, name: str, old: str, new: str) -> None:
    """Change a text file of a set."""
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "told"),
    [
        ("nemo", "sharded_manifests/manifest_1.json", "clips_n2", "clips_n9", "has no member 'clips_n9.flac'"),
        ("nemo", "sharded_manifests/manifest_1.json", '"text": "three', '"text: "three', "not JSON"),
        ("nemo", "sharded_manifests/manifest_1.json", '"text": "three', '"text": 7, "x": "three', None),
        ("nemo", "sharded_manifests/manifest_1.json", '"text": "three small birds"', '"text": ["a"]', "must be text"),
        ("nemo_parts", "sharded_manifests/manifest_0.json", '"offset": 0.6', '"offset": 6.0', "does not lie within"),
        ("nemo_parts", "sharded_manifests/manifest_0.json", '"offset": 0.6', '"offset": "x"', "could not convert"),
        ("energon", ".nv-meta/split.yaml", "data_{0..1}.tar", "data_{0..9}.tar", "data_3.tar' is not there"),
        ("energon", ".nv-meta/split.yaml", "parts/data_{0..1}.tar", "../x.tar", "outside the folder: refused"),
        ("energon", ".nv-meta/split.yaml", "parts/data_{0..1}.tar", "/etc/passwd", "outside the folder: refused"),
        ("energon", ".nv-meta/split.yaml", "data_{0..1}.tar", "data_{0..999999999}.tar", "more than 100,000 names"),
        ("energon", ".nv-meta/split.yaml", "split_parts:", "split_parts: [", "not as Energon writes it"),
        ("energon", ".nv-meta/split.yaml", "train:", "training:", "has the splits training, val, not 'train'"),
        ("energon", ".nv-meta/.info.json", '"parts/data_0.tar": 2', '"parts/data_0.tar": 9', "2 samples, .nv-meta"),
        ("energon", ".nv-meta/.info.json", '"shard_counts": {', '"shard_counts": [{', "not as Energon writes it"),
        ("energon", ".nv-meta/dataset.yaml", "json[caption][en]", "json[caption]", "must be text, found dict"),
        ("mosaic", "train/index.json", "shard.00000.mds", "../shard.00000.mds", "outside the folder: refused"),
        ("mosaic", "train/index.json", "shard.00000.mds", "/etc/passwd", "outside the folder: refused"),
        ("mosaic", "train/index.json", "shard.00000.mds", "shard.00007.mds", "00007.mds is not there"),
        ("mosaic", "train/index.json", '"bytes": 8652', '"bytes": 8653', "has 8652 bytes, index.json states 8653"),
        ("mosaic", "train/index.json", '"samples": 2', '"samples": 3', "no MDS shard of 3 samples"),
        ("mosaic", "train/index.json", '"samples": 2', '"samples": 99999999999', "no MDS shard of 99999999999"),
        ("mosaic", "train/index.json", '"samples": 2', '"samples": -1', "its format, version, sizes or counts"),
        ("mosaic", "train/index.json", '"version": 2, "zip', '"version": 3, "zip', "not an index of MDS version 2"),
        ("mosaic", "train/index.json", "null, null, null, 4, 8, null", "null, null, null, 4, 9, null", "not that of"),
        ("mosaic", "train/index.json", '"bytes", "json"', '"str", "json"', "no column of bytes with the files"),
        ("mosaic", "train/index.json", '{"shards"', '{"shard"', "not an index of MDS version 2"),
        ("mosaic", "train/index.json", '"any", "audio"', '"any"', "zip() argument"),
        ("mosaic_zstd", "train/index.json", '"compression": "zstd"', '"compression": "snappy"', "by 'snappy'"),
        ("mosaic_zstd", "train/index.json", '"bytes": 8654', '"bytes": 9999', "unpacks to 8654 bytes, index"),
    ],
)  # fmt: skip
def test_what_lies_is_named(name: str, file: str, old: str, new: str, told: str | None, tmp_path: Path) -> None:
    root = copy_of(name, tmp_path)
    edited(root, file, old, new)
    if told is None:
        assert imported(WHOLE[name][0], root, tmp_path / "out").made == WHOLE[name][1]
        return
    with pytest.raises(ValueError, match=r".") as caught:
        imported(WHOLE[name][0], root, tmp_path / "out")
    assert told in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_one_that_lies_is_counted_and_the_others_are_used(tmp_path: Path) -> None:
    root = copy_of("nemo", tmp_path)
    edited(root, "sharded_manifests/manifest_1.json", "clips_n2", "clips_n9")
    report = imported("nemo", root, tmp_path / "out", error_budget=0.5)
    assert (report.made, report.bad, report.dropped) == (2, 1, {"marked _skipme": 1, "missing audio": 1})


def damaged(root: Path, name: str, at: int, raw: bytes) -> None:
    with (root / name).open("r+b") as file:
        file.seek(at)
        file.write(raw)


@pytest.mark.parametrize(
    ("name", "file", "at", "raw", "told"),
    [
        ("mosaic", "train/shard.00000.mds", 0, b"\x09", "damaged, or no MDS shard of 2 samples"),
        ("mosaic", "train/shard.00000.mds", 4, b"\0\0\0\0", "damaged, or no MDS shard"),
        ("mosaic", "train/shard.00000.mds", 8, b"\xff\xff\xff\xff", "damaged, or no MDS shard"),
        ("mosaic_zstd", "train/shard.00000.mds.zstd", 0, b"\xff" * 40, "cannot be unpacked"),
        ("mosaic_gz", "train/shard.00000.mds.gz", 40, b"\xff" * 40, "cannot be unpacked"),
        ("nemo", "audio_1.tar", 0, b"\xff" * 600, "before its first member"),
        ("energon", "parts/data_1.tar", 0, b"\xff" * 600, "before its first member"),
        ("shar", "recording.000001.tar", 0, b"\xff" * 600, "before its first member"),
    ],
)
def test_damage_is_named(name: str, file: str, at: int, raw: bytes, told: str, tmp_path: Path) -> None:
    root = copy_of(name, tmp_path)
    damaged(root, file, at, raw)
    with pytest.raises(ValueError, match=told):
        imported(WHOLE[name][0], root, tmp_path / "out")


def test_noise_in_a_clip_is_one_bad_record(tmp_path: Path) -> None:
    root = copy_of("mosaic", tmp_path)
    at = (root / "train/shard.00001.mds").read_bytes().index(tone("m2.flac"))
    damaged(root, "train/shard.00001.mds", at, bytes(len(tone("m2.flac"))))
    with pytest.raises(ValueError, match="recordings cannot be used"):
        imported("mosaic", root, tmp_path / "none")
    report = imported("mosaic", root, tmp_path / "out", error_budget=0.5)
    assert (report.made, report.dropped) == (4, {"bad audio": 1})


def test_bombs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines.corpora import recordings
    from data_pipelines.corpora.formats import mosaic

    root = copy_of("mosaic_zstd", tmp_path)
    raw = pyarrow.compress(bytes(3 << 20), "zstd", asbytes=True)
    place = root / "train/shard.00000.mds.zstd"
    edited(root, "train/index.json", f'"bytes": {place.stat().st_size}', f'"bytes": {len(raw)}')
    place.write_bytes(raw)
    for limit, told in ((2 << 20, "unpacks to more than 2097152 bytes"), (1 << 12, "unpacks to 8654 bytes; at most")):
        monkeypatch.setattr(recordings, "MAX_UNPACKED_BYTES", limit)
        monkeypatch.setattr(mosaic, "MAX_UNPACKED_BYTES", limit)
        with pytest.raises(ValueError, match=told):
            imported("mosaic", root, tmp_path / "out")


def test_code_of_a_set_is_never_run(tmp_path: Path) -> None:
    root = copy_of("energon", tmp_path)
    (root / ".nv-meta/sample_loader.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    text = "sample_loader: sample_loader.py:sample_loader\npart_filter: sample_loader.py:part_filter\n"
    (root / ".nv-meta/dataset.yaml").write_text("__module__: os\n__class__: abort\n" + text)
    report = imported("energon", root, tmp_path / "out", columns={"caption": "caption.en"})
    assert "sample_loader and part_filter of dataset.yaml are code and are not run" in report.text()
    assert [record["text"] for record, _ in clips_of(tmp_path / "out").values()] == [f"text {i}" for i in range(4)]
    assert not (tmp_path / "ran").exists()
    (root / ".nv-meta/dataset.yaml").write_text("!!python/object/apply:os.system ['touch ran']")
    with pytest.raises(ValueError, match="not as Energon writes it"):
        imported("energon", root, tmp_path / "none")


def test_crude_sets_splits_and_excluded_samples(tmp_path: Path) -> None:
    root = copy_of("energon", tmp_path)
    (root / ".nv-meta/crude.yaml").replace(root / ".nv-meta/dataset.yaml")
    edited(root, ".nv-meta/split.yaml", "exclude: []", "exclude: [parts/data_0.tar, 'parts/data_1.tar/00{2..2}']")
    columns = {"label": "cls", "caption": "caption.en"}
    report = imported("energon", root, tmp_path / "out", columns=columns)
    assert report.dropped == {"excluded by split.yaml": 1}
    ((record, _),) = clips_of(tmp_path / "out").values()
    assert (record["label"], record["text"]) == ("3", "text 3")
    assert imported("energon", root, tmp_path / "val", split="val", purpose="eval", columns=columns).made == 2


def test_field_maps_of_energon_reach_into_lists(tmp_path: Path) -> None:
    """As megatron-energon 7.4.1's field_access does: json[list][0][value]."""
    root = copy_of("energon", tmp_path)
    for tar in root.glob("parts/*.tar"):
        with tarfile.open(tar) as old:
            members = {member.name: old.extractfile(member).read() for member in old if member.isfile()}  # type: ignore[union-attr]
        for name in [name for name in members if name.endswith(".json")]:
            members[name] = json.dumps({"list": [{"value": f"said in {name}"}, {"value": "no"}]}).encode()
        tar.write_bytes(tar_bytes(members))
    edited(root, ".nv-meta/dataset.yaml", "json[caption][en]", "json[list][0][value]")
    imported("energon", root, tmp_path / "out")
    found = [record["caption"] for record, _ in clips_of(tmp_path / "out").values()]
    assert len(found) == 4
    assert all(text.startswith("said in ") for text in found)
    edited(root, ".nv-meta/dataset.yaml", "json[list][0][value]", "json[list][7][value]")
    edited(root, ".nv-meta/dataset.yaml", "label: cls", "label: none")
    report = imported("energon", root, tmp_path / "bare")
    assert "records without a text, label or any other field: 4, e.g. energon-train-" in report.text()


def test_sets_of_energon_are_told_apart(tmp_path: Path) -> None:
    roots = [Path(shutil.copytree(SETS / "energon", tmp_path / name)) for name in ("one", "two")]
    (report,) = import_corpus(
        corpus_of("energon"),
        ImportConfig(path=list(map(str, roots)), out=str(tmp_path / "out"), split="train", workers=0, error_budget=0.0),
    )
    assert report.made == 8
    assert {key.split("-")[2] for key in clips_of(tmp_path / "out")} == {"one", "two"}


def test_parts_of_mosaic_that_were_merged(tmp_path: Path) -> None:
    """The index of mosaicml-streaming 0.13's merge_index() names the folder of each part."""
    for part in ("0", "1"):
        shutil.copytree(SETS / "mosaic/train", tmp_path / "set" / part)
    shards = []
    for part in ("0", "1"):
        for shard in json.loads((tmp_path / "set" / part / "index.json").read_text())["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    (tmp_path / "set/index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    assert imported("mosaic", tmp_path / "set", tmp_path / "out", audio="keep").made == 10
    for place in ("../set/0/shard.00000.mds", "/etc/passwd", ""):
        shards[0]["raw_data"]["basename"] = place
        (tmp_path / "set/index.json").write_text(json.dumps({"version": 2, "shards": shards}))
        with pytest.raises(ValueError, match="outside the folder: refused"):
            imported("mosaic", tmp_path / "set", tmp_path / "none", audio="keep")


def test_numbers_of_mosaic_keep_their_digits() -> None:
    decode = mosaic._DECODERS
    assert decode["float32"](np.float32(0.1).tobytes()) == 0.1
    assert decode["float16"](np.float16(0.1).tobytes()) == 0.1
    assert decode["float64"](np.float64(0.1).tobytes()) == 0.1
    assert decode["uint64"](np.uint64(2**63 + 1).tobytes()) == 2**63 + 1
    assert decode["str_decimal"](b"12345678901234567890.12") == "12345678901234567890.12"


def test_json_that_is_no_text_and_pickles_are_not_loaded(tmp_path: Path) -> None:
    report = imported("mosaic", SETS / "mosaic", tmp_path / "out")
    assert "columns that were not used: any (5), facts (5), score (5)" in report.text()
    with pytest.raises(ValueError, match="no column any with the files of clips"):
        imported("mosaic", SETS / "mosaic", tmp_path / "none", columns={"audio": "any"})


def test_the_index_of_a_link_is_judged_as_any_other(tmp_path: Path) -> None:
    imported("mosaic", SETS / "mosaic", tmp_path)
    side = tmp_path / "mosaic-train-00000.tar.index.parquet"
    table = pyarrow.parquet.read_table(side)
    rows = table.to_pylist()
    rows[0]["offsets"][0] = 1 << 40
    for changed, footer, told in (
        (rows, {}, "ends beyond the shard"),
        (table.to_pylist(), {b"origin": b"../x"}, "of the layout '../x'"),
    ):
        made = pyarrow.Table.from_pylist(changed, schema=table.schema.remove_metadata())
        made = made.replace_schema_metadata({**table.schema.metadata, **footer})
        pyarrow.parquet.write_table(made, side)
        with pytest.raises(ValueError, match=told):
            load_index(str(tmp_path / "mosaic-train-00000.tar"))


def test_lengths_of_the_clips(tmp_path: Path) -> None:
    imported("nemo", SETS / "nemo_parts", tmp_path)
    texts = {record["text"]: len(np.frombuffer(raw, np.float32)) for record, raw in clips_of(tmp_path).values()}
    assert texts == {"whole": 6400, "first part": 4800, "second part": 4800, "third part": 4800}
    assert json.loads((tmp_path / "nemo-train.report.json").read_text())["made"] == 4
