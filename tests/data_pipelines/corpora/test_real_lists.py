"""Readers against excerpts of the lists that are really published (``real/README.md`` names the sources)."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from data_pipelines.corpora.base import Drop, Item, Request
from data_pipelines.importing.admission import Admission, Entry
from data_pipelines.importing.catalogue import corpus_of
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import score

REAL = Path(__file__).parent / "real"


def read(corpus: str, split: str, root: Path, **request: Any) -> tuple[list[Item], list[Drop]]:
    """What a reader finds: items and drops."""
    found = list(corpus_of(corpus).read(Request((str(root),), split, **request)))
    return [f for f in found if isinstance(f, Item)], [f for f in found if isinstance(f, Drop)]


def test_slurp_keeps_every_line_with_its_entities(tmp_path: Path) -> None:
    raw = (REAL / "slurp_devel.jsonl").read_bytes()
    (tmp_path / "devel.jsonl").write_bytes(raw)
    (tmp_path / "slurp_real").mkdir()
    (tmp_path / "slurp_real" / "audio-1.flac").touch()
    items, drops = read("slurp", "devel", tmp_path)
    rows = [json.loads(line) for line in raw.splitlines()]
    assert drops == []
    assert [item.name for item in items] == [Path(r["file"]).stem for row in rows for r in row["recordings"]]
    of = {item.name: item.record for item in items}
    assert {record["intent"] for record in of.values()} == {f"{row['scenario']}_{row['action']}" for row in rows}
    assert any(row["intent"] != f"{row['scenario']}_{row['action']}" for row in rows)
    for row in rows:
        record = of[Path(row["recordings"][0]["file"]).stem]
        words = [token["surface"] for token in row["tokens"]]
        # The spans of the line's own entities are words of a tokenizer that parts "jean's".
        spans = [(e["type"], "".join(words[place] for place in e["span"]).lower()) for e in row["entities"]]
        found = [(e["type"], e["value"].replace(" ", "").lower()) for e in record.get("entities", [])]
        assert found == spans
        assert all(entity["value"] in row["sentence"] for entity in record.get("entities", []))
    assert of["audio-1434542201"]["slots"] == {"currency_name": "american dollar, japanese yen"}
    assert of["audio-1434542201"]["intent"] == "qa_currency"


def test_audioset_keeps_every_segment_and_label(tmp_path: Path) -> None:
    lines = (REAL / "audioset_eval_segments.csv").read_text().splitlines()
    rows = [line.split(", ", 3) for line in lines if not line.startswith(("#", "YTID"))]
    (tmp_path / "eval_segments.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "class_labels_indices.csv").write_bytes((REAL / "audioset_class_labels_indices.csv").read_bytes())
    (tmp_path / "eval").mkdir()
    for video, *_ in rows[1:]:
        (tmp_path / "eval" / f"{video}.flac").touch()
    items, drops = read("audioset", "eval", tmp_path)
    # Videos vanish: what is not there is counted as not obtained, names that begin with a dash included.
    assert [(drop.name, drop.reason) for drop in drops] == [(rows[0][0], "audio not obtained")]
    assert [item.name for item in items] == [video for video, *_ in rows[1:]]
    with (REAL / "audioset_class_labels_indices.csv").open() as file:
        names = {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    for item, (_, _, _, mids) in zip(items, rows[1:], strict=True):
        assert item.record["labels"] == [names[mid] for mid in mids.strip('"').split(",")]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"Two kinds, ""public"" and ""private""."', 'Two kinds, "public" and "private".'),
        ('"""Jen mi"" ekkriis Alicio."', '"Jen mi" ekkriis Alicio.'),
        ('"The water is warm!"""', 'The water is warm!"'),
        # As other releases have it: a quotation, a lone mark, and marks that no writer doubled.
        ('"Wkrótce już zupełnie się ściemni."', '"Wkrótce już zupełnie się ściemni."'),
        ('He said "no', 'He said "no'),
        ('"" no "" "yes"', '"" no "" "yes"'),
        ('"', '"'),
    ],
)
def test_common_voice_is_read_as_each_release_quotes_it(cell: str, text: str, tmp_path: Path) -> None:
    rows = f"client_id\tpath\tsentence\taccent\tlocale\nme\ta.mp3\t{cell}\t{cell} \ten\n"
    (tmp_path / "train.tsv").write_text(rows)
    (tmp_path / "test.tsv").write_text(rows.replace("a.mp3", "b.mp3"))
    ((item,), drops) = read("common_voice", "train", tmp_path)
    assert (item.record["text"], drops) == (text, [])
    benchmark = replace(next(iter(find_benchmarks(["common_voice_en"]))), path="", released=None, where={})
    assert [row["gt"] for row in read_rows(benchmark, tmp_path)] == [text]


def test_clotho_keeps_names_that_begin_with_a_space_or_differ_by_one(tmp_path: Path) -> None:
    files = [" Ambience Birds.wav", "Car Keys.wav", "Car_Keys.wav", "Rain .wav"]
    lines = ["file_name,caption_1", *(f"{file},{number}" for number, file in enumerate(files))]
    (tmp_path / "clotho_captions_development.csv").write_text("\n".join(lines))
    (tmp_path / "development").mkdir()
    for file in files:
        (tmp_path / "development" / file).touch()
    items, drops = read("clotho", "development", tmp_path)
    assert [Path(item.audio[0].path).name for item in items] == files
    admission = Admission(corpus_of("clotho"), "development", "c", "clotho")
    entries = [admission.judge(found) for found in (*items, *items[:3])]
    keys = [entry.key for entry in entries if isinstance(entry, Entry)]
    assert keys[:2] == ["c-Ambience_Birds", "c-Car_Keys"]
    assert (len(set(keys)), keys[2][:11], drops) == (4, "c-Car_Keys-", [])
    assert [entry.reason for entry in entries[4:] if isinstance(entry, Drop)] == ["duplicate name"] * 3


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 147300685\n", "a Git LFS pointer"),
        ("\n<!DOCTYPE html><html>", "an HTML page"),
    ],
)
def test_what_stands_in_the_place_of_a_list_is_named(head: str, what: str, tmp_path: Path) -> None:
    for corpus, name in (("wavcaps", "json_files/FreeSound/a.json"), ("table", "a.csv"), ("lhotse", "cuts.jsonl.gz")):
        path = tmp_path / corpus / name
        path.parent.mkdir(parents=True)
        path.write_text(head)
        with pytest.raises(ValueError, match=rf"{path.name} is not a list but {what}"):
            read(corpus, "train", tmp_path / corpus)


def test_a_list_of_names_that_begin_like_a_format_is_a_list(tmp_path: Path) -> None:
    for name in ("bzhang_001", "MTHD-1", "bzh", "pk\x03\x04"):
        (tmp_path / "wav.scp").write_text(f"{name} a.wav\n")
        (tmp_path / "text").write_text(f"{name} hello\n")
        assert [item.name for item in read("kaldi", "train", tmp_path)[0]] == [name]


def strong(folder: Path, split: str, clips: str, **lists: str) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The labels of each clip, and the reason of each drop; names of ``lists`` have "__" for "/" and "_" for "."."""
    for clip in clips:
        (folder / f"{clip}.wav").touch()
    for name, text in lists.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    items, drops = read("strong_labels", split, folder)
    return {item.name: item.record["labels"] for item in items}, {drop.name: drop.reason for drop in drops}


EVENTS = "filename\tonset\toffset\tevent_label\n"
EVENT = "onset\toffset\tevent_label\n0.1\t0.2\tDog\n"


def test_lists_of_sound_events_are_of_one_split(tmp_path: Path) -> None:
    tables = {name: f"{EVENTS}{clip}.wav\t0.1\t0.2\tDog\n" for clip, name in zip("ab", ("train", "test"), strict=True)}
    layouts = (
        {f"metadata__{name}_tsv": text for name, text in tables.items()} | {"README_txt": "Sounds, many.\n"},
        {"train__a_tsv": EVENT, "test__b_tsv": EVENT, "validate__c_tsv": EVENT},
    )
    for number, lists in enumerate(layouts):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert strong(folder, "train", "abc", **lists) == ({"a": ["Dog"]}, {})
        assert strong(folder, "test", "abc") == ({"b": ["Dog"]}, {})
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match=r"no list says that it is of split train .*path=\[LIST,AUDIO\]"):
        strong(tmp_path / "two", "train", "ab", fold1_tsv=tables["train"], fold2_tsv=tables["test"])
    (tmp_path / "each").mkdir()
    assert strong(tmp_path / "each", "train", "ab", a_ann=EVENT, b_ann=EVENT)[0] == {"a": ["Dog"], "b": ["Dog"]}


def test_one_odd_list_of_sound_events_costs_itself(tmp_path: Path) -> None:
    cells = ("nan\t1\tDog", "0\tinf\tDog", "0.2\t0.1\tDog", "0.1\t0.2\t_")
    table = EVENTS + "a.wav\t0.1\t0.2\tDog\n" + "".join(f"a.wav\t{cell}\n" for cell in cells)
    found, drops = strong(tmp_path, "train", "ab", README_txt="Sounds, many.\n", e_tsv=table, b_txt="", c_txt="\n")
    assert found == {"a": ["Dog"]}
    assert drops == {f"e.tsv-{line}": "bad cell" for line in range(3, 7)} | {"b": "no events"}
    request = Request((str(tmp_path),), "train")
    list(corpus_of("strong_labels").read(request))
    assert request.notes == ["without the columns of a list, not read: 2 (README.txt, c.txt)"]
    with pytest.raises(ValueError, match=r"README\.txt: no column"):
        read("strong_labels", "train", tmp_path / "README.txt")


def test_lhotse_manifests_are_arrays_too_and_of_before_version_08(tmp_path: Path) -> None:
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0}
    heard = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "one"}
    cut = {"id": "c", "type": "Cut", "start": 0.0, "duration": 1.0, "channel": 0, "recording": recording}
    manifests = {"recordings.json": [recording], "supervisions.json": [heard]}
    for folder, lists in (("cuts", {"cuts.json": [cut | {"supervisions": [heard]}]}), ("apart", manifests)):
        (tmp_path / folder).mkdir()
        for name, rows in lists.items():
            (tmp_path / folder / name).write_text(json.dumps(rows, indent=2))
        ((item,), drops) = read("lhotse", "train", tmp_path / folder)
        assert (item.record["text"], Path(item.audio[0].path).name, drops) == ("one", "a.wav", [])


def covost(folder: Path) -> dict[str, str]:
    """CoVoST 2 en-de beside Common Voice 4, written by the options of get_covost_splits.py; clip -> translation."""
    draw = random.Random(7)
    words = ['"Gut', 'so"', "sagte", "er,", "C:\\temp", "\\", "„ja“", "und", "'s", "50", "%"]
    rows = [(f"common_voice_en_{i}.mp3", " ".join(draw.choices(words, k=6)), " ".join(draw.choices(words, k=5)))
            for i in range(60)]  # fmt: skip
    splits = ["train", "train_covost", "dev", "test"]
    options: dict[str, Any] = {"sep": "\t", "index": False, "escapechar": "\\", "quoting": csv.QUOTE_NONE}
    (folder / "en").mkdir(parents=True)
    table = pandas.DataFrame(rows, columns=["path", "sentence", "translation"]).assign(
        client_id="me", split=[splits[i % 4] for i in range(60)]
    )
    table[["client_id", "path", "sentence"]].to_csv(folder / "en" / "validated.tsv", **options)
    table[["path", "translation", "split"]].to_csv(folder / "covost_v2.en_de.tsv", **options)
    for split in ("train", "dev", "test"):
        part = table[table["split"].str.replace("_covost", "") == split]
        part[["path", "sentence", "translation", "client_id"]].to_csv(
            folder / f"covost_v2.en_de.{split}.tsv", **options
        )
    return {path: translation for path, _, translation in rows}


@pytest.mark.parametrize("lists", ["both", "published", "splits"])
def test_covost_is_read_as_its_script_reads_it_beside_the_files_that_it_makes(lists: str, tmp_path: Path) -> None:
    wanted = covost(tmp_path)
    for path in tmp_path.glob("covost_v2.*"):
        if lists != "both" and (path.name.count(".") == 2) != (lists == "published"):
            path.unlink()
    assert any("\\" in text for text in wanted.values())
    found: dict[str, str] = {}
    for split, count in (("train", 30), ("dev", 15), ("test", 15)):
        items, drops = read("covost2", split, tmp_path)
        assert (len(items), drops) == (count, [])
        found |= {item.name.removesuffix("-de") + ".mp3": item.record["translation"]["de"] for item in items}
        official = pandas.read_csv(tmp_path / "en" / "validated.tsv", sep="\t", escapechar="\\",
                                   quoting=csv.QUOTE_NONE, na_filter=False)  # fmt: skip
        sentences = dict(zip(official["path"], official["sentence"], strict=True))
        for item in items:
            assert item.record["text"] == sentences[item.name.removesuffix("-de") + ".mp3"]
    assert found == wanted
    benchmark = next(entry for entry in find_benchmarks(["covost2_en_de"]))
    if lists != "published":
        (tmp_path / "covost2").mkdir()
        (tmp_path / "covost2" / "en").symlink_to(tmp_path)
        rows = read_rows(benchmark, tmp_path)
        assert [row["gt"] for row in rows] == [wanted[row["id"]] for row in rows]
        predictions = [Prediction(wanted[row["id"]], (row["gt"],), "de") for row in rows]
        assert score("bleu", predictions).value == pytest.approx(100.0)


def test_rows_of_lists_say_what_they_lack(tmp_path: Path) -> None:
    """Rows as SLAM-LLM, MMAU and SALMONN write them."""
    rows = [
        {"key": "a", "task": "ASR", "target": "hello", "path": "a.wav"},
        {"question": "What?", "answer": "Rain.", "recording": "a.wav"},
        {"audio_id": "./a.wav", "question": "What?", "choices": ["Rain.", "Wind."], "answer": "Rain."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items, drops = read("jsonl", "train", tmp_path)
    assert [drop.detail.partition(": ")[2] for drop in drops] == [
        "no column of ['key', 'task', 'target', 'path'] is a record field: map them, e.g. columns.text=target for "
        "transcripts or columns.label=target for classes",
        "none of question, answer, recording names the audio: set columns.audio=FIELD",
    ]
    assert [Path(item.audio[0].path).name for item in items] == ["a.wav"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"annotation": [{"path": "a.wav", "text": "hi"}]}, indent=1))
    items, drops = read("jsonl", "train", tmp_path)
    assert [item.record for item in items] == [{"text": "hi"}]
    assert not drops
