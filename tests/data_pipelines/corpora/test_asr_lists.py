"""Lists of speech corpora and of fairseq, in the forms that they are found in."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from data_pipelines.corpora.base import Request, TableForm
from data_pipelines.importing.catalogue import corpus_of
from tests.data_pipelines.corpora.made_up import tone, write_tree
from tests.data_pipelines.corpora.speech_cases import MLS, VOXPOPULI, WENETSPEECH
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
    lines = ["a 1 anne 0 1 <o> one <unk> three", "a 1 anne 1 2 <unk>", "a 1 anne 2 3 <o> four"]
    write_tree(tmp_path, {"a.stm": "\n".join(lines) + "\n", "a.wav": 3.0})
    request = Request((str(tmp_path),), "train")
    found = list(corpus_of("stm").read(request))
    assert [item.name for item in found] == ["a-00001", "a-00002", "a-00003"]
    assert request.notes == ["texts without a word that their list marks as <unk>: 1"]


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
