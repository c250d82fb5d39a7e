"""The table of benchmarks, a user's own, and the readers on tiny copies of the official layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qa_train.eval.benchmarks.benchmark import Benchmark, from_dict
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks, read_table
from qa_train.eval.predict import question_of
from qa_train.eval.scoring import _doubts, score_rows

SUITES = ["qwen2_audio", "airbench", "mcq", "voicebench", "captions", "reasoning", "long_form"]


def text(path: Path, lines: str | list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines if isinstance(lines, str) else json.dumps(lines), encoding="utf-8")
    return path


def test_the_reports_table_is_there_in_full() -> None:
    found = {b.name: b for b in find_benchmarks(["qwen2_audio"])}
    assert len(found) == 4 + 4 + 1 + 3 + 7 + 2
    assert all({"paper", "hf"} <= b.numbers.keys() for b in found.values())
    assert all(b.template == "base" and b.rule and b.comparable for b in found.values())
    asr = [b for b in found.values() if b.metric == "wer"]
    assert {b.prompt for b in asr} == {f"Detect the language and recognize the speech: <|{b.language}|>" for b in asr}
    assert found["librispeech_clean"].numbers["hf"] == 1.7
    assert found["covost2_en_zh"].prompt == "Detect the language and translate the speech into Mandarin: <|en|>"
    assert found["covost2_zh_en"].prompt == "Detect the language and translate the speech into English: <|zh|>"
    assert {b.language for n, b in found.items() if n.startswith("covost2")} == {"de", "en", "zh"}
    assert found["meld"].metric == found["vocalsound"].metric == "exact"


def test_airbench_table() -> None:
    foundation, chat = find_benchmarks(["airbench"])
    assert len(foundation.group_numbers) == 19
    assert chat.group_numbers["mixed"]["paper"] == 6.77
    # The published averages are those of their cells, but for two that AIR-Bench printed otherwise.
    for system, average in chat.numbers.items():
        cells = [numbers[system] for numbers in chat.group_numbers.values()]
        assert len(cells) == 4
        assert (abs(sum(cells) / 4 - average) < 0.011) == (system not in ("NExT-GPT", "Macaw-LLM")), system
    for entry in find_benchmarks(SUITES):
        assert from_dict(json.loads(json.dumps(entry.as_dict()))) == entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a: {reader: jsonl, path: x}", "metric must be given as text"),
        ("a: {reader: jsonl, path: x, metric: f2}", "metric 'f2' is unknown: use one of"),
        ("a: {reader: jsonl, path: x, metric: wer, also: cer}", "also is 'cer': give a list of metrics"),
        ("a: {reader: jsonl, path: x, metric: wer, also: [f2]}", r"also: metric 'f2' is unknown"),
        ("a: {reader: jsonl, path: x, metric: none, also: [cer]}", "also has no effect with metric 'none'"),
        ("a: {reader: zip, path: x, metric: wer}", "reader 'zip' is unknown"),
        ("a: {reader: meld, path: x, metric: wer, shuffle_options: 1}", "shuffle_options has no effect on reader"),
        ("a: {reader: jsonl, path: x, metric: wer, colour: red}", r"unknown keys \['colour'\]"),
        ("a: {reader: jsonl, path: x, metric: wer, template: qa}", "use base or chat"),
        ("a: 3", "a: expected a mapping"),
    ],
)
def test_a_wrong_entry_names_file_and_entry(tmp_path: Path, entry: str, message: str) -> None:
    path = text(tmp_path / "mine.yaml", f"benchmarks:\n  {entry}\n")
    with pytest.raises(ValueError, match=message) as error:
        read_table(path)
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "must not be empty or contain /"),
        ({"name": ".."}, "must not be empty or contain /"),
        ({"numbers": {"paper": "81 %"}}, r"numbers must be {system: number}, found {'paper': '81 %'}"),
        ({"group_numbers": {"a": 1.0}}, "numbers must be {system: number}"),
    ],
)
def test_names_and_numbers_that_would_break_the_report(change: dict[str, Any], message: str) -> None:
    values = {"name": "a", "metric": "wer", "reader": "jsonl", "path": "x"}
    with pytest.raises(ValueError, match=message):
        from_dict(values | change)


def test_unknown_names_and_files() -> None:
    with pytest.raises(
        ValueError, match=r"no benchmark 'librispeach'; did you mean librispeech_other. suites are airbench, captions"
    ):
        find_benchmarks(["librispeach"])
    with pytest.raises(ValueError, match="named twice: meld"):
        find_benchmarks(["meld", "qwen2_audio"])
    with pytest.raises(ValueError, match="no benchmark file"):
        find_benchmarks(["none.yaml"])


def test_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    text(tmp_path / "calls.jsonl", "\n".join(json.dumps(r) for r in [
        {"audio": "a.wav", "gt": ["yes", "yeah"], "source": "calls_en"},
        {"audio": "b.wav", "gt": "no", "source": "calls_en", "language": "en"},
        {"audio": "c.wav", "gt": "non", "source": "calls_fr"},
    ]))  # fmt: skip
    path = text(
        tmp_path / "mine.yaml",
        "benchmarks:\n  calls:\n    reader: jsonl\n    path: calls.jsonl\n    source: _en$\n"
        "    prompt: Did they agree?\n    metric: accuracy\n    template: chat\n",
    )
    (mine,) = find_benchmarks([str(path)])
    rows = read_rows(mine, tmp_path / "elsewhere")
    assert [row["gt"] for row in rows] == [["yes", "yeah"], "no"]
    question = question_of(mine, rows[0])
    assert question.references == ("yes", "yeah")
    assert question.sample.template == "chat"
    with pytest.raises(ValueError, match=r"sources are \['calls_en', 'calls_fr'\]"):
        read_rows(from_dict(mine.as_dict() | {"source": "calls_de"}), tmp_path)
    with pytest.raises(ValueError, match="no prompt"):
        question_of(from_dict(mine.as_dict() | {"prompt": None}), rows[0])
    text(tmp_path / "calls.jsonl", '{"audio": "http://x/a.wav", "gt": "a", "source": "calls_en"}')
    with pytest.raises(ValueError, match="line 1: audio is a URL"):
        read_rows(mine, tmp_path)


def only(name: str) -> Benchmark:
    (found,) = find_benchmarks([name])
    return found


@pytest.mark.parametrize(
    "fields", [{"choices": "yes,no"}, {"choices": ["yes", 1]}, {"gt": ["yes", None]}, {"choices": {"A": "yes"}}]
)
def test_lists_that_are_none_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    text(tmp_path / "my.yaml", "benchmarks: {x: {reader: jsonl, path: x.jsonl, prompt: Q, metric: choice}}")
    text(tmp_path / "x.jsonl", json.dumps({"audio": "a.wav", "gt": "yes", "choices": ["yes", "no"]} | fields))
    (benchmark,) = find_benchmarks([str(tmp_path / "my.yaml")])
    with pytest.raises(ValueError, match=r"x.jsonl, line 1: (gt|choices) must be a list of texts, found"):
        read_rows(benchmark, tmp_path)


def test_missing_data_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*LibriSpeech/test-clean, nor the released librispeech_eval.jsonl"):
        read_rows(only("librispeech_clean"), tmp_path)


def test_speech_layouts(tmp_path: Path) -> None:
    text(tmp_path / "LibriSpeech/test-clean/1/2/1-2.trans.txt", "1-2-0000 HELLO THERE\n1-2-0001 YES\n")
    rows = read_rows(only("librispeech_clean"), tmp_path)
    assert [(r["id"], r["gt"]) for r in rows] == [("1-2-0000", "HELLO THERE"), ("1-2-0001", "YES")]
    assert Path(rows[0]["audio"]).name == "1-2-0000.flac"
    text(tmp_path / "cv-corpus-15.0-2023-09-08/fr/test.tsv", 'client_id\tpath\tsentence\nx\ta.mp3\tIl dit "oui\n')
    (row,) = read_rows(only("common_voice_fr"), tmp_path)
    assert (row["gt"], Path(row["audio"]).parts[-2:]) == ('Il dit "oui', ("clips", "a.mp3"))
    text(
        tmp_path / "fleurs/cmn_hans_cn/test.tsv",
        "7\ta.wav\t你好。\t你 好\tx\t1\tMALE\n7\tb.wav\t好。\t好\tx\t1\tMALE\n",
    )
    assert [r["gt"] for r in read_rows(only("fleurs_zh"), tmp_path)] == ["你好。", "好。"]
    text(tmp_path / "AISHELL-2/ios/test/wav.scp", "K1\twav/C1/K1.wav\n")
    text(tmp_path / "AISHELL-2/ios/test/trans.txt", "K1\t今天 天气\n")
    assert read_rows(only("aishell2_ios"), tmp_path)[0]["gt"] == "今天 天气"
    text(tmp_path / "covost2/en/covost_v2.en_de.test.tsv", "path\tsentence\ttranslation\nc.mp3\tHi\tHallo\n")
    assert read_rows(only("covost2_en_de"), tmp_path)[0]["gt"] == "Hallo"
    with pytest.raises(ValueError, match="expected one covost_v2"):
        read_rows(only("covost2_en_zh"), tmp_path)


def test_earnings_calls_are_whole_recordings(tmp_path: Path) -> None:
    """Made words in both heads of the published files; marks of sounds are no words."""
    root = tmp_path / "earnings22"
    head = "token|speaker|ts|endTs|punctuation|prepunctuation|case|tags\n"
    words = "Good|0|||||UC|[]\nday|0|||,||LC|[]\n<laugh>|0|||||LC|[]\nEUR1.5|0|||.|(|CA|['1:MONEY']\n"
    text(root / "transcripts/nlp_references/44-Call.nlp", head + words)
    text(root / "transcripts/nlp_references/9.nlp", f'{head}<inaudible>|0|||.||LC|[]\n"Yes"|1|||||UC|[]\n')
    text(root / "media/44-Call.mp3", "")
    text(root / "metadata.csv", "File ID,Ticker Symbol,Major Dialect Family\n44-Call,X,Oceanic\n")
    first, second = read_rows(only("earnings22"), tmp_path)
    assert (first["id"], first["gt"], first["group"]) == ("44-Call", "Good day, (EUR1.5.", "Oceanic")
    assert first["audio"] == str(root / "media/44-Call.mp3")
    assert (second["gt"], second["group"]) == ('"Yes"', None)
    head = "token|speaker|ts|endTs|punctuation|case|tags|wer_tags\n"
    words = "Good|0||||UC|[]|[]\nmorning|0|||?|LC|[]|['4']\n"
    text(tmp_path / "earnings21/transcripts/nlp_references/1.nlp", head + words)
    (row,) = read_rows(only("earnings21"), tmp_path)
    assert row["gt"] == "Good morning?"
    assert question_of(only("earnings21"), row).language == "en"


def test_the_released_file_goes_before_the_layout(tmp_path: Path) -> None:
    rows = [
        {"audio": "clean/a.flac", "prompt": "p", "gt": "a", "source": "librispeech_test_clean"},
        {"audio": "other/b.flac", "prompt": "p", "gt": "b", "source": "librispeech_test_other"},
    ]
    text(tmp_path / "librispeech_eval.jsonl", "\n".join(json.dumps(r) for r in rows))
    (row,) = read_rows(only("librispeech_other"), tmp_path)
    assert (row["gt"], row["audio"]) == ("b", str(tmp_path / "other/b.flac"))


def test_label_layouts(tmp_path: Path) -> None:
    text(tmp_path / "MELD/test_sent_emo.csv", 'Utterance,Emotion,Dialogue_ID,Utterance_ID\n"Oh, no",sadness,3,4\n')
    (row,) = read_rows(only("meld"), tmp_path)
    assert (row["id"], row["gt"]) == ("dia3_utt4", "sadness")
    text(tmp_path / "vocalsound/class_labels_indices_vs.csv", "index,mid,display_name\n0,/m/1,Laughter\n1,/m/2,Sigh\n")
    text(tmp_path / "vocalsound/datafiles/te.json", '{"data": [{"wav": "/old/f1_sigh.wav", "labels": "/m/2"}]}')
    (row,) = read_rows(only("vocalsound"), tmp_path)
    assert (row["gt"], Path(row["audio"]).parts[-2:]) == ("Sigh", ("audio_16k", "f1_sigh.wav"))


def test_caption_layouts(tmp_path: Path) -> None:
    head = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6))
    text(tmp_path / "clotho/clotho_captions_evaluation.csv", f'{head}\nrain 1.wav,"Rain, falls.",b,c,d,e\n')
    (row,) = read_rows(only("clotho"), tmp_path)
    assert row["gt"] == ["Rain, falls.", "b", "c", "d", "e"]
    assert Path(row["audio"]).parts[-2:] == ("evaluation", "rain 1.wav")
    lines = "audiocap_id,youtube_id,start_time,caption\n1,vid,30,a\n2,other,0,x\n3,vid,30,b\n"
    text(tmp_path / "audiocaps/test.csv", lines)
    text(tmp_path / "audiocaps/audio/Yvid_30.flac", "")
    rows = read_rows(only("audiocaps"), tmp_path)
    assert [(r["id"], r["gt"]) for r in rows] == [("vid_30", ["a", "b"]), ("other_0", ["x"])]
    assert [Path(r["audio"]).name for r in rows] == ["Yvid_30.flac", "other_0.wav"]


def test_airbench_layouts(tmp_path: Path) -> None:
    items = [
        {"path": "x.wav", "question": "When?", "choice_a": "now", "choice_b": "then", "answer_gt": "then",
         "task_name": "Audio_Grounding", "dataset_name": "AudioGrounding", "uniq_id": 5},
        {"path": "y.wav", "question": "Who?", "choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d",
         "answer_gt": "c", "task_name": "Sound_AQA", "dataset_name": "avqa", "uniq_id": 5},
    ]  # fmt: skip
    text(tmp_path / "Foundation/Foundation_meta.json", items)
    foundation = only("airbench_foundation")
    first, second = read_rows(foundation, tmp_path)
    assert Path(first["audio"]).parts[-2:] == ("Audio_Grounding_AudioGrounding", "x.flac")
    assert first["prompt"].split("\n")[1:] == ["When?", "A. now", "B. then", "C. None", "D. None"]
    assert second["choices"] == ["a", "b", "c", "d"]
    assert question_of(foundation, second).references == ("c",)
    task = from_dict(foundation.as_dict() | {"where": {"task_name": "Sound_AQA"}})
    assert [row["group"] for row in read_rows(task, tmp_path)] == ["Sound_AQA_avqa"]
    items[0]["answer_gt"] = "never"
    text(tmp_path / "Foundation/Foundation_meta.json", items)
    # An odd row of the published list is no reason to measure nothing: it is never right, and the report says so.
    odd = [row | {"prediction": "A", "metric": "choice"} for row in read_rows(foundation, tmp_path)]
    assert odd[0]["gt"] == "never"
    assert score_rows(foundation, odd)[0]["value"] == 0.0
    # Later releases name the file as it is; a missing option keeps the letters of those after it.
    items[0] |= {"path": "x.flac", "choice_b": None, "choice_c": "then", "answer_gt": "then"}
    text(tmp_path / "Foundation/Foundation_meta.json", items)
    (first, _) = read_rows(foundation, tmp_path)
    assert Path(first["audio"]).name == "x.flac"
    assert first["choices"] == ["now", "None", "then"]
    assert score_rows(foundation, [first | {"prediction": "C", "metric": "choice"}])[0]["value"] == 100.0
    text(tmp_path / "Foundation/Audio_Grounding_AudioGrounding/x.wav", "")
    items[0]["path"] = "x.wav"
    text(tmp_path / "Foundation/Foundation_meta.json", items)
    assert Path(read_rows(foundation, tmp_path)[0]["audio"]).name == "x.wav"
    del items[1]["question"]
    text(tmp_path / "Foundation/Foundation_meta.json", items)
    with pytest.raises(ValueError, match=r"is not of the layout airbench_foundation \(KeyError: 'question'; 1 items"):
        read_rows(foundation, tmp_path)
    chat = [{"path": "z.wav", "question": "Q", "answer_gt": "A", "meta_info": "M", "task_name": "sound_QA",
             "dataset_name": "clotho", "uniq_id": 1}]  # fmt: skip
    text(tmp_path / "Chat/Chat_meta.json", chat)
    (row,) = read_rows(only("airbench_chat"), tmp_path)
    assert (row["prompt"], row["meta_info"], row["gt"]) == ("Q", "M", "A")


def test_question_benchmarks(tmp_path: Path) -> None:
    mmau = [
        {
            "id": "1",
            "audio_id": "./clips/1.wav",
            "question": "Q?",
            "choices": ["x", "y"],
            "answer": "y",
            "task": "music",
        }
    ]
    text(tmp_path / "MMAU/mmau-test-mini.json", mmau)
    (row,) = read_rows(only("mmau_mini"), tmp_path)
    assert row["prompt"] == "Q?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    assert (row["gt"], row["group"], Path(row["audio"])) == ("y", "music", tmp_path / "MMAU/clips/1.wav")
    del mmau[0]["answer"]
    text(tmp_path / "MMAU/mmau-test.json", mmau)
    assert read_rows(only("mmau_test"), tmp_path)[0]["gt"] == ""
    text(tmp_path / "MMAU/mmau-test-mini.json", mmau)
    with pytest.raises(ValueError, match="the test split is answered as mmau_test"):
        read_rows(only("mmau_mini"), tmp_path)
    mmsu = {"id": "1", "audio_path": "a.wav", "question": "Q", "choice_a": "x", "choice_b": "y", "answer_gt": "B"}
    text(tmp_path / "MMSU/mmsu.jsonl", json.dumps(mmsu))
    assert read_rows(only("mmsu"), tmp_path)[0]["gt"] == "y"
    # By words "Y" is the option "y" (the rule of MMAU): only a right answer that no option meets is never right.
    rows = [{"gt": gt, "choices": ["x", "y"], "prediction": "B", "metric": "mmau"} for gt in ("y", "Y ", "z")]
    assert _doubts(only("mmau_mini"), rows) == {"right_is_no_option": 1}
    # No letter, and no option: left as it is, which no answer meets, instead of the first option.
    for answer in ("", "AB", "z"):
        text(tmp_path / "MMSU/mmsu.jsonl", json.dumps(mmsu | {"answer_gt": answer}))
        assert read_rows(only("mmsu"), tmp_path)[0]["gt"] == answer
    text(tmp_path / "voicebench/openbookqa.jsonl", json.dumps({"prompt": "Say", "audio": "q.wav", "reference": "C"}))
    spoken = only("voicebench_openbookqa")
    (row,) = read_rows(spoken, tmp_path)
    question = question_of(spoken, row)
    assert (question.references, question.choices) == (("C",), ("A", "B", "C", "D"))
    assert len(question.sample.messages[0].content) == 1, "the clip is the question"


def test_options_in_another_order(tmp_path: Path) -> None:
    rows = [{"id": f"{i}", "audio_id": "x.wav", "question": "Q?", "choices": ["a", "b", "c", "d"], "answer": "b"}
            for i in range(40)]  # fmt: skip
    text(tmp_path / "MMAU/mmau-test-mini.json", rows)
    published, found = only("mmau_mini"), replace(only("mmau_mini"), shuffle_options=1)
    orders = [tuple(row["choices"]) for row in read_rows(found, tmp_path)]
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in orders)
    assert len(set(orders)) > 12
    assert {order.index("b") for order in orders} == {0, 1, 2, 3}
    assert orders == [tuple(row["choices"]) for row in read_rows(found, tmp_path)], "the seed decides"
    assert orders != [tuple(row["choices"]) for row in read_rows(replace(found, shuffle_options=2), tmp_path)]
    row = read_rows(found, tmp_path)[0]
    assert "\n".join(f"{x}. {c}" for x, c in zip("ABCD", row["choices"], strict=True)) in row["prompt"]
    assert {tuple(row["choices"]) for row in read_rows(published, tmp_path)} == {("a", "b", "c", "d")}
    # A model that always says A is right where the right one stands first, and nowhere else.
    answered = [row | {"prediction": "A", "metric": "mmau"} for row in read_rows(found, tmp_path)]
    result, _ = score_rows(found, answered)
    assert {place: part["value"] for place, part in result["by_position"].items()} == {"A": 100, "B": 0, "C": 0, "D": 0}


def test_a_list_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "1/2").mkdir(parents=True)
    (tmp_path / "1/2/1-2.trans.txt").write_bytes("1-2-0 PEUT-ÊTRE".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not of the layout librispeech \(UnicodeDecodeError: "):
        read_rows(from_dict({"name": "l", "reader": "librispeech", "path": ".", "metric": "wer"}), tmp_path)
