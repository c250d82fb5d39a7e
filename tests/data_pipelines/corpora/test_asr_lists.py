"""Lists of speech corpora and of fairseq, in the forms that they are found in."""

from __future__ import annotations

import json
import math
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.base import Request, TableForm
from data_pipelines.corpora.recordings import Recording, wave_of
from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio
from tests.data_pipelines.corpora.made_up import Case, tone, write_tree
from tests.data_pipelines.corpora.speech_cases import GIGASPEECH, MLS, VOXPOPULI, WENETSPEECH
from tests.data_pipelines.corpora.test_real_lists import read


def test_a_json_of_segments_is_read_one_recording_at_a_time(tmp_path: Path) -> None:
    whole = json.dumps(WENETSPEECH.files["WenetSpeech/WenetSpeech.json"], ensure_ascii=False, indent=4)
    first = whole[: whole.rindex("]")].rstrip()
    # The second recording is cut short: what comes before it is there already.
    (tmp_path / "WenetSpeech.json").write_text(f'{first}, {{"aid": "Y1", "segments": [{{', encoding="utf-8")
    found = corpus_of("wenetspeech").read(Request((str(tmp_path),), "l"))
    assert [next(found).name for _ in range(3)] == [f"Y0000000000_--x_S0000{number}" for number in (0, 1, 3)]
    with pytest.raises(ValueError, match=r"WenetSpeech\.json: not JSON, or cut short"):
        next(found)


def test_mls_is_read_from_the_folder_of_one_language_and_from_archives(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", MLS.files)
    both = {item.name: item.record for item in read("mls", "train", root)[0]}
    with tarfile.open(tmp_path / "mls.tar", "w") as tar:
        tar.add(root, ".")
    assert {item.name: item.record for item in read("mls", "train", tmp_path / "mls.tar")[0]} == both
    (item,), _ = read("mls", "train", root / "mls_polish")
    assert item.record == both[item.name]
    root.joinpath("mls_polish").rename(tmp_path / "polish")
    with pytest.raises(ValueError, match="lies in no folder mls_LANGUAGE: name the folder as it is published"):
        read("mls", "train", tmp_path / "polish")


def test_voxpopuli_is_read_beside_its_clips_and_as_the_hub_has_it(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", VOXPOPULI.files)
    language = root / "transcribed_data" / "en"
    wanted = {item.name: item.record for item in read("voxpopuli", "train", root)[0]}
    for name in wanted:
        (language / "train" / "train_part_0").mkdir(parents=True, exist_ok=True)
        (language / "train" / "train_part_0" / f"{name}.wav").write_bytes(tone(f"{name}.wav"))
        next(language.rglob(f"{name}.ogg")).unlink()
    items, _ = read("voxpopuli", "train", language)
    assert {item.name: item.record for item in items} == wanted
    assert all(item.audio[0].path.endswith(f"train_part_0/{item.name}.wav") for item in items)


def test_a_text_of_voxpopuli_that_is_broken_costs_its_own_row(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", VOXPOPULI.files)
    table = root / "transcribed_data" / "en" / "asr_train.tsv"
    wanted = [item.name for item in read("voxpopuli", "train", root)[0]]
    table.write_text(table.read_text().replace("_5\t\t\t", "_5\tfirst\nsecond\t"))
    items, drops = read("voxpopuli", "train", root)
    assert [item.name for item in items] == wanted
    assert [drop.reason for drop in drops] == ["row that does not fit"] * 2


def test_tedlium_3_is_read_where_its_links_were_not_unpacked(tmp_path: Path) -> None:
    line = "Anne_2009 1 Anne_2009 0.0 0.4 <o,f0,female> dogs ' tails in the ' 60s\n"
    files = {f"data/{kind}/Anne_2009.{kind}": content for kind, content in (("stm", line), ("sph", 1.0))}
    files |= {"legacy/dev/stm/Bob_2010.stm": line.replace("Anne_2009", "Bob_2010"), "legacy/dev/sph/Bob_2010.sph": 1.0}
    write_tree(tmp_path, files)
    ((item,), drops) = read("tedlium", "train", tmp_path)
    assert (item.name, item.record["text"], drops) == ("Anne_2009-00001", "dogs' tails in the '60s", [])
    ((item,), _) = read("tedlium", "dev", tmp_path)
    assert item.name == "Bob_2010-00001"
    with pytest.raises(ValueError, match=r"no TED-LIUM lists .*expected test/stm/\*\.stm"):
        read("tedlium", "test", tmp_path)


def test_words_that_a_list_does_not_know_are_counted(tmp_path: Path) -> None:
    lines = ["a 1 anne 0 1 <o> one <unk> three", "a 1 anne 1 2 <unk>", "a 1 anne 2 3 <o> four", "a 1 anne 0 1 <UNK> no"]
    write_tree(tmp_path, {"a.stm": "\n".join(lines) + "\n", "a.wav": 3.0})
    request = Request((str(tmp_path),), "train")
    found = {item.name: item for item in corpus_of("stm").read(request)}
    assert [found[f"a-0000{n}"].record["has_unknown"] for n in (1, 3, 4)] == [True, False, True]
    assert (found["a-00004"].record["text"], found["a-00002"].reason) == ("no", "no speech")
    assert request.notes == ["texts without a word that their list marks as <unk>: 2"]


@pytest.mark.parametrize(
    ("transcript", "text", "unknown"),
    [
        ("it 's {SMACK} <unk> 's a shame", "it's a shame", True),
        ("<unk> 's house", "house", True),
        ("i <unk> {NOISE} 'm here", "i here", True),
        ("all <unk> ' tails 'cause", "all tails'cause", True),
        ("<unk> 'quoted", "'quoted", True),
        ("{ um / <unk> } yes", "um yes", False),
        ("{ i am/ i'm } here", "i am here", False),
        ("{ i am /i'm } here", "i am here", False),
        ("{BREATH} hi", "hi", False),
        ("rock ' n ' roll", "rock 'n' roll", False),
        ("he said ' yes ' and left", "he said 'yes' and left", False),
        ("boys ' toys ' price in the ' 60s", "boys' toys' price in the '60s", False),
    ],
)
def test_words_of_tedlium(transcript: str, text: str, unknown: bool, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/stm/A.stm": f"A 1 A 0 1 <o,f0,male> {transcript}\n", "train/sph/A.sph": 1.0})
    ((item,), _) = read("tedlium", "train", tmp_path)
    assert (item.record["text"], item.record["has_unknown"]) == (text, unknown)


def test_a_segment_without_a_time_costs_itself(tmp_path: Path) -> None:
    times = ("nan 1", "0 nan", "0 inf", "-1 1", "1 1", "2 1", "-inf 1", "0,5 1", "0.5 1")
    lines = [f"a 1 anne {pair} <o> one\n" for pair in times]
    # What is left out needs no place.
    write_tree(tmp_path, {"a.stm": "".join(lines) + "a 1 inter_segment_gap 1 1 <o,f0,>\n", "a.wav": 1.0})
    ((item,), drops) = read("stm", "train", tmp_path)
    assert (item.audio[0].start_s, item.audio[0].end_s) == (0.5, 1.0)
    assert [drop.reason for drop in drops] == ["bad line"] * 8 + ["no speech"]
    assert "a.stm, line 1: from nan s to 1 s; expected 0 <= start < end" in drops[0].detail


@pytest.mark.parametrize("kind", ["stm", "strong_labels"])
def test_of_recordings_of_one_name_the_split_says_which(kind: str, tmp_path: Path) -> None:
    lists = {
        "stm": ("stm", "a 1 anne 0 1 <o> {}\n", "text"),
        "strong_labels": ("tsv", "filename\tonset\toffset\tevent_label\na.wav\t0\t0.1\t{}\n", "labels"),
    }
    extension, line, field = lists[kind]
    files: dict[str, Any] = {f"lists/{name}.{extension}": line.format(name) for name in ("train", "dev", "test")}
    root = write_tree(tmp_path / "in", files | {f"{name}/wav/a.wav": 1.0 for name in ("train", "dev")})
    for split in ("train", "dev"):
        ((item,), _) = read(kind, split, root)
        assert (item.record[field] in (split, [split]), item.audio[0].path) == (True, str(root / split / "wav/a.wav"))
    # Of no split of theirs: nothing is guessed. Of no split at all: that one.
    ((), (drop,)) = read(kind, "test", root)
    assert (drop.reason, drop.filter) == ("ambiguous audio", False)
    assert "dev/wav/a.wav and train/wav/a.wav: expected one recording a" in drop.detail
    write_tree(root, {"clips/a.wav": 1.0})
    ((item,), _) = read(kind, "test", root)
    assert item.audio[0].path == str(root / "clips/a.wav")
    write_tree(root, {"more/a.wav": 1.0})
    ((), (drop,)) = read(kind, "test", root)
    assert "clips/a.wav and more/a.wav" in drop.detail


def test_recordings_are_listed_with_extensions_and_folders_too(tmp_path: Path) -> None:
    names = ("talk", "talk.wav", "old/talk", "v1.0", "x/talk.sph", "b/talk.flac", "none.wav")
    text = "".join(f"{name} 1 anne 0 1 <o> {name}\n" for name in names)
    root = write_tree(tmp_path / "in", {"a.stm": text, "a/talk.wav": 1.0, "a/v1.0.wav": 1.0})
    items, (drop,) = read("stm", "train", root)
    assert [Path(item.audio[0].path).name for item in items] == ["talk.wav"] * 3 + ["v1.0.wav"] + ["talk.wav"] * 2
    assert (drop.reason, drop.detail) == ("missing audio", "no audio file none.* in . or below; listed in a.stm")
    # The folders and extensions that are listed tell files of one name apart.
    write_tree(root, {"b/talk.flac": 1.0})
    items, drops = read("stm", "train", root)
    assert {item.record["text"]: item.audio[0].path for item in items} == {
        "talk.wav": str(root / "a/talk.wav"),
        "v1.0": str(root / "a/v1.0.wav"),
        "b/talk.flac": str(root / "b/talk.flac"),
    }
    assert [drop.reason for drop in drops] == ["ambiguous audio"] * 3 + ["missing audio"]


def test_the_folders_of_another_release_are_not_searched(tmp_path: Path) -> None:
    folders = ("TEDLIUM_release-3/legacy/train", "TEDLIUM_release1/train", "train")
    files: dict[str, Any] = {f"{folder}/stm/A.stm": f"A 1 A 0 1 <o,f0,male> {folder}\n" for folder in folders}
    root = write_tree(tmp_path / "in", files | {f"{folder}/sph/A.sph": 1.0 for folder in folders})
    items, drops = read("tedlium", "train", root)
    found = {item.record["text"]: item.audio[0].path for item in items}
    assert (found, drops) == ({folder: str(root / folder / "sph/A.sph") for folder in folders}, [])


def test_lists_of_segments_are_of_one_split_or_named(tmp_path: Path) -> None:
    line = "a 1 anne 0 1 <o,f0,> {} é\n"
    lists = {f"{name}/{name}.stm": line.format(name) for name in ("train", "dev")}
    root = write_tree(tmp_path / "in", lists | {"a.wav": 1.0})
    for split in ("train", "dev"):
        assert [item.record["text"] for item in read("stm", split, root)[0]] == [f"{split} é"]
    with pytest.raises(ValueError, match=r"no list is of split test: .*name one, path=\[LIST,AUDIO\]"):
        read("stm", "test", root)
    # One that says no split is the training split, and no other.
    (root / "all.stm").write_bytes(line.format("all").encode("latin-1"))
    request = Request((str(root / "all.stm"), str(root)), "train", table=TableForm(encoding="latin-1"))
    assert [item.record["text"] for item in corpus_of("stm").read(request)] == ["all é"]
    with pytest.raises(ValueError, match=r"all\.stm has no column split, so split=test would be"):
        list(corpus_of("stm").read(Request((str(root / "all.stm"), str(root)), "test")))


def fairseq(folder: Path, tsv: str, split: str = "train", **labels: str) -> Path:
    """A folder with a manifest, its transcripts, and one recording."""
    write_tree(
        folder, {f"{split}.tsv": tsv, **{f"{split}.{kind}": text for kind, text in labels.items()}, "a.wav": 0.4}
    )
    return folder


def test_fairseq_manifests_name_files_of_this_or_another_machine(tmp_path: Path) -> None:
    here = fairseq(tmp_path / "here", f"\n{tmp_path}/here/a.wav\t6400\n", wrd="HELLO YOU\n", ltr="X |\n")
    ((item,), drops) = read("fairseq", "train", here)
    assert (item.record, item.audio[0].path, drops) == ({"text": "HELLO YOU"}, str(here / "a.wav"), [])
    there = fairseq(tmp_path / "there", "/data1/kris\na.wav\t6400\n", "valid", wrd="HELLO\n")
    ((item,), _) = read("fairseq", "valid", there, prefix=("/data1/kris", str(there)))
    assert item.audio[0].path == str(there / "a.wav")
    named = Request((str(there / "valid.tsv"), str(there / "valid.wrd")), "valid")
    assert [found.name for found in corpus_of("fairseq").read(named)] == ["valid-00000001"]


def test_fairseq_manifests_that_do_not_fit_their_transcripts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no train\.wrd or train\.ltr next to train\.tsv: give the folder"):
        read("fairseq", "train", fairseq(tmp_path / "none", "/x\na.wav\t6400\n"))
    with pytest.raises(ValueError, match=r"train\.tsv has 1 files and its transcripts have 2 lines"):
        read("fairseq", "train", fairseq(tmp_path / "two", "/x\na.wav\t6400\n", wrd="one\ntwo\n"))
    rows = fairseq(tmp_path / "rows", "/x\na.wav\t6400\nb.wav\n", wrd="one\ntwo\n")
    items, drops = read("fairseq", "train", rows)
    assert ([item.name for item in items], [drop.detail for drop in drops]) == (
        ["train-00000001"],
        ["train.tsv, line 3: 'b.wav'; expected FILE<TAB>FRAMES"],
    )
    (rows / "train.tsv").write_text("")
    with pytest.raises(ValueError, match=r"has 0 files"):
        read("fairseq", "train", rows)


def test_named_lists_are_of_one_split(tmp_path: Path) -> None:
    line = "a 1 anne 0 1 <o,f0,> {}\n"
    event = "filename\tonset\toffset\tevent_label\na.wav\t0\t0.1\t{}\n"
    names = ("train", "dev", "more")
    root = write_tree(
        tmp_path / "in",
        {f"{name}.stm": line.format(name) for name in names}
        | {f"{name}.tsv": event.format(name) for name in names}
        | {"sounds/a.wav": 1.0},
    )

    def of(kind: str, split: str, *lists: str) -> list[str]:
        request = Request((*(str(root / name) for name in lists), str(root / "sounds")), split)
        return [str(item.record.get("text") or item.record["labels"][0]) for item in corpus_of(kind).read(request)]

    for kind, extension in (("stm", "stm"), ("strong_labels", "tsv")):
        lists = [f"{name}.{extension}" for name in names]
        assert of(kind, "dev", *lists) == ["dev"]
        assert of(kind, "train", *lists) == ["train"]
        # Lists that say no split are for training, where none says it.
        assert of(kind, "train", *lists[1:]) == ["more"]
        with pytest.raises(ValueError, match=rf"more\.{extension} has no column split, so split=test would be"):
            of(kind, "test", *lists)
        with pytest.raises(
            ValueError, match=rf"no list is of split test: train\.{extension}, dev\.{extension}; name one"
        ):
            of(kind, "test", *lists[:2])


def test_named_manifests_are_of_one_split(tmp_path: Path) -> None:
    names = ("train", "dev_clean", "dev_other", "parts")
    for name in names:
        fairseq(tmp_path, "/x\na.wav\t6400\n", name, wrd=f"{name}\n")

    def of(split: str, *lists: str) -> list[str]:
        request = Request(tuple(str(tmp_path / f"{name}{end}") for name in lists for end in (".tsv", ".wrd")), split)
        return [item.record["text"] for item in corpus_of("fairseq").read(request)]

    assert of("train", *names) == ["train"]
    assert of("dev_other", *names) == ["dev_other"]
    assert of("dev", *names) == ["dev_clean", "dev_other"]
    assert of("parts", *names) == ["parts"]
    assert of("train", *names[1:]) == ["parts"]
    # One that would be read in place of the other.
    fairseq(tmp_path / "other", "", wrd="")
    with pytest.raises(ValueError, match=r"train\.tsv and .*/other/train\.tsv have one name: give their folder"):
        of("train", "train", "other/train")
    with pytest.raises(ValueError, match=r"no list is of split test: train\.tsv, dev_clean\.tsv, dev_other\.tsv; name"):
        of("test", *names[:3])
    # A manifest of the very name is taken, whatever its folder is called.
    folder = fairseq(tmp_path / "in" / "test", "/x\na.wav\t6400\n", "first", wrd="one\n").parent
    assert [item.record["text"] for item in read("fairseq", "first", folder)[0]] == ["one"]


def test_parts_of_archives_that_are_missing_are_counted(tmp_path: Path) -> None:
    sound = tone("a.wav")
    whole = f"a.wav:0:{len(sound)}\t6400"
    rows = [whole, "none.zip:0:10\t5", f"a.wav:{len(sound)}:10\t5", f"a.wav:0:{1 << 40}\t5", f"a.wav:{1 << 70}:9\t5",
            "folder:0:10\t5"]  # fmt: skip
    home = fairseq(tmp_path / "in", "\n".join([str(tmp_path / "in"), *rows]), wrd="words\n" * len(rows))
    (home / "folder").mkdir()
    config = {"path": str(home), "out": str(tmp_path / "out"), "split": "train", "workers": 0, "error_budget": 1.0}
    (report,) = import_corpus(corpus_of("fairseq"), ImportConfig(**config))
    assert (report.made, report.dropped) == (1, {"missing audio": 1, "bad audio": 4})


@pytest.mark.parametrize(
    "times", [(math.nan, 1.0), (0.0, math.nan), (0.0, math.inf), (-math.inf, 1.0), (1e308, None), (-0.5, 1.0)]
)
def test_a_part_without_a_place_is_bad_audio(times: tuple[float, float | None], tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone("a.wav", 1.0))
    place = Recording(str(tmp_path / "a.wav"), start_s=times[0], end_s=times[1])
    with pytest.raises(BadAudio, match=r"does not lie within the recording of 1\.00 s"):
        wave_of(place, 60, StorageConfig())


@pytest.mark.parametrize("case", [GIGASPEECH, WENETSPEECH], ids=str)
@pytest.mark.parametrize(
    ("field", "value"),
    [("sid", ...), ("text", ...), ("text", None), ("begin_time", ...), ("end_time", None), ("end_time", "nan"),
     ("end_time", 0.0), ("subsets", None)],
)  # fmt: skip
def test_a_segment_that_lacks_a_field_costs_itself(case: Case, field: str, value: Any, tmp_path: Path) -> None:
    listed = next(name for name in case.files if name.endswith(".json"))
    content = json.loads(json.dumps(case.files[listed]))
    segment = content["audios"][0]["segments"][0]
    name = "text_tn" if field == "text" and "text_tn" in segment else field
    segment[name] = value
    if value is ...:
        del segment[name]
    items, drops = read(case.corpus, case.split, write_tree(tmp_path / "in", case.files | {listed: content}))
    (drop,) = (drop for drop in drops if drop.reason == "bad segment")
    assert (len(items), drop.filter) == (len(case.records) - 1, False)
    assert value is not ... or drop.detail.endswith(f"it has no '{name}'")


def test_an_id_of_voxpopuli_without_a_language_costs_its_own_row(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", VOXPOPULI.files)
    language = root / "transcribed_data" / "en"
    table = language / "asr_train.tsv"
    wanted = [item.name for item in read("voxpopuli", "train", root)[0]]
    table.write_text(table.read_text() + "odd\tOne.\tone\t1\ttrain\tmale\tTrue\tNone\n")
    (language / "2013" / "odd.ogg").write_bytes(tone("odd.ogg"))
    items, drops = read("voxpopuli", "train", root)
    assert [item.name for item in items] == wanted
    assert drops[-1].detail == "transcribed_data/en/asr_train.tsv, row 5: expected an id SESSION-LANGUAGE_PLACE"


def test_the_folder_of_another_language_is_not_searched(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", VOXPOPULI.files) / "transcribed_data"
    (root / "en").rename(root / "seven")
    write_tree(root / "en", {"asr_train.tsv": (root / "seven" / "asr_train.tsv").read_bytes()})
    (root / "seven" / "asr_train.tsv").unlink()
    items, drops = read("voxpopuli", "train", root)
    assert (items, [drop.reason for drop in drops]) == ([], ["missing audio", "missing audio", "no text"])


def test_thousands_of_named_lists_are_read_in_time_of_their_number(tmp_path: Path) -> None:
    def took(number: int) -> float:
        root = tmp_path / str(number)
        files = {f"t{i}_dev.stm": f"a 1 anne 0 1 <o> {i}\n" for i in range(number)}
        write_tree(root, files | {"sounds/a.wav": 1.0})
        request = Request((*(str(root / name) for name in files), str(root / "sounds")), "dev")
        start = time.process_time()
        assert sum(1 for _ in corpus_of("stm").read(request)) == number
        return time.process_time() - start

    took(10)
    # Eight times as many take eight times as long; when each list was compared with all, 25 times.
    assert took(1600) < 16 * took(200)
