"""What an import refuses, drops, resumes, and reports."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import soundfile

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.blocklist import Blocklist
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from qa_train.command_line.command_table import run as command
from qa_train.data.shards.index import load_index
from qa_train.data.stores.folders import companion, open_folder
from scripts.quickstart_data.clip import read_shard
from tests.data_pipelines.corpora.foreign_cases import cut
from tests.data_pipelines.corpora.made_up import SECONDS, Case, audio_cell, heard, table_bytes, tone, write_tree
from tests.data_pipelines.corpora.sound_cases import AUDIOSET, CLOTHO, GTZAN, MUSICCAPS
from tests.data_pipelines.corpora.speech_cases import FLEURS, LIBRISPEECH


def run(case: Case, folder: Path, **options: Any) -> Report:
    """Import a case into ``folder/out`` in this process, or as the options say."""
    root = folder / "in" / case.corpus
    if not root.exists():
        write_tree(root, case.files)
    known = {"path": str(root), "out": str(folder / "out"), "split": case.split, "purpose": case.purpose, "workers": 0}
    (report,) = import_corpus(corpus_of(case.corpus), ImportConfig(**(known | options)))
    return report


def keys(folder: Path) -> list[str]:
    """Keys of all shards in order."""
    shards = sorted((folder / "out").glob("*.tar"))
    return [key for shard in shards for key in load_index(str(shard)).table["key"].to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all shards."""
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("*.tar"))}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_are_read_in_place_and_give_the_same_shards(kind: str, tmp_path: Path) -> None:
    run(LIBRISPEECH, tmp_path / "folder")
    root = tmp_path / "folder" / "in" / "librispeech"
    archive = tmp_path / f"librispeech.{kind}"
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            tar.add(root, ".")
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(root.rglob("*")):
                packed.write(path, path.relative_to(root))
    run(LIBRISPEECH, tmp_path / "archive", path=str(archive))
    assert contents(tmp_path / "archive") == contents(tmp_path / "folder")


def test_compressed_tars_and_wrong_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(ValueError, match="unpack it first"):
        run(LIBRISPEECH, tmp_path, path=str(tmp_path / "x.tar.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no LibriSpeech transcripts .* expected train-clean-100/\*\.trans\.txt"):
        run(LIBRISPEECH, tmp_path, path=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        run(LIBRISPEECH, tmp_path, path=str(tmp_path / "nowhere"))


def test_names_that_leave_the_corpus_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(tone("secret.wav"))
    listed = "filename,fold,target,category,esc10,src_file,take\n../../../secret.wav,1,0,dog,True,1,A\n"
    root = write_tree(tmp_path / "in", {"meta/esc50.csv": listed})
    config = ImportConfig(path=str(root), out=str(tmp_path / "out"), split="train", workers=0)
    with pytest.raises(ValueError, match="is outside the corpus: refused"):
        list(import_corpus(corpus_of("esc50"), config))


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (LIBRISPEECH, {"split": "test-clean"}, "is evaluation material .*speech grounding.*purpose=eval"),
        (FLEURS, {"split": "train", "purpose": "train"}, "is an evaluation set .*zero-shot.*allow=.fleurs."),
        (MUSICCAPS, {"purpose": "train"}, "is an evaluation set .*AIR-Bench chat"),
        (LIBRISPEECH, {"purpose": "eval"}, "is for training"),
        (LIBRISPEECH, {"split": "train"}, "has no split 'train'; its splits are train-clean-100"),
        (LIBRISPEECH, {"split": None}, "say which split"),
        (LIBRISPEECH, {"audio": "mp2"}, "use flac, keep or in_place"),
    ],
)  # fmt: skip
def test_wrong_use_is_explained(case: Case, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(case, tmp_path, **options)
    assert not list(tmp_path.rglob("*.tar"))


def test_a_rule_can_be_lifted_by_name(tmp_path: Path) -> None:
    assert run(LIBRISPEECH, tmp_path, split="test-clean", allow=["librispeech"]).made == 1


def test_evaluation_clips_are_found_in_other_corpora(tmp_path: Path) -> None:
    """AudioCaps test clips are AudioSet clips: the list that the first import writes guards the second."""
    evaluation = Case(
        "audiocaps", "test",
        {"test.csv": "audiocap_id,youtube_id,start_time,caption\n1,--PJHxphWEs,30,A\n", "--PJHxphWEs.wav": SECONDS},
        {}, purpose="eval",
    )  # fmt: skip
    run(evaluation, tmp_path / "eval")
    block = tmp_path / "eval" / "out" / "audiocaps-test.blocklist.txt"
    assert "youtube:--PJHxphWEs" in block.read_text().splitlines()
    unguarded = run(AUDIOSET, tmp_path / "unguarded")
    assert unguarded.made == 2
    assert "not checked against audiocaps, musiccaps, avqa" in unguarded.text()
    for listed in (str(block), str(tmp_path / "eval" / "in" / "audiocaps" / "test.csv")):
        folder = tmp_path / Path(listed).suffix[1:]
        report = run(AUDIOSET, folder, block=[listed])
        assert report.dropped["blocklist"] == 1
        assert "youtube:--PJHxphWEs" in report.text()
        assert keys(folder) == ["audioset-balanced_train---ZhevVpy1s"]
        saved = json.loads((folder / "out" / "audioset-balanced_train.report.json").read_text())
        assert saved["dropped"] == {"blocklist": 1, "audio not obtained": 1}


def test_lists_of_other_kinds(tmp_path: Path) -> None:
    meta = tmp_path / "Foundation_meta.json"
    meta.write_text(json.dumps([{"path": "Distorted AM Radio noise.wav", "question": "?", "uniq_id": 1}]))
    segments = tmp_path / "eval_segments.csv"
    segments.write_text('# made\n# YTID, start_seconds, end_seconds, positive_labels\nabc, 0, 10, "/m/1"\n')
    names = tmp_path / "names.txt"
    names.write_text("# comment\nfreesound:1234\ncv_7.mp3\n")
    block = Blocklist.load(map(str, (meta, segments, names)))
    assert set(block.ids) == {"file:Distorted AM Radio noise", "youtube:abc", "freesound:1234", "file:cv_7"}
    assert block.ids["youtube:abc"] == "eval_segments.csv"
    with pytest.raises(ValueError, match="nothing to import") as error:
        run(CLOTHO, tmp_path, block=[str(names)])
    assert "skipped 5: blocklist" in str(error.value)
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no id to block"):
        Blocklist.load([str(tmp_path / "none.csv")])


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
@pytest.mark.parametrize("as_list", [True, False])
def test_lists_of_benchmarks_and_of_nemo_block_as_they_are(name: str, as_list: bool, tmp_path: Path) -> None:
    rows = [
        {"id": "3fe", "audio_id": "./test-mini-audios/3fe64f3d.wav", "dataset": "AudioSet"},
        {"id": "q", "audio_path": "./audio/qx8hrhBZJ98_00-01-32.wav", "choices": ["a"],
         "url": "https://www.youtube.com/watch?v=qx8hrhBZJ98&list=RD&start_radio=1"},
        {"id": "b", "audio_path": "/audio/two.wav", "url": "https://www.bilibili.com/video/BV1xx411c7mD"},
        {"audio_filepath": "/data/nemo/utt 7.flac", "text": "hi", "duration": 1.0},
        {"path": "air.wav"},
        {"messages": [], "audios": ["x/chat-1.wav", "x/chat-2.wav"]},
        {"audio": "s.wav", "url": "https://youtu.be/abcdefghijk?t=3"},
    ]  # fmt: skip
    text = json.dumps(rows, indent=2) if as_list else "\n".join(json.dumps(row) for row in rows)
    (tmp_path / name).write_text(text)
    assert set(Blocklist.load([str(tmp_path / name)]).ids) == {
        "file:3fe64f3d", "file:qx8hrhBZJ98_00-01-32", "youtube:qx8hrhBZJ98", "file:two", "file:utt 7", "file:air",
        "file:chat-1", "file:chat-2", "file:s", "youtube:abcdefghijk",
    }  # fmt: skip
    (tmp_path / name).write_text("{not json")
    with pytest.raises(ValueError, match=r"line 1: not JSON.*expected one JSON object on each line"):
        Blocklist.load([str(tmp_path / name)])


def broken(folder: Path) -> Case:
    """Six genres' recordings: one damaged, one missing its samples, four good."""
    good = {f"genres/rock/rock.0000{i}.wav": SECONDS for i in range(4)}
    bad = {"genres/pop/pop.00000.wav": b"RIFF no sound", "genres/zouk/zouk.00000.wav": tone("x.wav")[:44]}
    return Case("gtzan", "train", {**good, **bad}, {})


def test_bad_recordings_are_counted_named_and_bounded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recordings cannot be used, allowed are 1.*(pop|zouk).*error_budget=0.01"):
        run(broken(tmp_path), tmp_path / "strict")
    report = run(broken(tmp_path), tmp_path, error_budget=0.4)
    assert (report.listed, report.made, report.dropped) == (6, 4, {"bad audio": 2})
    assert "pop_00000" in report.text()
    again = run(broken(tmp_path), tmp_path, error_budget=0.4)
    assert again == report


def test_the_budget_counts_over_all_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 6 recordings cannot be used, error_budget=0\.2 allows 1"):
        run(broken(tmp_path), tmp_path, error_budget=0.2, samples_per_shard=3)


def test_a_shard_of_bad_recordings_only_is_no_shard(tmp_path: Path) -> None:
    report = run(broken(tmp_path), tmp_path, error_budget=0.4, samples_per_shard=1)
    assert (report.made, report.shards, report.dropped) == (4, 4, {"bad audio": 2})
    assert run(broken(tmp_path), tmp_path, error_budget=0.4, samples_per_shard=1) == report
    with pytest.raises(ValueError, match="none of 4 recordings"):
        run(broken(tmp_path), tmp_path / "none", error_budget=1.0, max_duration_s=0.1, max_samples=4)


def test_bad_recordings_can_be_tried_again(tmp_path: Path) -> None:
    run(broken(tmp_path), tmp_path, error_budget=0.4)
    (tmp_path / "in" / "gtzan" / "genres" / "pop" / "pop.00000.wav").write_bytes(tone("pop.00000.wav"))
    assert run(broken(tmp_path), tmp_path, error_budget=0.4).made == 4
    assert run(broken(tmp_path), tmp_path, error_budget=0.4, retry_bad=True).made == 5


def test_missing_and_long_recordings(tmp_path: Path) -> None:
    files = {
        "wav.scp": "a a.wav\nb gone.wav\nc long.wav\nd video.wav\n", "text": "a one\nb two\nc three\nd four\n",
        "a.wav": SECONDS, "long.wav": 3.0, "video.mp4": b"\0\0\0\x18ftypmp42",
    }  # fmt: skip
    report = run(Case("kaldi", "train", files, {}), tmp_path, error_budget=0.5, max_duration_s=2.0)
    # A long recording is filtered, it is no damage: two of four are bad, and that is within the budget.
    assert report.dropped == {"missing audio": 2, "longer than max_duration_s": 1}
    assert any("ffmpeg -i video.mp4 -ac 1 -ar 16000 video.wav" in text for text in report.examples["missing audio"])


@pytest.mark.parametrize(
    ("corpus", "files", "message"),
    [
        ("kaldi", {"wav.scp": "a sox in.wav -t wav - |\n", "text": "a x\n"}, "commands in data are never run"),
        ("kaldi", {"wav.scp": "a raw.ark:15\n", "text": "a x\n"}, "Kaldi archive"),
        ("lhotse", {"cuts.jsonl": json.dumps({
            "id": "c", "type": "MonoCut", "start": 0, "duration": 1, "channel": 0, "supervisions": [],
            "recording": {"sources": [{"type": "command", "channels": [0], "source": "touch owned"}], "duration": 1},
        })}, "commands in data are never run"),
        ("table", {"metadata.csv": "file_name,who\na.wav,x\n"}, "columns.text=who"),
        ("table", {"metadata.csv": "file_name,text\na.wav,x,y\n"}, "more cells than the header"),
        ("jsonl", {"a.jsonl": "[" * 100_000}, "nested too deeply"),
    ],
)  # fmt: skip
def test_foreign_lists_cannot_run_programs_or_hide_errors(
    corpus: str, files: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(Case(corpus, "train", files, {}), tmp_path)
    assert not (tmp_path / "owned").exists()


def test_processes_make_the_same_shards_and_resume(tmp_path: Path) -> None:
    run(GTZAN, tmp_path / "one", samples_per_shard=1)
    run(GTZAN, tmp_path / "two", samples_per_shard=1, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    first, second = sorted((tmp_path / "two" / "out").glob("*.tar"))
    untouched = first.stat().st_mtime_ns
    second.unlink()  # as if the job had been killed
    run(GTZAN, tmp_path / "two", samples_per_shard=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert first.stat().st_mtime_ns == untouched
    with pytest.raises(ValueError, match="shards of an earlier import"):
        run(GTZAN, tmp_path / "two", samples_per_shard=1, max_samples=1)


@pytest.mark.slow
def test_processes_end_with_a_killed_import_and_the_next_one_makes_the_same(tmp_path: Path) -> None:
    """SIGKILL in the middle of two shards: nobody goes on writing into the files of the next import."""
    names = [f"u{i:04d}" for i in range(1000)]
    files = {
        "a.wav": tone("a.wav", 8.0),
        "wav.scp": "".join(f"{name} a.wav\n" for name in names),
        "text": "".join(f"{name} hello {name}\n" for name in names),
    }
    root, out = write_tree(tmp_path / "in" / "kaldi", files), tmp_path / "out"
    words = ["data", "import", "kaldi", f"path={root}", f"out={out}", "samples_per_shard=500", "workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qa_train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while (
        len(parts := sorted(out.glob(".making-*/*.part"))) < 2 or min(part.stat().st_size for part in parts) < 100_000
    ):
        assert process.poll() is None
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)
    sizes = [part.stat().st_size for part in parts]
    time.sleep(0.5)
    assert [part.stat().st_size for part in parts] == sizes
    case = Case("kaldi", "train", files, {})
    run(case, tmp_path, samples_per_shard=500, workers=2)
    assert len(keys(tmp_path)) == 1000
    assert not list(out.glob(".making-*"))


def test_an_object_store_gets_the_same_files(tmp_path: Path) -> None:
    run(GTZAN, tmp_path, samples_per_shard=1)
    store = open_folder(f"memory://{tmp_path.name}/set")
    out = tmp_path / "out"
    report = run(GTZAN, tmp_path, samples_per_shard=1, out=str(store))
    assert report.made == len(list(out.glob("*.tar")))
    wanted = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    found = {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}
    assert found == wanted
    # What is finished is not made again; a shard without its marker is.
    names = sorted(name for name in found if name.endswith(".tar"))
    for name in names:
        (store / name).write_bytes(b"x")
    companion(store / names[0], ".recipe").unlink()
    with pytest.raises(ValueError, match="has 1 bytes"):
        run(GTZAN, tmp_path, samples_per_shard=1, out=str(store))
    assert (store / names[0]).read_bytes() == wanted[names[0]]
    assert {(store / name).read_bytes() for name in names[1:]} == {b"x"}
    with pytest.raises(ValueError, match="of an earlier import"):
        run(GTZAN, tmp_path, samples_per_shard=1, max_samples=1, out=str(store))
    with pytest.raises(ValueError, match="audio=in_place links to files"):
        run(GTZAN, tmp_path, audio="in_place", out=str(store))
    for wrong in ("https://host/set", "hf://datasets/a/b"):
        with pytest.raises(ValueError, match="shards are written to a folder, s3:// or gs://"):
            run(GTZAN, tmp_path, out=wrong)


def test_files_can_be_kept_as_they_are(tmp_path: Path) -> None:
    files = {
        "wav.scp": "a a.mp3\nb b.opus\nc c.wav\n",
        "text": "a x\nb y\nc z\n",
        "segments": "a a 0 -1\nb b 0 -1\nc c 0.1 0.3\n",
    }
    sounds = {"a.mp3": SECONDS, "b.opus": SECONDS, "c.wav": SECONDS}
    run(Case("kaldi", "train", {**files, **sounds}, {}), tmp_path, audio="keep")
    with tarfile.open(tmp_path / "out" / "kaldi-train-00000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar if not member.name.endswith(".json")}  # type: ignore[union-attr]
    assert set(found) == {"kaldi-train-a.mp3", "kaldi-train-b.opus", "kaldi-train-c.flac"}
    assert found["kaldi-train-a.mp3"] == (tmp_path / "in" / "kaldi" / "a.mp3").read_bytes()


def test_where_fields_and_limits(tmp_path: Path) -> None:
    report = run(AUDIOSET, tmp_path, where={"label": "Music"}, fields={"license": "mine"}, name="my set")
    assert report.dropped["where label"] == 1
    assert keys(tmp_path) == ["my_set-balanced_train---ZhevVpy1s"]
    record = json.loads(load_index(str(tmp_path / "out" / "my_set-balanced_train-00000.tar")).table["meta"][0].as_py())
    assert (record["license"], record["source"]) == ("mine", "my set")
    assert run(LIBRISPEECH, tmp_path, max_samples=1).made == 1


def test_the_list_of_corpora_and_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data import", ["--list"]) == 0
    shown = capsys.readouterr().out
    assert "librispeech: LibriSpeech" in shown
    assert "CC-BY-4.0" in shown
    with pytest.raises(ValueError, match="give one CORPUS, path= and out=; found no corpus"):
        command("data import", [])
    assert corpus_of("LibriSpeech").name == corpus_of("libri-speech").name == "librispeech"
    with pytest.raises(ValueError, match="did you mean common_voice"):
        corpus_of("comon_voise")


def test_one_channel_of_several(tmp_path: Path) -> None:
    time_s = np.arange(16_000) / 16_000
    waves = [0.3 * np.sin(2 * np.pi * hertz * time_s) for hertz in (400, 1000)]
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "both.wav", np.stack(waves, axis=1), 16_000)
    cuts = []
    for channel in (0, 1):
        made = cut(f"c{channel}", "file", "both.wav", length=1.0, total=1.0)
        made["channel"], made["recording"]["sources"][0]["channels"] = channel, [0, 1]
        cuts.append(json.dumps(made))
    (tmp_path / "in" / "cuts.jsonl").write_text("\n".join(cuts))
    config = ImportConfig(path=str(tmp_path / "in"), out=str(tmp_path / "out"), split="train", workers=0)
    list(import_corpus(corpus_of("lhotse"), config))
    clips = list(read_shard(tmp_path / "out" / "lhotse-train-00000.tar"))
    assert [heard(clip.wave) for clip in clips] == pytest.approx([400, 1000], abs=2)


def test_a_hub_id_is_read_from_the_cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_tree(tmp_path, {"rows.parquet": table_bytes([{"audio": audio_cell("h.wav"), "text": "hello"}])})

    def load(name: str, config: str | None, *, split: str) -> Any:
        assert (name, config, split) == ("org/name", None, "train")
        return datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = ImportConfig(path="org/name", out=str(tmp_path / "out"), split="train", workers=0)
    (report,) = import_corpus(corpus_of("huggingface"), config)
    assert report.made == 1
    assert keys(tmp_path) == ["huggingface-train-00000000"]


def test_lists_that_are_not_as_published_are_a_clear_error(tmp_path: Path) -> None:
    files = {"json_files/FreeSound/all.json": {"data": [{"caption": "Wind."}]}}
    with pytest.raises(
        ValueError, match=r"WavCaps, split train: its lists are not as they are published \(KeyError\('id'"
    ):
        run(Case("wavcaps", "train", files, {}), tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="not a readable zip archive"):
        run(LIBRISPEECH, tmp_path, path=str(tmp_path / "bad.zip"))


def test_an_id_longer_than_any_file_name_costs_its_line(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in" / "librispeech", LIBRISPEECH.files)
    with (root / "LibriSpeech/train-clean-100/14/208/14-208.trans.txt").open("a") as file:
        file.write(f"{'9' * 300} TOO LONG\n")
    report = run(LIBRISPEECH, tmp_path, error_budget=0.4)
    assert report.made == 2
    assert report.dropped == {"missing audio": 1}


def test_what_pyarrow_does_not_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table_bytes([{"audio": audio_cell("a.wav"), "text": "one"}])

    def with_lzo() -> bytes:
        """The file with the number of that codec in its footer, which pyarrow writes for none."""
        for place in range(len(whole) - 9, 0, -1):
            changed = whole[:place] + bytes([6]) + whole[place + 1 :]
            with suppress(Exception):
                pyarrow.parquet.read_schema(io.BytesIO(changed))
                try:
                    pyarrow.parquet.ParquetFile(io.BytesIO(changed)).read_row_group(0, columns=["text"])
                except OSError as error:
                    if "LZO" in str(error):
                        return changed
        pytest.fail("no codec in the footer")

    with pytest.raises(ValueError, match=r"a\.parquet: pyarrow .* does not read .*LZO.*: write it again .* by zstd"):
        run(Case("huggingface", "train", {"a.parquet": with_lzo()}, {}), tmp_path / "lzo")
    # What pyarrow says of objects beyond 2 GiB in a row group; such a file takes 3 GB of memory.
    case = Case("huggingface", "train", {"a.parquet": whole}, {})

    def fails(error: type[Exception]) -> None:
        def read(*_: Any, **__: Any) -> Any:
            raise error("Nested data conversions not implemented for chunked array outputs")

        monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", read)

    fails(pyarrow.ArrowNotImplementedError)
    with pytest.raises(ValueError, match=r"a\.parquet: pyarrow .* does not read .* \(Nested data .*\): write it again"):
        run(case, tmp_path)
    # Too little memory says nothing about the file.
    fails(pyarrow.ArrowMemoryError)
    with pytest.raises(MemoryError):
        run(case, tmp_path)


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv, after line 0: .*decode byte 0x90"):
        run(Case("audiocaps", "train", {"train.csv": b"audi\x90cap_id,youtube_id\n1,a\n"}, {}), tmp_path)
    rows = [{"audio": audio_cell(f"{n}.wav"), "text": f"number {n}"} for n in range(4)]
    whole = table_bytes(rows)
    group = pyarrow.parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(1)
    places = {group.column(n).path_in_schema: group.column(n).data_page_offset for n in range(group.num_columns)}

    def damaged(column: str) -> Case:
        place = places[column]
        return Case("huggingface", "train", {"a.parquet": whole[:place] + b"\xff" * 8 + whole[place + 8 :]}, {})

    with pytest.raises(ValueError, match=r"a\.parquet: damaged, download it again \("):
        run(damaged("text"), tmp_path / "text")
    report = run(damaged("audio.bytes"), tmp_path / "audio", error_budget=0.5)
    assert (report.made, report.dropped) == (2, {"bad audio": 2})


def test_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    """As an archive of a Windows in Chinese leaves them: those that are taken, and those that are only reported."""
    root = write_tree(tmp_path / "in" / "gtzan", GTZAN.files)
    folder = next(root.rglob("*.wav")).parent
    (folder / os.fsdecode("叫声".encode("gbk") + b".wav")).write_bytes(tone("x.wav"))
    made = run(GTZAN, tmp_path / "whole", path=str(root)).made
    assert made == len(GTZAN.records) + 1
    assert run(GTZAN, tmp_path / "whole", path=str(root)).made == made
    (tmp_path / "l.csv").write_text(f"path,text\n{next(folder.glob('*0.wav')).name},one\n")
    done = subprocess.run(
        [sys.executable, "-m", "qa_train", "data", "import", "table", f"path=[{tmp_path}/l.csv,{folder}]",
         f"out={tmp_path}/out", "workers=0"],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "belong to no record of this split, e.g. " in done.stdout
    assert "\\udcbd" in done.stdout + (tmp_path / "out" / "table-train.report.json").read_text()


@pytest.mark.parametrize("kind", ["tar", "zip", "folder"])
def test_a_list_that_every_part_of_a_corpus_repeats(kind: str, tmp_path: Path) -> None:
    """LibriSpeech's archives have SPEAKERS.TXT each."""
    clips = sorted(name for name in LIBRISPEECH.files if "train-clean-100" in name and name.endswith(".flac"))
    paths = []
    for number, clip in enumerate(clips):
        files = {name: content for name, content in LIBRISPEECH.files.items() if name == clip or ".txt" in name.lower()}
        paths.append(str(write_tree(tmp_path / f"part{number}", files)))
        if kind != "folder":
            paths[-1] = shutil.make_archive(paths[-1], kind, paths[-1])
    assert run(LIBRISPEECH, tmp_path, path=paths).made == len(clips)
    other = write_tree(tmp_path / "other", {"LibriSpeech/SPEAKERS.TXT": "14 | M | train-clean-100 | 25.0 | Bob"})
    with pytest.raises(
        ValueError, match=r"LibriSpeech/SPEAKERS\.TXT is in .*part0.* and .*other: import them one after"
    ):
        run(LIBRISPEECH, tmp_path / "two", path=[paths[0], str(other)])


def test_what_a_list_may_call_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_tree(tmp_path / "corpus", {"wavs/a.wav": SECONDS, "wavs/b c.wav": SECONDS, "x/d.wav": SECONDS})
    here = write_tree(tmp_path / "here", {"t/e.wav": SECONDS})
    monkeypatch.chdir(here)
    names = {
        "wavs\\a.wav": True, "sub/../wavs/a.wav": True, "../x/d.wav": True, "file://wavs/b%20c.wav": True,
        "file://t/e.wav": True, "t\\e.wav": True, "./wavs/a.wav": True, str(corpus / "wavs/a.wav"): True,
        "\\\\server\\share\\a.wav": False, "..\\no\\a.wav": False, "~/no.wav": False, "../../no.wav": False,
    }  # fmt: skip
    for number, (name, found) in enumerate(names.items()):
        (tmp_path / "l.csv").write_text(f"path,text\n{name},one\n")
        paths = [str(tmp_path / "l.csv"), str(corpus), str(corpus / "wavs")]
        case = Case("table", "train", {}, {})
        if found:
            assert run(case, tmp_path / str(number), path=paths).made == 1, name
            continue
        with pytest.raises(ValueError, match="skipped 1: missing audio"):
            run(case, tmp_path / str(number), path=paths, error_budget=1.0)
        if name.endswith("a.wav"):
            assert run(case, tmp_path / f"{number} by name", path=paths[:2], by_name=True).made == 1, name
