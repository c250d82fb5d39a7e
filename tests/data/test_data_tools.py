"""`qa-train data index | inspect | validate | stats | sample | clean` on small shards."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qa_train.command_line.command_table import COMMANDS, run
from qa_train.command_line.help import command_help
from qa_train.data.shards.index import SUFFIX, build_index, load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.tools.clean import CleanConfig
from qa_train.data.tools.stats import stats
from qa_train.data.tools.validate import validate
from tests.data.conftest import noise, speech_record, write_shards


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    write_shards(tmp_path, "speech", 8, 4, speech_record)
    with ShardWriter(tmp_path / "wav.tar", codec="wav") as writer:
        writer.write("bell", {"label": "bell", "task": "sound_class", "source": "mine"}, noise(3))
    return sorted(map(str, tmp_path.glob("*.tar")))


def test_index_shows_what_it_leaves_out(corpus: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for path in corpus:
        Path(path + SUFFIX).unlink()
    whole = Path(corpus[0]).read_bytes()
    Path(corpus[0]).write_bytes(whole[: len(whole) // 2])
    # A damaged shard is named, and does not keep the others from their indexes.
    for workers in (0, 2):
        assert run("data index", [*corpus, f"num_workers={workers}"]) == 2
        shown = capsys.readouterr()
        assert re.search(rf"{corpus[0]}: .*(cut short|end-of-archive)", shown.err)
        assert "1 of 3 shards were refused" in shown.err
        assert not Path(corpus[0] + SUFFIX).exists()
        assert [len(load_index(path)) for path in corpus[1:]] == [4, 1]
        Path(corpus[2] + SUFFIX).unlink()
    assert run("data index", [*corpus, "keep_damaged=true", "num_workers=2", "decode=true"]) == 0
    out = capsys.readouterr().out
    assert "damaged shard" in out
    assert f"{corpus[1]}: 4 records" in out
    assert 1 <= len(load_index(corpus[0])) < 4


def test_an_interrupted_index_goes_on_with_what_is_missing(
    corpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(corpus[1] + SUFFIX).unlink()
    Path(corpus[2] + SUFFIX).write_bytes(b"PAR1 cut")
    before = Path(corpus[0] + SUFFIX).stat().st_mtime_ns
    assert run("data index", [*corpus, "missing=true"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["1 of 3 shards have their index", f"{corpus[1]}: 4 records", f"{corpus[2]}: 1 records"]
    assert Path(corpus[0] + SUFFIX).stat().st_mtime_ns == before
    assert run("data index", [*corpus, "missing=true"]) == 0
    assert capsys.readouterr().out == "3 of 3 shards have their index\n"
    # Without it all are made anew, which brings back what `data clean` took out.
    assert run("data index", corpus) == 0
    assert Path(corpus[0] + SUFFIX).stat().st_mtime_ns > before


def test_validate_names_shard_key_and_offset(corpus: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data validate", [*corpus, "num_workers=2"]) == 0
    assert "3 shards, 9 intact records, 10 s; faults: none" in capsys.readouterr().out
    row = load_index(corpus[2]).table.to_pylist()[0]
    raw = bytearray(Path(corpus[2]).read_bytes())
    # One bit in the sound of a WAV: nothing but the checksum can tell.
    raw[row["offsets"][0] + 1000] ^= 1
    Path(corpus[2]).write_bytes(raw)
    report = Path(corpus[0]).with_name("faults.jsonl")
    assert run("data validate", [*corpus, f"report={report}"]) == 1
    (line,) = report.read_text().splitlines()
    fault = json.loads(line)
    assert (fault["shard"], fault["key"], fault["offset"]) == (corpus[2], "bell", row["offsets"][0])
    assert fault["reason"] == "checksum"
    assert f"{corpus[2]}: bell at byte {row['offsets'][0]}: checksum" in capsys.readouterr().out


def test_validate_finds_a_replaced_shard_and_records_twice(corpus: list[str], tmp_path: Path) -> None:
    faults: list[Any] = []
    copy = tmp_path / "z.tar"
    copy.write_bytes(Path(corpus[0]).read_bytes())
    assert validate([*corpus, str(copy)], faults.append).reasons == {"duplicate record": 4}
    assert {fault.shard for fault in faults} == {str(copy)}
    assert faults[0].detail == f"the same record as {corpus[0]}: {faults[0].key}"
    # Another shard of equal size under this name.
    raw = Path(corpus[0]).read_bytes()
    other = tmp_path / "other.tar"
    with ShardWriter(other, codec="wav") as writer:
        writer.write("new", {}, noise(0.5))
    size = len(raw)
    Path(corpus[0]).write_bytes(other.read_bytes() + bytes(size - other.stat().st_size))
    summary = validate([corpus[0]], lambda fault: None)
    assert summary.reasons == {"missing record": 4}
    Path(corpus[0] + SUFFIX).unlink()
    assert "1 shards have no index" in str(validate([corpus[0]], pytest.fail))


def test_stats_count_hours_and_exact_tokens(corpus: list[str], tokenizer: Any) -> None:
    found = stats(corpus, tokenizer=tokenizer, tasks=["asr", "sound_class"])
    assert found.records == 9
    assert found.groups["language"].keys() == {"en", "es", "-"}
    assert sum(seconds for _, seconds in found.groups["language"].values()) == pytest.approx(found.seconds)
    assert sum(found.lengths.values()) == 9
    assert found.lengths[5.0] == 1
    assert found.tokens["asr"][0] == 8
    assert found.tokens["sound_class"][0] == 1
    # Three seconds are 75 audio tokens of 40 ms.
    assert found.tokens["sound_class"][1] == 3.0
    assert found.tokens["sound_class"][3] == 75
    text = str(found)
    assert "3 shards, 9 records" in text
    assert "2-5            1  #" in text
    assert stats(corpus, tokenizer=tokenizer).tokens.keys() == {"sound_class"}


def test_inspect_and_sample(corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data inspect", [corpus[2], f"{corpus[2]}:bell"]) == 0
    out = capsys.readouterr().out
    assert "1 members .wav" in out
    assert "WAV/PCM_16, 16000 Hz, 1 channels, 3.00 s" in out
    assert "ask_sound" in out
    with pytest.raises(ValueError, match="no record 'drum'; the first keys are"):
        run("data inspect", [f"{corpus[2]}:drum"])
    folder = tmp_path / "out"
    assert run("data sample", [corpus[2], "n=2", f"out={folder}"]) == 0
    first = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"bell.json", "bell.wav", "bell.wav.png"}
    assert (folder / "bell.wav.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(soundfile.read(folder / "bell.wav")[0]) == 48_000
    run("data sample", [corpus[2], "n=2", f"out={folder}"])
    assert capsys.readouterr().out == first


def test_a_key_of_the_data_is_no_path(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, raw in (("x/y;z.json", b'{"text": "costs $5 \\\\frac$"}'), ("x/y;z.wav", _wav())):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    build_index([path])
    run("data sample", [str(path), "n=1", f"out={tmp_path / 'out'}"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"x_y_z.json", "x_y_z.wav", "x_y_z.wav.png"}


def _wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(0.3), 16_000, format="WAV")
    return buffer.getvalue()


def test_clean_says_what_it_would_do(corpus: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data clean", [*corpus, "min_duration_s=2.5"]) == 0
    out = capsys.readouterr().out
    assert "8 too short" in out
    assert "add apply=true" in out
    assert run("data clean", [*corpus, "min_duration_s=2.5", "apply=true"]) == 0
    assert [len(load_index(path)) for path in corpus] == [0, 0, 1]


def test_every_command_explains_itself_and_its_options() -> None:
    for name, command in COMMANDS.items():
        assert command_help(command).startswith(f"usage: qa-train {name}")
    shown = command_help(COMMANDS["data clean"])
    for field in dataclasses.fields(CleanConfig):
        assert f"  {field.name}=" in shown
    assert "max_silence=0.95      Maximum share of silent 20 ms frames" in shown
    assert "out=... (required)" in command_help(COMMANDS["data to-jsonl"])


@pytest.mark.parametrize("command", ["inspect", "validate", "stats", "sample", "clean"])
def test_wrong_words_are_explained(command: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give"):
        run(f"data {command}", [])
    if command != "inspect":
        with pytest.raises(ValueError, match="neither a path nor an option"):
            run(f"data {command}", ["x.tar", "colour=red"])
        with pytest.raises(ValueError, match="no shard matches"):
            run(f"data {command}", [str(tmp_path / "*.tar")])


@pytest.mark.parametrize(
    "command", ["validate", "stats", "sample n=3", "clean", "words out=", "to-jsonl task=asr out="]
)
def test_a_catalog_stands_for_its_shards(
    command: str, corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qa_train.doctor.files import examine_data

    catalog = str(tmp_path / "all.catalog.parquet")
    assert run("data catalog", [catalog, *corpus[:2]]) == 0
    capsys.readouterr()
    name, *options = command.split()
    said = []
    for number, shards in enumerate((corpus[:2], [catalog])):
        out = tmp_path / f"{number}.out.jsonl"
        assert run(f"data {name}", [*shards, *(f"out={out}" if word == "out=" else word for word in options)]) == 0
        said.append(capsys.readouterr().out.replace(out.stem, "OUT") + (out.read_text() if out.exists() else ""))
    assert said[0].replace("0.out-audio", "1.out-audio") == said[1]
    assert [*examine_data([catalog])] == [*examine_data(corpus[:2])]


@pytest.mark.parametrize("pattern", ["year=1/*.tar", "year={1,2}/*.tar", "{root}/year=1/*.tar"])
def test_a_pattern_may_have_an_equals_sign(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ShardWriter(Path("year=1") / "a.tar") as writer:
        writer.write("k0", {"text": "one"}, noise(0.5))
    assert run("data validate", [pattern.replace("{root}", str(tmp_path))]) == 0
