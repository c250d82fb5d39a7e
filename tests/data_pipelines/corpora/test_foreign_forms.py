"""Forms of Kaldi's and Lhotse's lists beyond the plain ones: pipes that decode, recordings, padding, joined cuts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora.formats.fields import decoded_file
from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from scripts.quickstart_data.clip import read_shard
from tests.data_pipelines.corpora.foreign_cases import LHOTSE_SHAR, cut
from tests.data_pipelines.corpora.made_up import heard, pitch_of, tone, write_tree


def run(corpus: str, files: dict[str, Any], folder: Path, **options: Any) -> tuple[Report, dict[str, Any]]:
    """The report, and {item name: (record, waveform)} of what came in."""
    root = write_tree(folder / "in", files)
    known = {"path": str(root), "out": str(folder / "out"), "split": "train", "workers": 0}
    (report,) = import_corpus(corpus_of(corpus), ImportConfig(**(known | options)))
    found = {}
    for shard in sorted((folder / "out").glob("*.tar")):
        for clip in read_shard(shard):
            found[clip.key.removeprefix(f"{corpus}-train-")] = (clip.record, clip.wave)
    return report, found


def stereo(*hertz: int, kind: str = "WAV") -> bytes:
    """A file with one tone per channel, 0.5 s."""
    time_s = np.arange(8000) / 16_000
    buffer = io.BytesIO()
    wave = np.stack([0.3 * np.sin(2 * np.pi * h * time_s) for h in hertz], axis=1)
    soundfile.write(buffer, wave, 16_000, format=kind, subtype="PCM_16")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("flac -c -d -s a/b.flac |", ("a/b.flac", None)),
        ("/usr/bin/flac -cd --silent 'my file.flac' |", ("my file.flac", None)),
        ("sph2pipe -f wav -p -c 1 x.sph |", ("x.sph", 0)),
        ("/opt/kaldi/tools/sph2pipe_v2.5/sph2pipe -f wav -c 2 /d/x.sph |", ("/d/x.sph", 1)),
        ("sph2pipe -p -f rif x.sph|", ("x.sph", None)),
        ("cat x.wav |", ("x.wav", None)),
        # All else is not only the decoding of one file.
        ("sox x.wav -t wav - |", None),
        ("flac -c -d -s x.flac | sox - -r 8k - |", None),
        ("flac -c -d -s --skip=100 x.flac |", None),
        ("flac -c -d -s a.flac b.flac |", None),
        ("sph2pipe -f wav -t 1:2 x.sph |", None),
        ("sph2pipe -f raw x.sph |", None),
        ("sph2pipe -c 3 x.sph |", None),
        ("cat x.wav; rm y |", None),
        ("cat $(touch owned) |", None),
        ("cat `id` |", None),
        ("cat |", None),
        ("flac -c -d -s 'x.flac |", None),
        ("|", None),
    ],
)
def test_commands_that_decode_one_file_are_told_from_all_others(command: str, found: Any) -> None:
    assert decoded_file(command) == found


def test_kaldi_pipes_are_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    files = {
        "wav.scp": "one flac -c -d -s a.flac |\ntwo sph2pipe -f wav -p -c 2 b.sph |\n"
        "three sph2pipe -f wav -p -c 1 b.sph |\nfour cat c.wav |\n",
        "text": "u1 hello\nu2 there\nu3 you\nu4 all\nu5 gone\nu6\n",
        "segments": "u1 one 0.1 0.3\nu2 two 0 -1\nu3 three 0 0.5\nu4 four 0 -1\nu5 four a b\nu6 four 0 -1\n",
        "a.flac": 0.4, "c.wav": 0.4, "b.sph": stereo(500, 900, kind="NIST"),
    }  # fmt: skip
    report, found = run("kaldi", files, tmp_path, error_budget=0.4)
    assert report.dropped == {"bad line": 1, "no text": 1}
    pitches = {name: round(heard(wave)) for name, (_, wave) in found.items()}
    wanted = {"u1": pitch_of("a.flac"), "u2": 900, "u3": 500, "u4": pitch_of("c.wav")}
    assert pitches.keys() == wanted.keys()
    for name, hertz in wanted.items():
        assert pitches[name] == pytest.approx(hertz, abs=8), name
    assert len(found["u1"][1]) == 3200


def recording(name: str, place: str, seconds: float, kind: str = "file") -> dict[str, Any]:
    return {"id": name, "sources": [{"type": kind, "channels": [0], "source": place}], "sampling_rate": 16000,
            "num_samples": int(seconds * 16000), "duration": seconds}  # fmt: skip


def test_lhotse_recordings_with_supervisions(tmp_path: Path) -> None:
    heard_in = [("s1", "r1", 0.1, 0.3), ("s2", "r1", 0.5, 0.4), ("s3", "r2", 0.0, 0.4), ("s4", "r9", 0.0, 0.4)]
    supervisions = [
        {"id": s, "recording_id": r, "start": start, "duration": length, "channel": 0, "text": f"text {s}",
         "language": "English", "speaker": "anne"} for s, r, start, length in heard_in
    ]  # fmt: skip
    recordings = [recording("r1", "a.wav", 1.0), recording("r2", "flac -c -d -s b.flac", 0.4, kind="command")]
    files = {
        "recordings_train.jsonl": "\n".join(map(json.dumps, recordings)),
        "supervisions_train.jsonl": "\n".join([*map(json.dumps, supervisions)]),
        "a.wav": 1.0, "b.flac": 0.4,
    }  # fmt: skip
    report, found = run("lhotse", files, tmp_path)
    assert report.dropped == {"bad line": 1}
    assert "r9" in report.text()
    assert {name: record["text"] for name, (record, _) in found.items()} == {n: f"text {n}" for n in ("s1", "s2", "s3")}
    assert {name: len(wave) for name, (_, wave) in found.items()} == {"s1": 4800, "s2": 6400, "s3": 6400}
    assert heard(found["s3"][1]) == pytest.approx(pitch_of("b.flac"), abs=8)
    assert found["s1"][0]["speaker"] == "anne"
    # The same files named one by one, and one of them missing.
    again = {"path": [str(tmp_path / "in" / name) for name in files if name.endswith("jsonl")]}
    assert run("lhotse", files, tmp_path / "named", **again)[0].made == 3
    with pytest.raises(ValueError, match="no Lhotse supervisions next to the recordings"):
        run("lhotse", {"recordings.jsonl": json.dumps(recordings[0])}, tmp_path / "alone")


def test_cuts_of_several_channels_are_their_mean(tmp_path: Path) -> None:
    def multi(name: str, channels: list[int]) -> dict[str, Any]:
        made = cut(name, "file", "a.wav", length=0.5, total=0.5) | {"type": "MultiCut", "channel": channels}
        made["recording"]["sources"][0]["channels"] = [0, 1]
        return made

    files = {
        "cuts.jsonl": "\n".join(map(json.dumps, [multi("all", [0, 1]), multi("one", [1])])),
        "a.wav": stereo(500, 900),
    }
    report, found = run("lhotse", files, tmp_path, error_budget=0.5)
    assert report.dropped == {"MultiCut of some of the channels": 1}
    spectrum = np.abs(np.fft.rfft(found["all"][1]))
    assert sorted(np.argsort(spectrum)[-2:] * 2) == [500, 900]


def test_a_channel_is_found_by_its_id(tmp_path: Path) -> None:
    """Lhotse's ids of channels need not begin at 0: AudioSource(channels=[1, 2])."""

    def one(name: str, channel: int, ids: list[int]) -> dict[str, Any]:
        made = cut(name, "file", "a.wav", length=0.5, total=0.5) | {"channel": channel}
        made["recording"]["sources"][0]["channels"] = ids
        return made

    cuts = [one("a", 1, [1, 2]), one("b", 2, [1, 2]), one("c", 1, [0, 1]), one("d", 7, [0, 1])]
    files = {"cuts.jsonl": "\n".join(map(json.dumps, cuts)), "a.wav": stereo(500, 900)}
    report, found = run("lhotse", files, tmp_path, error_budget=0.5)
    assert report.dropped == {"channel that its recording lacks": 1}
    assert {name: round(heard(wave), -1) for name, (_, wave) in found.items()} == {"a": 500, "b": 900, "c": 900}


def speech(start: float, seconds: float, text: str, **more: Any) -> dict[str, Any]:
    return {"id": text, "recording_id": "r", "start": start, "duration": seconds, "channel": 0, "text": text, **more}


def test_text_that_is_not_in_a_cut_is_not_imported(tmp_path: Path) -> None:
    """As lhotse 1.33's cut_into_windows, truncate and trim_to_supervisions leave supervisions: with all their text."""

    def of(name: str, *supervisions: dict[str, Any]) -> dict[str, Any]:
        return cut(name, "file", "a.wav", length=0.4, total=0.4) | {"supervisions": [*supervisions]}

    two = [speech(0.0, 0.2, "one", speaker="a"), speech(0.2, 0.25, "two", speaker="b")]
    cuts = [
        # Rounded, or aligned with a late end.
        of("rounded", *two),
        of("window", speech(0.0, 0.3, "one"), speech(0.3, 0.3, "two")),
        of("rest", speech(-0.3, 0.5, "one")),
        of("nobody", speech(0.0, 0.2, "one"), speech(0.2, 0.2, "two")),
        # Who speaks when, without what.
        of("turns", speech(-0.3, 0.5, "", speaker="a"), speech(0.2, 0.5, "", speaker="b")),
        mixed("appended", (0.0, of("x", speech(0.0, 0.4, "one"))), (0.4, of("y", speech(0.0, 0.8, "two")))),
        mixed("reverb", (0.0, of("x", *two)), (0.4, of("y", *two))) | {"transforms": [{"name": "Reverb"}]},
    ]
    files = {"cuts.jsonl": "\n".join(map(json.dumps, cuts)), "a.wav": tone("a.wav")}
    report, found = run("lhotse", files, tmp_path, error_budget=0.9)
    assert report.dropped.pop("transformed cut") == 1
    assert report.dropped == {"text of a supervision that reaches beyond its cut": 3}
    assert [(turn["speaker"], turn["start"], turn["end"]) for turn in found["rounded"][0]["turns"]] == [
        ("a", 0.0, 0.2), ("b", 0.2, 0.4)
    ]  # fmt: skip
    assert [(turn["start"], turn["end"]) for turn in found.pop("turns")[0]["turns"]] == [(0.0, 0.2), (0.2, 0.4)]
    # Turns are of somebody.
    assert "turns" not in found["nobody"][0]
    assert {record["text"] for record, _ in found.values()} == {"one two"}
    assert len(found) == 2


def test_word_times_follow_their_cut(tmp_path: Path) -> None:
    """lhotse 1.33 moves supervisions, and leaves their alignments in the time of the recording."""

    def words(*times: float) -> dict[str, Any]:
        return {"alignment": {"word": [[f"w{i}", time, 0.1, None] for i, time in enumerate(times)]}}

    def of(name: str, start: float, *supervisions: dict[str, Any]) -> dict[str, Any]:
        return cut(name, "file", "a.wav", start=start, length=0.4, total=2.0) | {"supervisions": [*supervisions]}

    cuts = [
        of("trimmed", 1.0, speech(0.0, 0.4, "so", **words(1.0, 1.2))),
        of("own", 1.0, speech(0.0, 0.4, "so", **words(0.1, 0.3))),
        of("neither", 1.0, speech(0.0, 0.4, "so", **words(0.1, 1.2))),
        of("half", 1.0, speech(0.0, 0.2, "so", **words(1.0)), speech(0.2, 0.2, "so")),
        mixed("joined", (0.0, of("x", 1.0, speech(0.0, 0.4, "so", **words(1.1)))),
              (0.4, of("y", 0.5, speech(0.0, 0.4, "so", **words(0.7))))),
    ]  # fmt: skip
    recordings = [recording("r", "a.wav", 2.0)]
    heard_at = [speech(1.0, 0.4, "late", **words(1.0, 1.3))]
    files = {"cuts.jsonl": "\n".join(map(json.dumps, cuts)), "a.wav": 2.0}
    report, found = run("lhotse", files, tmp_path)
    assert "word times outside their supervisions: 1, e.g. of neither" in report.text()
    starts = {name: [word["start"] for word in record.get("words", [])] for name, (record, _) in found.items()}
    assert starts == {"trimmed": [0.0, 0.2], "own": [0.1, 0.3], "neither": [], "half": [], "joined": [0.1, 0.6]}
    files = {"recordings.jsonl": json.dumps(recordings[0]), "supervisions.jsonl": json.dumps(heard_at[0]), "a.wav": 2.0}
    ((record, _),) = run("lhotse", files, tmp_path / "two")[1].values()
    assert [word["start"] for word in record["words"]] == [0.0, 0.3]


def test_fields_of_a_shar_that_are_not_read_are_told(tmp_path: Path) -> None:
    tar = LHOTSE_SHAR.files["shar/recording.000000.tar"]
    files = LHOTSE_SHAR.files | {f"shar/target_recording.00000{i}.tar": tar for i in range(2)}
    files |= {"shar/name.000001.jsonl.gz": b"", "shar/notes.txt": "x"}
    report, _ = run("lhotse", files, tmp_path, path=[str(tmp_path / "in/shar")], error_budget=0.5)
    assert (
        "fields of the Shar that were not read, with the number of their files: name (1), target_recording (2)"
        in report.text()
    )


def test_an_id_of_kaldi_is_listed_once(tmp_path: Path) -> None:
    files = {"wav.scp": "u a.wav\nu b.wav\n", "text": "u one\n", "a.wav": 0.5, "b.wav": 0.5}
    with pytest.raises(ValueError, match=r"wav\.scp: 'u' is listed twice"):
        run("kaldi", files, tmp_path)


def mixed(name: str, *tracks: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    """A MixedCut as Lhotse writes it."""
    kinds = [{"cut": inner, "offset": offset, "type": inner["type"]} for offset, inner in tracks]
    return {"id": name, "type": "MixedCut", "tracks": kinds}


def padding(seconds: float) -> dict[str, Any]:
    return {"id": "pad", "type": "PaddingCut", "duration": seconds, "sampling_rate": 16000, "feat_value": -23.0}


def test_padded_cuts_lose_their_padding_and_appended_ones_are_joined(tmp_path: Path) -> None:
    one, two = cut("one", "file", "a.wav"), cut("two", "file", "b.wav")
    cuts = [
        mixed("right", (0.0, one), (0.4, padding(1.0))),
        mixed("left", (0.0, padding(0.6)), (0.6, two)),
        mixed("appended", (0.4, two), (0.0, one)),
        mixed("appended and padded", (0.0, one), (0.4, two), (0.8, padding(2.0))),
        mixed("together", (0.0, one), (0.1, two)),
        mixed("gap", (0.0, one), (1.5, two)),
        mixed("nothing", (0.0, padding(1.0))),
    ]
    files = {"cuts.jsonl": "\n".join(map(json.dumps, cuts)), "a.wav": tone("a.wav"), "b.wav": tone("b.wav")}
    report, found = run("lhotse", files, tmp_path, error_budget=0.5)
    assert report.dropped == {"mixed cut": 2, "MixedCut without one recording": 1}
    lengths = {name: len(wave) for name, (_, wave) in found.items()}
    assert lengths == {"right": 6400, "left": 6400, "appended": 12_800, "appended_and_padded": 12_800}
    for name in ("appended", "appended_and_padded"):
        record, wave = found[name]
        assert heard(wave[:6400]) == pytest.approx(pitch_of("a.wav"), abs=8)
        assert heard(wave[6400:]) == pytest.approx(pitch_of("b.wav"), abs=8)
        assert record["text"] == "text of one text of two"
        assert [(turn["start"], turn["end"]) for turn in record["turns"]] == [(0.0, 0.4), (0.4, 0.8)]
        assert [(word["word"], word["start"]) for word in record["words"]] == [
            ("text", 0.0), ("of", 0.1), ("text", 0.4), ("of", 0.5)
        ]  # fmt: skip
    assert found["left"][0]["words"][0]["start"] == 0.0
    # Kept as they are, joined cuts are still one waveform; too long together, they are left out.
    kept, _ = run("lhotse", files, tmp_path / "keep", error_budget=0.5, audio="keep", max_duration_s=0.5)
    assert kept.dropped["longer than max_duration_s"] == 2
    assert kept.made == 2
