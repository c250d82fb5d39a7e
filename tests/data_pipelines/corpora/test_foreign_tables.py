"""Tables, lists and folders as people really have them: quotes, marks, encodings, delimiters, other machines' paths."""

from __future__ import annotations

import base64
import json
import unicodedata
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.base import Item, Request, TableForm
from data_pipelines.corpora.formats.delimited import open_table
from data_pipelines.corpora.formats.fields import mapping, record_of
from data_pipelines.corpora.formats.tables import table_files
from data_pipelines.corpora.recordings import WHOLE
from data_pipelines.corpora.table_file import TableFile, class_names
from data_pipelines.corpora.tree import Tree
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from qa_train.data.audio.waveform import read_clip
from qa_train.data.shards.clip_files import spelt
from qa_train.data.shards.index import load_index
from tests.data_pipelines.corpora.made_up import (
    SECONDS,
    Case,
    audio_cell,
    heard,
    pitch_of,
    table_bytes,
    tone,
    write_tree,
)
from tests.data_pipelines.corpora.test_importing import run


def read(folder: Path, text: str | bytes, name: str = "t.csv", **form: Any) -> tuple[list[Any], list[str]]:
    """The rows of a table as lists of cells, or the words of a misfit; and the notes."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    request = Request((str(path),), "train", table=TableForm(**form))
    rows = [row if isinstance(row, str) else list(row.values()) for _, row in open_table(request, name)[1]]
    return rows, request.notes


def texts(folder: Path) -> list[str]:
    """The texts of all imported records, in order."""
    shards = sorted((folder / "out").glob("*.tar"))
    return [json.loads(meta)["text"] for s in shards for meta in load_index(str(s)).table["meta"].to_pylist()]


@pytest.mark.parametrize("mark", ["\t", ",", "|", ";"])
def test_quotation_marks_never_swallow_rows(mark: str, tmp_path: Path) -> None:
    lone = [["1.wav", '"Hello he said'], ["2.wav", "Second line"], ["3.wav", 'third" line'], ["4.wav", '"']]
    swallowing = [["1.wav", '"Hello'], ["2.wav", "Second"], ["3.wav", 'third"']]
    inside = [["1.wav", 'a "b" c'], ["2.wav", "it's 5\""]]
    for rows in (lone, swallowing, inside):
        text = "\n".join(mark.join(row) for row in [["path", "sentence"], *rows])
        found, _ = read(tmp_path, text)
        assert found == rows
    # Really quoted, as every writer of CSV does it: over lines, with the delimiter, with a doubled mark.
    quoted = f'path{mark}sentence\n1.wav{mark}"one{mark} two"\n2.wav{mark}"He said ""no"""\n3.wav{mark}"over\nlines"\n'
    assert read(tmp_path, quoted)[0] == [
        ["1.wav", f"one{mark} two"],
        ["2.wav", 'He said "no"'],
        ["3.wav", "over\nlines"],
    ]
    assert read(tmp_path, f'"path"{mark}"sentence"\n"1.wav"{mark}"one"\n')[0] == [["1.wav", "one"]]
    # Said outright, either way is taken.
    assert read(tmp_path, f'path{mark}s\n1.wav{mark}"a"\n', quoted=False)[0] == [["1.wav", '"a"']]
    assert read(tmp_path, f'path{mark}s\n1.wav{mark}"a"\n', quoted=True)[0] == [["1.wav", "a"]]


def test_rows_that_do_not_fit_are_counted_not_filled_up(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "path,text\n1.wav,a\n2.wav\n3.wav,b,c\n\n4.wav,d\n")
    assert [row for row in rows if isinstance(row, list)] == [["1.wav", "a"], ["4.wav", "d"]]
    assert ["2 cells" not in row for row in rows if isinstance(row, str)] == [True, True]
    assert "line 3: 1 cells, fewer cells than the header" in rows[1]
    lone = 'path,text\n1.wav,"a, b\n2.wav,c\n'
    rows, notes = read(tmp_path, lone)
    assert rows[1] == ["2.wav", "c"]
    assert "3 cells" in rows[0]
    assert notes == ["t.csv: its quotation marks are unbalanced, so each line was read separately"]
    files = {"metadata.csv": "path,text\na.wav,one\na.wav\na.wav,two\n", "a.wav": SECONDS}
    report = run(Case("table", "train", files, {}), tmp_path / "i", error_budget=0.5)
    assert (report.made, report.dropped) == (2, {"row that does not fit": 1})


def test_parts_by_start_and_duration(tmp_path: Path) -> None:
    rows = "path,start,duration,text\na.wav,0.1,0.2,one\na.wav,0.3,0.1,two\n"
    case = Case("table", "train", {"metadata.csv": rows, "a.wav": 0.4}, {})
    report = run(case, tmp_path)
    assert (report.made, round(report.hours * 3600, 2)) == (2, 0.3)
    assert any("start and duration of a row are the part" in note for note in report.notes)
    whole = run(case, tmp_path / "whole", columns={"start": None})
    assert round(whole.hours * 3600, 2) == 0.8


def test_of_two_columns_of_one_name_the_second_is_told(tmp_path: Path) -> None:
    files = {"metadata.csv": "path,text,text,text\na.wav,one,two,three\n", "a.wav": SECONDS}
    report = run(Case("table", "train", files, {}), tmp_path)
    assert texts(tmp_path) == ["one"]
    assert any("columns that were not used: text.1 (1), text.2 (1)" in note for note in report.notes)


def test_another_list_does_not_replace_the_first(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{name}.csv": f"path,text\n{name}.wav,{name}\n" for name in ("one", "two")}
    files |= dict.fromkeys(("one.wav", "two.wav"), SECONDS)
    home = write_tree(tmp_path / "lists", files)
    case = Case("table", "train", {}, {})
    for _ in range(2):
        assert run(case, tmp_path, path=str(home / "one.csv")).made == 1
    with pytest.raises(ValueError, match=r"has an import of .*one\.csv under these names: choose another out="):
        run(case, tmp_path, path=str(home / "two.csv"))
    assert texts(tmp_path) == ["one"]
    # More of the same, another name, or on purpose.
    assert run(case, tmp_path, path=[str(home / "one.csv"), str(home / "two.csv")]).made == 2
    assert run(case, tmp_path, path=str(home / "two.csv"), name="other").made == 1
    assert run(case, tmp_path, path=str(home / "two.csv"), overwrite=True).made == 1


def test_clips_inside_a_list_lie_nowhere_else(tmp_path: Path) -> None:
    row = {"audio": base64.b64encode(tone("a.wav")).decode(), "text": "one"}
    report = run(Case("jsonl", "train", {"a.jsonl": json.dumps(row)}, {}), tmp_path)
    assert not any("outside" in note for note in report.notes)


def test_spaces_after_commas_and_in_names(tmp_path: Path) -> None:
    assert read(tmp_path, 'path, text\na.wav, "hello, you"\nb.wav, "no"\n')[0] == [
        ["a.wav", "hello, you"],
        ["b.wav", "no"],
    ]
    files = {"metadata.csv": "path,text\n a.wav,one\n b.wav,two\n", " a.wav": SECONDS, "b.wav": SECONDS}
    report = run(Case("table", "train", files, {}), tmp_path)
    assert (report.made, texts(tmp_path)) == (2, ["one", "two"])


def test_encodings_are_found_or_asked_for(tmp_path: Path) -> None:
    text = "path,text\na.wav,größer\n"
    for encoding, said in (("utf-8-sig", ""), ("utf-16", ""), ("cp1252", "cp1252"), ("utf-8", "utf-8"), ("utf-8", "")):
        assert read(tmp_path, text.encode(encoding), encoding=said)[0] == [["a.wav", "größer"]]
    for encoding in ("", "ascii", "no-such"):
        with pytest.raises(ValueError, match=r"t\.csv is not in .*encoding=cp1252"):
            read(tmp_path, text.encode("cp1252"), encoding=encoding)
    with pytest.raises(ValueError, match=r"t\.csv is empty"):
        read(tmp_path, b"\xef\xbb\xbf\n")


def test_a_table_of_bars_without_a_line_of_names(tmp_path: Path) -> None:
    """LJSpeech's metadata.csv: id|text|normalised text."""
    lines = ('LJ001-0001|Printing, in the "only" sense|Printing, in the only sense\n'
             'LJ001-0002|in being "modern.|in being "modern.\n')  # fmt: skip
    files = {"metadata.csv": lines, "wavs/LJ001-0001.wav": SECONDS, "wavs/LJ001-0002.wav": SECONDS}
    case = Case("table", "train", files, {})
    with pytest.raises(ValueError, match=r"header=\[audio,text\]"):
        run(case, tmp_path / "a")
    known: dict[str, Any] = {"delimiter": "|", "header": ["audio", "raw", "text"], "extension": "wav"}
    for folder, option in (("b", {"by_name": True}), ("c", {"prefix": ["", "wavs/"]})):
        report = run(case, tmp_path / folder, **known, **option)
        assert report.made == 2
        assert texts(tmp_path / folder) == ["Printing, in the only sense", 'in being "modern.']
        assert any("columns that were not used: raw (2)" in note for note in report.notes)


def test_the_delimiter_of_lists_without_names_is_not_a_comma_of_their_texts(tmp_path: Path) -> None:
    """Lists of VITS and Tacotron 2: path|speaker|text, whose first text may have a comma."""
    lines = ["a/1.wav|83|He sets it in a simple, realistic context.", "a/2.wav|6|I am desperate.", "a/3.wav|7"]
    names = ("audio", "speaker", "text")
    rows, _ = read(tmp_path, "\n".join(lines), "list.txt", header=names)
    assert rows[:2] == [line.split("|") for line in lines[:2]]
    assert "fewer cells" in rows[2]
    for line in ("a/1.wav,one; two", 'a/1.wav,"one, two; three"', "a/1.wav,one | two"):
        rows, _ = read(tmp_path, f"{line}\na/2.wav,three\na/3.wav,four\n", "list.csv", header=("audio", "text"))
        assert [row[0] for row in rows] == ["a/1.wav", "a/2.wav", "a/3.wav"]


def test_a_table_of_sound_events_names_its_importer(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("filename\tonset\toffset\tevent_label\na.wav\t0.0\t0.1\tDog\n")
    with pytest.raises(ValueError, match=r"data import strong_labels"):
        list(corpus_of("table").read(Request((str(tmp_path / "t.tsv"),), "train")))


def lists_of(path: str) -> list[Case]:
    """One clip, listed under that path by every generic list."""
    sound, chat = {"audio/deep/a.wav": SECONDS}, {"query": "?", "response": "x", "text": "one"}
    return [
        Case("table", "train", {"metadata.csv": f"path,text\n{path},one\n", **sound}, {}),
        Case("jsonl", "train", {"a.jsonl": json.dumps({"audio": path, "text": "one"}), **sound}, {}),
        Case("jsonl", "train", {"a.json": json.dumps([chat | {"audios": [path]}]), **sound}, {}),
        Case("kaldi", "train", {"wav.scp": f"a {path}\n", "text": "a one\n", **sound}, {}),
    ]  # fmt: skip


def test_paths_of_another_machine(tmp_path: Path) -> None:
    for number, case in enumerate(lists_of("/home/anne/set/deep/a.wav")):
        folder = tmp_path / str(number)
        with pytest.raises(ValueError, match=r"/home/anne/set/deep/a\.wav does not exist.*prefix=\[OLD,NEW\]"):
            run(case, folder, error_budget=0.0)
        home = folder / "in" / case.corpus
        for option in (
            {"prefix": ["/home/anne/set", "audio"]},
            {"prefix": ["/home/anne/set/", f"{home}/audio/"]},
            {"by_name": True},
        ):
            assert run(case, folder, **option).made == 1, option
            assert texts(folder) == ["one"]
        # Two files of one name: neither is guessed.
        (home / "other").mkdir()
        (home / "other" / "a.wav").write_bytes(tone("a.wav"))
        with pytest.raises(ValueError, match="does not exist"):
            run(case, folder, by_name=True, error_budget=0.0, name="again")
    # Written on Windows, which tells no capitals apart.
    for number, case in enumerate(lists_of("A.wav")):
        folder = tmp_path / f"capitals{number}"
        lists = {name: text for name, text in case.files.items() if not isinstance(text, float)}
        folder.joinpath("sounds").mkdir(parents=True)
        folder.joinpath("sounds", "a.WAV").write_bytes(tone("a.wav"))
        given = [str(write_tree(folder / "lists", lists)), str(folder / "sounds")]
        report = run(case, folder, path=given, by_name=True)
        assert report.made == 1
        assert "1 files were found under names with other capitals, e.g. A.wav as a.WAV" in report.text()
        folder.joinpath("sounds", "A.WAV").write_bytes(tone("b.wav"))
        with pytest.raises(ValueError, match="does not exist"):
            run(case, folder, path=given, by_name=True, error_budget=0.0, name="again")
        folder.joinpath("lists", "A.WAV").write_bytes(tone("b.wav"))
        with pytest.raises(ValueError, match=r"A\.wav does not exist \(but A\.WAV does: .* by_name=true"):
            run(case, folder, path=given[:1], error_budget=0.0, name="alone")
    # The list in one place, the audio in another.
    (tmp_path / "list.csv").write_text("path,text\n/home/anne/a.wav,one\n")
    places = [str(tmp_path / "list.csv"), str(tmp_path / "0" / "in" / "table" / "audio")]
    case = lists_of("a.wav")[0]
    assert run(case, tmp_path / "y", path=places, by_name=True).made == 1
    assert run(case, tmp_path / "z", path=places, prefix=["/home/anne", "deep"]).made == 1
    with pytest.raises(ValueError, match=r"give two, \[OLD,NEW\]"):
        run(lists_of("a.wav")[0], tmp_path / "x", prefix=["a"])


def _with_b(text: str) -> str:
    """The list with its last row once more, of b.wav."""
    last = text.strip("[]\n").rpartition("\n")[2]
    second = last.replace("a.wav", "b.wav") if ".wav" in last or " " not in last else last
    second = second.replace("a ", "b ", 1) if second.startswith("a ") else second
    return f"[{last}, {second}]" if text.startswith("[") else f"{text.rstrip()}\n{second}\n"


@pytest.mark.parametrize("case", lists_of("a.wav"), ids=lambda case: next(iter(case.files)))
def test_a_name_in_two_folders_is_not_guessed(case: Case, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, content in case.files.items():
        if not isinstance(content, float):
            (lists / name).write_text(content)
    kaldi = case.corpus == "kaldi"
    found = [str(lists)] if kaldi else [str(file) for file in lists.iterdir()]
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    (homes[1] / "a.wav").write_bytes(tone("a.wav"))
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w") as archive:
        archive.writestr("a.wav", tone("a.wav"))
    for number, others in enumerate((homes, [homes[1], homes[1]], [tmp_path / "sounds.zip"])):
        assert run(case, tmp_path / str(number), path=found + list(map(str, others))).made == 1
    # One place by several names, and one file in several places, are no two.
    (tmp_path / "link").symlink_to(homes[1])
    same = [homes[1], tmp_path / "link", tmp_path / "one" / ".." / "two", tmp_path / "sounds.zip"]
    assert run(case, tmp_path / "same", path=found + list(map(str, same))).made == 1
    (homes[0] / "a.wav").write_bytes(tone("b.wav"))
    for number, others in enumerate((homes, [homes[0], tmp_path / "sounds.zip"])):
        with pytest.raises(ValueError, match=r"a\.wav is in .* and .*: import them one after the other, or give"):
            run(case, tmp_path / "both", path=found + list(map(str, others)), error_budget=0.0)
        # It costs its own row.
        (homes[0] / "b.wav").write_bytes(tone("b.wav"))
        more = {name: _with_b(text) for name, text in case.files.items() if not isinstance(text, float)}
        places = write_tree(tmp_path / f"lists{number}", more)
        both = [str(places)] if kaldi else [str(file) for file in places.iterdir()]
        report = run(case, tmp_path / f"b{number}", path=both + list(map(str, others)), error_budget=0.5)
        assert (report.made, report.bad) == (1, 1)
    # Beside its list it is meant.
    (lists / "a.wav").write_bytes(tone("a.wav"))
    assert run(case, tmp_path / "beside", path=found[:1] + list(map(str, homes))).made == 1


UMLAUT = unicodedata.normalize("NFC", "für 你好 한글.wav")
# By Info-ZIP's zip 3.0, of a second of a square wave; the name is decomposed, as on a Mac, and not marked as UTF-8.
ZIPPED = base64.b64decode(
    "UEsDBBQAAgAIAPmwfl1hk0BCwwAAACx9AAAjAAAAZnXMiHIg5L2g5aW9IOGEkuGFoeGGq+GEgOGFs+GGry53YXbtzrENQFAYhdGfCd4ICnNIFCRa"
    "BbVEdDqtxKhG8ewgqpOvubnVGYe+r8+IuZ26bT+qFBFF7mryyH8ZKdblWN4d1cfdH8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fH"
    "x8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fH"
    "x8fHx/eb7wFQSwECHgMUAAIACAD5sH5dYZNAQsMAAAAsfQAAIwAAAAAAAAAAAAAApIEAAAAAZnXMiHIg5L2g5aW9IOGEkuGFoeGGq+GEgOGFs+GG"
    "ry53YXZQSwUGAAAAAAEAAQBRAAAABAEAAAAA"
)


@pytest.mark.parametrize("case", lists_of(UMLAUT), ids=lambda case: next(iter(case.files)))
def test_names_of_a_mac_and_of_a_zip_are_found(case: Case, tmp_path: Path) -> None:
    lists = {name: text for name, text in case.files.items() if not isinstance(text, float)}
    decomposed = unicodedata.normalize("NFD", UMLAUT)
    assert decomposed != UMLAUT
    beside = Case(case.corpus, "train", lists | {decomposed: SECONDS}, {})
    assert run(beside, tmp_path / "beside").made == 1
    home = write_tree(tmp_path / "lists", lists)
    found = [str(home)] if case.corpus == "kaldi" else [str(file) for file in home.iterdir()]
    write_tree(tmp_path / "sounds", {decomposed: SECONDS, "more/b.wav": SECONDS})
    write_tree(tmp_path / "above", {f"deep/{decomposed}": SECONDS})
    (tmp_path / "sounds.zip").write_bytes(ZIPPED)
    assert run(case, tmp_path / "folder", path=[*found, str(tmp_path / "sounds")]).made == 1
    assert run(case, tmp_path / "named", path=[*found, str(tmp_path / "above")], by_name=True).made == 1
    assert run(case, tmp_path / "zip", path=[*found, str(tmp_path / "sounds.zip")]).made == 1
    mixed = unicodedata.normalize("NFC", "Müller") + "/" + decomposed
    write_tree(tmp_path / "mixed", {mixed: SECONDS})
    assert spelt(tmp_path / "mixed", unicodedata.normalize("NFC", mixed)) == tmp_path / "mixed" / mixed
    assert spelt(tmp_path / "mixed", "Müller/nö.wav") == tmp_path / "mixed/Müller/nö.wav"
    # A text in place of a name is a file that is not there.
    assert spelt(tmp_path, "好" * 300) == tmp_path / ("好" * 300)
    assert Tree([str(tmp_path / "above")]).by_stem(Path(UMLAUT).stem) == f"deep/{decomposed}"


@pytest.mark.parametrize("case", lists_of("well " * 60), ids=lambda case: next(iter(case.files)))
def test_a_transcript_in_place_of_a_path_is_told(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it names no audio file: 'well well .{,100} \(File name too long\)"):
        run(case, tmp_path, error_budget=0.0)


def test_lists_of_two_languages_are_not_read_as_one(tmp_path: Path) -> None:
    for language in ("de", "fr"):
        (tmp_path / language / "clips").mkdir(parents=True)
        rows = f"client_id\tpath\tsentence\tlocale\ns\t{language}.mp3\tEins.\t{language}\n"
        (tmp_path / language / "train.tsv").write_text(rows)

    def heard_of(*paths: Path) -> list[str]:
        items = corpus_of("common_voice").read(Request(tuple(map(str, paths)), "train"))
        return [item.record["language"] for item in items if isinstance(item, Item)]

    assert heard_of(tmp_path) == ["de", "fr"]
    with pytest.raises(ValueError, match=r"train\.tsv is in .*de and .*fr: .* or give the folder that holds both"):
        heard_of(tmp_path / "de", tmp_path / "fr")


def test_names_of_columns_that_everybody_uses() -> None:
    for audio in ("path", "file", "file_name", "audio_filepath", "wav"):
        for text in ("text", "sentence", "transcript", "transcription"):
            row = {audio: "a.wav", text: "one", "lang": "de-DE", "speaker_id": 7, "who": "x"}
            columns = mapping({}, row)
            assert columns["audio"] == audio
            assert record_of(row, columns) == {"text": "one", "language": "de", "speaker": "7"}
    with pytest.raises(ValueError, match="'label' must be text, found bool"):
        record_of({"label": True}, {"label": "label"})
    codes = {"Mandarin": "zh", "Portuguese": "pt", "zh-HK": "yue", "cmn_hans_cn": "zh", "tlh": "tlh"}
    for said, code in codes.items():
        assert record_of({"text": "one", "lang": said}, mapping({}, ("text", "lang")))["language"] == code
    # A name of our own comes first.
    assert mapping({}, ["path", "audio", "text", "sentence"]) == {"audio": "audio", "text": "text"}
    # A spreadsheet's capitals and spaces; the exact name comes first, and a column that was given is not taken again.
    assert mapping({}, ["Audio", "Text ", "SENTENCE"]) == {"audio": "Audio", "text": "Text "}
    assert mapping({}, ["Text", "text", "File Name"]) == {"audio": "File Name", "text": "text"}
    assert mapping({"label": "Text"}, ["Text", "Transcript", "wav"])["text"] == "Transcript"
    with pytest.raises(ValueError, match=r"e\.g\. columns\.text=who"):
        mapping({}, ["file_name", "who"])


@pytest.mark.parametrize(
    ("columns", "example"),
    [
        (["audio", "file_name"], "COLUMN"), (["path", "id", "duration"], "COLUMN"), (["wav", "key"], "COLUMN"),
        (["file_name", "path", "remark"], "remark"), (["remark", "audio"], "remark"),
    ],
)  # fmt: skip
def test_no_name_of_a_file_is_offered_as_transcript(columns: list[str], example: str) -> None:
    with pytest.raises(ValueError, match=f"columns.text={example} for transcripts"):
        mapping({}, columns)


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "hallo", "lang": "de"}, {"text": "hallo", "language": "de"}),
        (
            {"text": "hello", "source_lang": "de", "target_lang": "en"},
            {"language": "de", "translation": {"en": "hello"}},
        ),
        ({"text": "hello", "source_lang": "en", "target_lang": "en"}, {"language": "en", "text": "hello"}),
        ({"context": "Who?", "answer": "Anne"}, {"question": "Who?", "answer": "Anne"}),
        ({"context": "Who?", "text": "Anne"}, {"question": "Who?", "answer": "Anne"}),
        ({"text": "one", "label": 3, "speaker": 12}, {"text": "one", "label": "3", "speaker": "12"}),
    ],
)
def test_fields_of_nemo(row: dict[str, Any], record: dict[str, Any], tmp_path: Path) -> None:
    whole = {"audio_filepath": "a.wav", "duration": 0.4, "pnc": "yes", **row}
    assert record_of(whole, mapping({}, whole)) == record
    files = {"m.json": json.dumps(whole) + "\n" + json.dumps(whole), "a.wav": SECONDS}
    report = run(Case("jsonl", "train", files, {}), tmp_path)
    assert report.made == 2
    assert any("not used: pnc (2)" in note for note in report.notes)


def test_clips_inside_a_list_are_imported(tmp_path: Path) -> None:
    data = f"data:audio/wav;base64,{base64.b64encode(tone('a.wav')).decode()}"
    rows = [
        {"audio": data, "text": "one"},
        {"messages": [{"role": "user", "content": "<audio>?"}], "audios": [data], "text": "two"},
    ]
    files = {"a.jsonl": b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode()}
    for audio in ("flac", "keep"):
        report = run(Case("jsonl", "train", files, {}), tmp_path / audio, audio=audio)
        assert (report.made, texts(tmp_path / audio)) == (2, ["one", "two"])


def test_chats_whose_clip_has_another_name(tmp_path: Path) -> None:
    """MusicQA's ``audio_name`` and OpenAQA's ``audio_id``; columns.audio= for any other."""
    chat = {"conversation": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A band."}], "text": "one"}
    asked = {"instruction": "What?", "output": "A band.", "text": "one"}
    rows = [chat | {"audio_name": "a.wav"}, asked | {"audio_id": "a.wav"}, asked | {"audio": "a.wav", "audio_id": "7"}]
    files = {"a.jsonl": "\n".join(map(json.dumps, rows)), "a.wav": SECONDS}
    run(Case("jsonl", "train", files, {}), tmp_path)
    (shard,) = (tmp_path / "out").glob("*.tar")
    records = [json.loads(meta) for meta in load_index(str(shard)).table["meta"].to_pylist()]
    assert [record["messages"][0]["content"] for record in records] == ["<audio>What?"] * 3
    assert [record.get("audio_id") for record in records] == [None, None, "7"]
    files["a.jsonl"] = json.dumps(chat | {"meta": {"clip": "a.wav"}}) + "\n" + json.dumps(chat)
    report = run(Case("jsonl", "train", files, {}), tmp_path / "b", columns={"audio": "meta.clip"},
                 error_budget=0.5)  # fmt: skip
    assert (report.made, report.dropped) == (1, {"bad line": 1})


def test_bad_rows_of_a_list_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}], "text": "one"}
    bad = [good | {"rejected_response": "a"}, good | {"images": ["a.png"]}, good | {"label": True}]
    files = {"a.json": json.dumps([*bad, *[good | {"id": i} for i in range(6)]])}
    report = run(Case("jsonl", "train", files, {}), tmp_path, error_budget=0.5)
    assert (report.made, report.dropped) == (6, {"identical pair": 1, "bad line": 2})


def files_of(folder: Path, *names: str, split: str = "train", config: str = "") -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(table_bytes([{"audio": audio_cell("a.wav"), "text": "a"}]))
    found = table_files(Request((str(folder),), split, config=config))
    return [Path(name).relative_to(folder).as_posix() for name in found]


def test_splits_in_parts_are_named_not_mixed(tmp_path: Path) -> None:
    libri = (
        "clean/train.100/0000.parquet",
        "clean/train.360/0000.parquet",
        "clean/test/0000.parquet",
        "other/train.500/0.parquet",
    )
    with pytest.raises(
        ValueError, match=r"split 'train' is train\.100, train\.360 here: .*split=\[train\.100,train\.360\]"
    ):
        files_of(tmp_path / "a", *libri, config="clean")
    assert files_of(tmp_path / "a", split="train.100", config="clean") == [libri[0]]
    assert files_of(tmp_path / "a", split="test", config="clean") == [libri[2]]
    assert files_of(tmp_path / "a", config="other") == [libri[3]]
    chat = (
        "data/train_sft-00000-of-00001.parquet",
        "data/train_gen-00000-of-00001.parquet",
        "data/test_sft-00000-of-00001.parquet",
    )
    with pytest.raises(ValueError, match="split 'train' is train_gen, train_sft here"):
        files_of(tmp_path / "b", *chat)
    assert files_of(tmp_path / "b", split="train_sft") == [chat[0]]
    # Numbered files are one split.
    for i, (one, two) in enumerate((("train-00000-of-00002", "train-00001-of-00002"), ("train_1", "train_2"),
                                    ("a", "b"), ("train/0000", "train/0001"), ("train-001", "train-002"))):  # fmt: skip
        assert files_of(tmp_path / f"c{i}", f"{one}.parquet", f"{two}.parquet") == [f"{one}.parquet", f"{two}.parquet"]
    exact = ("train.parquet", "train_extra.parquet")
    assert files_of(tmp_path / "d", *exact) == ["train.parquet"]


def test_chats_of_a_hugging_face_folder(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<audio>?"}, {"from": "gpt", "value": "Rain."}]
    asked = [{"type": "audio", "text": None}, {"type": "text", "text": "?"}]
    typed = [{"role": "user", "content": asked, "loss": None},
             {"role": "assistant", "content": [{"type": "text", "text": "Rain."}], "loss": False}]  # fmt: skip
    for number, row in enumerate(({"conversations": turns}, {"messages": typed}, {"query": "?", "response": "Rain."},
                                  {"messages": typed[:1], "chosen": "Rain.", "rejected": "Snow."})):  # fmt: skip
        rows = [{"audio": audio_cell("a.wav"), "text": str(i), "channel": "x", **row} for i in range(2)]
        bad = {"rejected": ["Snow.", "Rain."]} if "chosen" in row else {}
        rows = [each | {name: values[i] for name, values in bad.items()} for i, each in enumerate(rows)]
        case = Case("huggingface", "train", {"train.parquet": table_bytes(rows)}, {})
        report = run(case, tmp_path / str(number), error_budget=0.5)
        assert (report.made, report.dropped) == ((1, {"identical pair": 1}) if bad else (2, {}))
        assert any("channel" in note for note in report.notes)
        (shard,) = (tmp_path / str(number) / "out").glob("*.tar")
        record = json.loads(load_index(str(shard)).table["meta"][0].as_py())
        assert record["messages"][0]["content"] == "<audio>?"
        assert record.get("chosen", record["messages"][-1]["content"]) == "Rain."


def test_each_file_of_a_hugging_face_folder_has_its_own_classes_and_columns(tmp_path: Path) -> None:
    """datasets 5.2's load_dataset takes the class names of the first file for all."""

    def classes(*names: str) -> dict[str, Any]:
        return {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}

    rows = [{"audio": audio_cell("a.wav"), "label": number, "text": str(number)} for number in (0, 1)]
    said = [{"audio": audio_cell("a.wav"), "sentence": "two", "more": 7}]
    files = {
        "de/train.parquet": table_bytes(rows, classes("sad", "happy")),
        "en/train.parquet": table_bytes(rows, classes("happy", "sad")),
        "fr/train.parquet": table_bytes(said),
    }
    case = Case("huggingface", "train", files, {})
    report = run(case, tmp_path)
    assert report.made == 5
    assert "columns that were not used: more (1)" in report.text()
    (shard,) = (tmp_path / "out").glob("*.tar")
    records = list(map(json.loads, load_index(str(shard)).table["meta"].to_pylist()))
    assert [record.get("label") for record in records] == ["sad", "happy", "happy", "sad", None]
    assert [record["text"] for record in records] == ["0", "1", "0", "1", "two"]
    # Numbers whose names are not known are no labels that are lost.
    differ = files | {"it/train.parquet": table_bytes(rows)}
    with pytest.raises(ValueError, match=r"it/train\.parquet: column 'label' has numbers without class names"):
        run(Case("huggingface", "train", {n: raw for n, raw in differ.items() if "fr" not in n}, {}), tmp_path / "it")
    # A file that pandas wrote has no class names; those of the others hold only if they agree.
    names = {f"train-0000{i}-of-00002.parquet": table_bytes(rows, *more) for i, more in
             enumerate([[classes("sad", "happy")], []])}  # fmt: skip
    run(Case("huggingface", "train", names, {}), tmp_path / "plain")
    (shard,) = (tmp_path / "plain/out").glob("*.tar")
    found = list(map(json.loads, load_index(str(shard)).table["meta"].to_pylist()))
    assert [record["label"] for record in found] == ["sad", "happy", "sad", "happy"]
    with pytest.raises(ValueError, match=r"fr/train\.parquet: columns: there is no column \['text'\]"):
        run(case, tmp_path / "mapped", columns={"text": "text"})


def test_audio_columns_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    inside = {"ctx": {"audio": audio_cell("a.wav")}, "text": "one"}
    decoded = {"audio": {"array": [0.1, 0.2], "sampling_rate": 16_000, "path": "a.wav"}, "text": "one"}
    for row, column, why in (
        (inside, "", r"no column of \['ctx', 'text'\] contains audio .*dataset\.flatten\(\)"),
        (inside, "ctx.audio", r"no audio column 'ctx\.audio'.*dataset\.flatten\(\)"),
        (decoded, "audio", r"decoded samples \('array'\), expected encoded files: .*datasets\.Audio\(\)"),
        (decoded, "", r"decoded samples \('array'\)"),
    ):
        (tmp_path / "t.parquet").write_bytes(table_bytes([row]))
        request = Request((str(tmp_path / "t.parquet"),), "train", {"audio": column} if column else {})
        with pytest.raises(ValueError, match=rf"t\.parquet: .*{why}"):
            list(corpus_of("huggingface").read(request))


def test_a_number_that_is_not_whole_is_not_cut() -> None:
    assert record_of({"pitch": "60.0", "text": "x"}, {"pitch": "pitch", "text": "text"})["pitch"] == 60
    for number in (1.5, float("inf"), "inf"):
        with pytest.raises(ValueError, match=rf"'velocity' must be a whole number, found '?{number}"):
            record_of({"velocity": number}, {"velocity": "velocity"})


def test_lists_of_clips_in_a_hugging_face_table(tmp_path: Path) -> None:
    """``audios`` of ms-swift and LLaMA-Factory: as many clips as the chat places, in its order."""
    clips = [["a.wav", "b.wav"], ["c.wav"], ["d.wav"]]
    turns = [
        [{"role": "user", "content": f"{'<audio>' * n}?"}, {"role": "assistant", "content": "x"}] for n in (2, 1, 2)
    ]
    rows = [{"audios": list(map(audio_cell, names)), "messages": m} for names, m in zip(clips, turns, strict=True)]
    case = Case("huggingface", "train", {"train.parquet": table_bytes(rows)}, {})
    for audio in ("flac", "keep", "in_place"):
        report = run(case, tmp_path / audio, audio=audio, error_budget=0.5)
        assert (report.made, report.dropped) == (2, {"bad row": 1})
        (shard,) = (tmp_path / audio / "out").glob("*.tar")
        index = load_index(str(shard))
        assert [len(names) for names in index.table["names"].to_pylist()] == [2, 1]
        places = zip(*(chain(*index.table[name].to_pylist()) for name in ("offsets", "sizes")), strict=True)
        with shard.open("rb") as file:
            for name, (offset, size) in zip(("a.wav", "b.wav", "c.wav"), places, strict=True):
                file.seek(offset)
                assert heard(read_clip(file.read(size))) == pytest.approx(pitch_of(name), abs=8)
    plain = [{"audios": [audio_cell("a.wav")], "text": "one"}]
    with pytest.raises(ValueError, match="only chats and pairs are read with several"):
        run(Case("huggingface", "train", {"train.parquet": table_bytes(plain)}, {}), tmp_path / "plain")


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ({"labels": "['dog', \"cat's\"]"}, {"labels": ["dog", "cat's"]}),
        ({"labels": '["dog", "cat"]'}, {"labels": ["dog", "cat"]}),
        ({"labels": [1, 0]}, {"labels": ["cat", "dog"]}),
        # Labels that have brackets themselves.
        ({"labels": "[laughter]"}, {"labels": ["[laughter]"]}),
        ({"labels": "[noise]; [music]"}, {"labels": ["[noise]", "[music]"]}),
        (
            {"events": "[{'label': 'dog', 'start': 0, 'end': 1.5}]"},
            {"events": [{"label": "dog", "start": 0, "end": 1.5}]},
        ),
        # Columns of objects and numbers in which something is missing.
        ({"translation": {"de": "eins", "fr": None}}, {"translation": {"de": "eins"}}),
        ({"age": float("nan"), "pitch": float("nan"), "text": "one"}, {"text": "one"}),
        ({"age": 30.0, "speaker": 7.0, "pitch": 60.0}, {"age": "30", "speaker": "7", "pitch": 60}),
    ],
)
def test_cells_as_pandas_and_arrow_write_them(cell: dict[str, Any], found: dict[str, Any]) -> None:
    assert record_of(cell, {name: name for name in cell}, {"labels": ["dog", "cat"]}) == found


def test_columns_of_translations_say_their_language() -> None:
    """CoVoST 2 on the hub, and SpeechBrain's lists, have the translation as a text."""
    row = {"audio": "a.wav", "sentence": "one", "translation": "eins", "in_french": "un", "in_dutch": None}
    given = {"translation_de": "translation", "translation_fr": "in_french", "translation_nl": "in_dutch"}
    assert record_of(row, mapping(given, row)) == {"text": "one", "translation": {"de": "eins", "fr": "un"}}
    only = {"audio": "a.wav", "translation": "eins"}
    assert record_of(only, mapping({"translation_de": "translation"}, only)) == {"translation": {"de": "eins"}}
    with pytest.raises(ValueError, match=r"of which language, columns\.translation_de=COLUMN"):
        record_of(row, mapping({}, row))


@pytest.mark.parametrize("cell", ["['dog' 'cat']", "[dog, cat]", "['dog'"])
def test_a_list_that_cannot_be_read_is_no_label(cell: str) -> None:
    with pytest.raises(ValueError, match="'labels' must be a list"):
        record_of({"labels": cell}, {"labels": "labels"})


def test_classes_in_lists_have_their_names(tmp_path: Path) -> None:
    listed = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    known = {"info": {"features": {"labels": listed, "tags": [listed["feature"]], "text": {"_type": "Value"}}}}
    (tmp_path / "t.parquet").write_bytes(table_bytes([{"labels": [1], "tags": [0], "text": "x"}], known))
    names = class_names(TableFile(str(tmp_path / "t.parquet")).schema)
    assert names == {"labels": ["dog", "cat"], "tags": ["dog", "cat"]}


def test_the_column_of_row_numbers_is_no_split(tmp_path: Path) -> None:
    """pandas gives it no name."""
    files = {"metadata.csv": ",path,text\n0,a.wav,one\n1,a.wav,two\n", "a.wav": SECONDS}
    assert run(Case("table", "train", files, {}), tmp_path).made == 2


@pytest.mark.parametrize(
    ("row", "samples"),
    [
        ({"offset": "0.1", "duration": "0.2"}, 3200),
        ({"offset": "", "duration": "0.4"}, 6400),
        ({"onset": "0.1", "offset": "0.2"}, 6400),
        ({"onset": "", "offset": "0.2"}, 6400),
    ],
)
def test_tables_and_rows_cut_alike(row: dict[str, str], samples: int, tmp_path: Path) -> None:
    whole = {"audio": "a.wav", "text": "one", **row}
    lists = (
        ("table", {"metadata.csv": f"{','.join(whole)}\n{','.join(whole.values())}\n"}),
        ("jsonl", {"a.jsonl": json.dumps({name: cell or None for name, cell in whole.items()})}),
    )
    for corpus, files in lists:
        run(Case(corpus, "train", {**files, "a.wav": SECONDS}, {}), tmp_path / corpus)
        (shard,) = (tmp_path / corpus / "out").glob("*.tar")
        assert load_index(str(shard)).table["num_samples"].to_pylist() == [[samples]]


@pytest.mark.parametrize(
    ("columns", "have", "found"),
    [
        ({}, ["start", "end"], {"start": "start", "end": "end"}),
        ({"start": "", "end": ""}, ["start", "end"], {}),
        ({}, ["start"], {}),
        ({"start": "from", "end": "to"}, ["from", "to"], {"start": "from", "end": "to"}),
    ],
)
def test_start_and_end_say_which_part_of_a_file_is_meant(
    columns: dict[str, str], have: list[str], found: dict[str, str]
) -> None:
    rest = {"text": "text", "audio": "audio"}
    assert mapping(columns, ["audio", "text", *have], parts=True) == rest | found
    # Of tables that hold the clips themselves, only if it is said.
    assert mapping(columns, ["audio", "text", *have]) == rest | (found if columns else {})


def test_times_that_are_no_part_of_the_file(tmp_path: Path) -> None:
    """Lists of times are fields; what is no time, or beyond the file, is answered with how to import it whole."""
    rows = [{"at": {"file": "a.wav"}, "text": "one", "start": start, "end": end}
            for start, end in (([0.1], [0.2]), ("0:01", "0:02"), (True, {}), (5.0, 9.0))]  # fmt: skip
    files = {"a.jsonl": "\n".join(map(json.dumps, [*rows, {"text": "two", "at": {}}])), "a.wav": SECONDS}
    report = run(Case("jsonl", "train", files, {}), tmp_path, columns={"audio": "at.file"}, error_budget=0.9)
    assert (report.made, report.dropped) == (2, {"bad line": 2, "bad audio": 1})
    examples = [*report.examples["bad line"], *report.examples["bad audio"]]
    assert [WHOLE in example for example in examples] == [True, False, True]
    assert "names the audio: set columns.audio=FIELD" in examples[1]


def test_text_that_is_no_unicode_is_one_bad_row(tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "text": text} for text in ("one", "half \ud83d", "two")]
    report = run(Case("jsonl", "train", {"a.jsonl": "\n".join(map(json.dumps, rows)), "a.wav": SECONDS}, {}), tmp_path)
    assert (report.made, report.dropped) == (2, {"bad text": 1})


def test_paths_of_windows_and_of_addresses(tmp_path: Path) -> None:
    root = tmp_path / "in" / "jsonl"
    for number, path in enumerate(("deep\\one clip.wav", f"file://{root}/deep/one%20clip.wav")):
        files = {"a.jsonl": json.dumps({"audio": path, "text": "one"}), "deep/one clip.wav": SECONDS}
        assert run(Case("jsonl", "train", files, {}), tmp_path, name=str(number)).made == 1


def test_reports_hold_the_notes(tmp_path: Path) -> None:
    files = {"metadata.csv": "path,sentence,mood_of_day\na.wav,one,x\n", "a.wav": SECONDS}
    report = run(Case("table", "train", files, {}), tmp_path)
    assert isinstance(report, Report)
    assert "note: columns that were not used: mood_of_day (1)" in report.text()
