"""A file of one's own questions from end to end with a stand-in model: order, sources, resume, failures, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fake_model import FakeModel, processor, tone

from qa_train.config import EncoderConfig, EvalConfig, LanguageModelConfig, ModelConfig, parse_options
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.tools.interchange import shards_to_jsonl
from qa_train.eval import suite
from qa_train.eval.own_file import read_own_file
from qa_train.eval.questions import read_questions
from qa_train.eval.suite import evaluate
from qa_train.infer.generate import Generator
from qa_train.model import build_model

ASR = "Detect the language and recognize the speech: <|en|>"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    parts = processor()
    fake = FakeModel(parts.tokenizer)

    def answerer(options: EvalConfig) -> Any:
        return Generator(fake, parts), {"weights": options.checkpoint}

    monkeypatch.setattr(suite, "_answerer", answerer)
    return fake


def ask(data: Path, out: Path, *words: str) -> dict[str, Any]:
    """Evaluate; returns the results."""
    words = (f"data={data}", f"out={out}", "checkpoint=x", "probe=0", *words)
    assert evaluate(parse_options(EvalConfig, list(words), "eval")) == 0
    return dict(json.loads((out / "results.json").read_text()))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 2.0), ("b.wav", 0.5), ("c.flac", 1.0)):
        soundfile.write(tmp_path / name, tone(seconds), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF and nothing more")
    return write(
        tmp_path / "data.jsonl",
        [
            {"audio": "b.wav", "prompt": ASR, "gt": "tone 12", "source": "mine"},
            {"audio": "a.wav", "prompt": ASR, "gt": "tone fifty one", "source": "mine"},
            {"audio": "bad.wav", "prompt": ASR, "gt": "three more words", "source": "mine"},
            {"audio": "gone.wav", "prompt": "Which?", "gt": "tone 25", "source": "vocalsound"},
            {"audio": "c.flac", "prompt": "Which?", "gt": "Tone 25.", "source": "vocalsound"},
            {
                "messages": [
                    {"role": "user", "content": "<audio><audio>Two sounds?"},
                    {"role": "assistant", "content": "tone tone 37"},
                ],
                "audios": ["b.wav", "c.flac"],
                "source": "chat",
            },
            {"messages": [{"role": "user", "content": "Hello"}], "source": "open"},
        ],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_keep_the_order_of_the_file_and_failures_count(model: FakeModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = ask(data, out)
    rows = lines(out / "predictions.jsonl")
    assert [row["prediction"] for row in rows] == ["tone 12", "tone 50", "", "", "tone 25", "tone tone 37", "0"]
    assert [{k: v for k, v in row.items() if k not in ("prediction", "truncated", "error")} for row in rows] == [
        json.loads(line) for line in data.read_text().splitlines()
    ]
    assert "bad.wav" in rows[2]["error"]
    assert "no such file" in rows[3]["error"]
    assert set(results) == {"mine", "vocalsound", "chat", "open"}
    mine, vocal = results["mine"], results["vocalsound"]
    # "tone 50" against "tone 51", and three lost words, over 2 + 2 + 3 words.
    assert mine["value"] == pytest.approx(100 * 4 / 7, abs=0.01)
    assert (mine["benchmark"]["metric"], mine["n"], mine["failed"], mine["empty"]) == ("wer", 3, 1, 0)
    assert (vocal["benchmark"]["metric"], vocal["value"], vocal["n"], vocal["failed"]) == ("accuracy", 50.0, 2, 1)
    assert results["chat"]["value"] == 100.0
    assert (results["open"]["value"], results["open"]["n"]) == (None, 1)
    # Both clips of the chat count for its length, and the turns are there for the reader.
    (chat,) = lines(out / "chat" / "predictions.jsonl")
    assert (chat["duration_s"], chat["audio"], chat["audios"]) == (1.5, "b.wav", ["b.wav", "c.flac"])
    assert [turn["role"] for turn in chat["messages"]] == ["user", "assistant"]


def test_the_report_has_breakdowns_doubts_and_the_probe(model: FakeModel, data: Path, tmp_path: Path) -> None:
    rows = lines(data)
    groups = {"mine": ["loud", "soft", "loud"]}
    for row in rows:
        if row["source"] in groups:
            row["group"] = groups[row["source"]].pop(0)
    results = ask(write(tmp_path / "grouped.jsonl", rows), tmp_path / "out", "probe=10")
    assert {name: part["n"] for name, part in results["mine"]["by_group"].items()} == {"loud": 2, "soft": 1}
    assert results["mine"]["probe"]["silence"]["changed_percent"] == 100
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("mine by group", "1 items without an answer", "open: no score: no metric", "vocalsound"):
        assert part in text
    assert "HF weights" not in text, "nobody published a number"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "HF weights" not in page
    assert "<audio" in page
    assert "<h3>mine, by group" in page


def test_predicting_and_scoring_apart_equal_both_together(model: FakeModel, data: Path, tmp_path: Path) -> None:
    together = ask(data, tmp_path / "out")
    asked = len(model.calls)
    words = [f"data={data}", f"out={tmp_path / 'apart'}", "checkpoint=x", "probe=0"]
    assert evaluate(parse_options(EvalConfig, [*words, "step=predict"], "eval")) == 0
    assert not (tmp_path / "apart" / "results.json").exists()
    assert evaluate(parse_options(EvalConfig, [f"out={tmp_path / 'apart'}", "step=score"], "eval")) == 0
    assert len(model.calls) == 2 * asked
    # The order of the folders is that of their names.
    assert json.loads((tmp_path / "apart" / "results.json").read_text()) == together
    compared = [f"compare=[{tmp_path / 'out'},{tmp_path / 'apart'}]"]
    assert evaluate(parse_options(EvalConfig, compared, "eval")) == 0


def test_a_killed_evaluation_continues_and_gives_the_same(
    model: FakeModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ask(data, whole, "batch_size=1")
    answered = len(model.calls)
    generate = model.generate

    def dies(**inputs: Any) -> Any:
        if len(model.calls) == answered + 2:
            raise KeyboardInterrupt
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        ask(data, cut, "batch_size=1")
    assert not (cut / "predictions.jsonl").exists()
    # The kill also cut a line in two.
    with (cut / "vocalsound" / "journal-0.jsonl").open("a") as file:
        file.write('{"index": 1, "te')
    monkeypatch.setattr(model, "generate", generate)
    ask(data, cut, "batch_size=1")
    assert len(model.calls) == 2 * answered
    for name in ("predictions.jsonl", "results.json", "report.md", "mine/predictions.jsonl", "mine/scores.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    ask(data, cut, "batch_size=1")
    assert len(model.calls) == 2 * answered, "a finished evaluation asks nothing again"


def test_other_weights_turns_or_decoding_are_asked_again(model: FakeModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ask(data, out)
    seen = len(model.calls)
    ask(data, out, "checkpoint=other")
    assert len(model.calls) == 2 * seen
    ask(data, out, "checkpoint=other", "max_new_tokens=5")
    assert len(model.calls) == 3 * seen
    rows = lines(data)
    rows[5]["messages"].insert(0, {"role": "system", "content": "Be short."})
    ask(write(data, rows), out, "checkpoint=other", "max_new_tokens=5")
    assert len(model.calls) == 3 * seen + 1, "only the chat with another turn"


def test_answers_of_another_model_do_not_stay_beside_a_start_that_died(
    model: FakeModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ask(data, out)
    assert all((out / name).is_file() for name in suite.REPORTS)
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(data, out, "checkpoint=other")
    assert not [name for name in suite.REPORTS if (out / name).exists()]


def test_a_repaired_and_a_replaced_clip_are_asked_again(model: FakeModel, data: Path, tmp_path: Path) -> None:
    ask(data, tmp_path / "out")
    soundfile.write(tmp_path / "gone.wav", tone(1.0), 16_000)
    assert ask(data, tmp_path / "out")["vocalsound"]["value"] == 100.0
    # The second clip of the chat.
    soundfile.write(tmp_path / "c.flac", 0 * tone(1.0), 16_000)
    results = ask(data, tmp_path / "out")
    assert (results["vocalsound"]["value"], results["chat"]["value"]) == (50.0, 0.0)


@pytest.mark.parametrize("metric", ["wer", "cer", "first_line_wer", "cp_wer"])
def test_a_source_of_silence_has_its_row_and_does_not_stop_the_others(
    model: FakeModel, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("a.wav", 2.0), ("b.wav", 0.5)):
        soundfile.write(tmp_path / name, tone(seconds), 16_000)
    silence = {"prompt": ASR, "gt": "", "source": "silence", "metric": metric, "language": "en"}
    speech = {"audio": "b.wav", "prompt": ASR, "gt": "tone 12", "source": "speech", "metric": "wer", "language": "en"}
    rows = [{"audio": "a.wav", **silence}, {"audio": "b.wav", **silence, "gt": " ... "}, speech]
    results = ask(write(tmp_path / "d.jsonl", rows), tmp_path / "out")
    assert results["speech"]["value"] == 0.0
    assert (results["silence"]["value"], results["silence"]["n"]) == (None, 2)
    assert "no reference has any word" in results["silence"]["why"]
    # "tone 50" and "tone 12": what was said where nothing was.
    assert "2 answers say something" in results["silence"]["why"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| silence |" in report
    assert "silence: no score" in report
    assert "silence" in capsys.readouterr().out
    # The same answers again are not compared, and say why.
    ask(tmp_path / "d.jsonl", tmp_path / "again")
    assert evaluate(parse_options(EvalConfig, [f"compare=[{tmp_path / 'out'},{tmp_path / 'again'}]"], "eval")) == 0
    assert "not compared: " in capsys.readouterr().out


def test_labels_joined_in_one_text_are_said_where_nothing_tells_them_apart(model: FakeModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.wav", tone(0.5), 16_000)
    row = {"audio": "b.wav", "prompt": "Which sounds?", "metric": "map"}
    names = ["tone 12", "Male speech, man speaking", "Bark"]
    rows = [
        {**row, "source": "joined", "gt": "tone 12, Male speech, man speaking"},
        {**row, "source": "joined", "gt": "Bark"},
        {**row, "source": "choices", "gt": "tone 12, Male speech, man speaking", "choices": names},
        {**row, "source": "lists", "gt": names[:2]},
    ]
    results = ask(write(tmp_path / "d.jsonl", rows), tmp_path / "out")
    assert results["choices"]["value"] == results["lists"]["value"] == 100.0, "one item: all that is listed is relevant"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "joined: 1 references contain commas and count as one label each" in report
    assert "choices: 1 references" not in report
    assert "lists: 1 references" not in report


def test_a_source_of_several_rules_is_several_benchmarks(model: FakeModel, tmp_path: Path) -> None:
    base = {"audio": "a.wav", "gt": "x", "source": "my calls/2026"}
    into = "Translate the speech into {}: <|en|>"
    data = write(
        tmp_path / "d.jsonl",
        [
            {**base, "prompt": ASR, "metric": "wer", "id": "first"},
            {**base, "prompt": into.format("Mandarin"), "metric": "bleu"},
            {**base, "prompt": into.format("German"), "metric": "bleu"},
            {**base, "prompt": ASR, "metric": "wer", "source": "my_calls_2026"},
            {"messages": [{"role": "user", "content": "Who calls?"}], "gt": ["Ann", "Bob"], "source": "../up"},
        ],
    )
    asked = read_own_file(data, 256)
    assert [(one.benchmark.name, one.benchmark.language) for one in asked] == [
        ("my_calls_2026-wer-none", None),
        ("my_calls_2026-bleu-zh", "zh"),
        ("my_calls_2026-bleu-de", "de"),
        ("my_calls_2026", None),
        ("up", None),
    ]
    assert [one.rows[0]["id"] for one in asked] == ["first", "2", "3", "4", "5"]
    assert asked[-1].rows[0]["gt"] == ["Ann", "Bob"]
    assert asked[-1].benchmark.template == "chat"


def test_lines_of_to_jsonl_are_scored_by_their_task_whatever_its_wording(tmp_path: Path) -> None:
    clips = [(tone(1.0), {"text": "guten Tag", "language": "de", "translation": {"en": "hello"}}) for _ in range(12)]
    with ShardWriter(str(tmp_path / "speech-%03d.tar")) as writer:
        for i, (wave, record) in enumerate(clips):
            writer.write(f"k{i}", record, [wave])
    for task, metric, language in (("asr", "wer", "de"), ("translate", "bleu", "en")):
        shards_to_jsonl([tmp_path / "speech-000.tar"], tmp_path / f"{task}.jsonl", task=task)
        (asked,) = read_own_file(tmp_path / f"{task}.jsonl", 256)
        assert (asked.benchmark.metric, len(asked.rows)) == (metric, 12)
        assert {question.language for question in asked.questions} == {language}
        assert len({row["prompt"] for row in asked.rows}) > 3, "the wordings differ"


def test_a_judge_scores_open_questions_of_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16_000)
    row = {"messages": [{"role": "user", "content": "<audio>"}], "audios": ["a.wav"], "metric": "voicebench_open"}
    with pytest.raises(ValueError, match="line 1: metric 'voicebench_open' needs question, which the judge is shown"):
        read_own_file(write(tmp_path / "d.jsonl", [row]), 256)
    (asked,) = read_own_file(write(tmp_path / "d.jsonl", [row | {"question": "What is it?"}]), 256)
    assert (asked.benchmark.metric, asked.rows[0]["question"]) == ("voicebench_open", "What is it?")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(data: Path, tmp_path: Path) -> None:
    """The command itself, with a small random model."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    llm = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=encoder | {"num_mel_bins": 80}),
        llm=LanguageModelConfig(config=llm),
        tokenizer="builtin:nano",
    )
    for part in build_model(cfg, seed=1):
        part.save_pretrained(tmp_path / "model")
    for world in (1, 2):
        words = [f"checkpoint={tmp_path / 'model'}", f"data={data}", f"out={tmp_path / str(world)}"]
        words += ["max_new_tokens=8", "batch_size=1", "probe=2"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "qa_train", "eval", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("predictions, scores and report.html") == 1
    for name in ("predictions.jsonl", "results.json", "report.md", "mine/predictions.jsonl", "chat/run.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    assert len({row["prediction"] for row in lines(tmp_path / "1" / "predictions.jsonl")}) > 3
    for alone in (tmp_path / "1").glob("*/journal-0.jsonl"):
        parts = [kept(tmp_path / "2" / alone.parent.name / f"journal-{rank}.jsonl") for rank in (0, 1)]
        assert sorted(parts[0] + parts[1]) == sorted(kept(alone)), "each answer was given by one of the two"
    assert all(parts := [kept(tmp_path / "2" / "mine" / f"journal-{rank}.jsonl") for rank in (0, 1)]), parts


def kept(journal: Path) -> list[int]:
    """Which answers a process has written down; the first line names the model and the data."""
    return [row["index"] for row in lines(journal)[1:]]


def test_ids_that_occur_twice_are_told_apart_and_options_of_both_kinds_are_refused(
    model: FakeModel, data: Path, tmp_path: Path
) -> None:
    rows = [row | {"id": "same"} for row in lines(data)]
    rows[0]["id"] = "same#2"
    twice = write(tmp_path / "twice.jsonl", rows)
    assert [row["id"] for row in read_own_file(twice, 256)[0].rows] == ["same#2", "same", "same#3"]
    ask(twice, tmp_path / "out")
    assert lines(tmp_path / "out" / "predictions.jsonl")[1]["prediction"] == "tone 50"
    both = parse_options(EvalConfig, [f"data={data}", "benchmarks=mcq", "checkpoint=x", f"out={tmp_path}"], "eval")
    with pytest.raises(ValueError, match="give data= or benchmarks=, not both"):
        evaluate(both)
    with pytest.raises(ValueError, match=r"missing out= .*, benchmarks=.* \(or data="):
        evaluate(parse_options(EvalConfig, ["checkpoint=x"], "eval"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "gt": "y"}, "line 1: audio must be text"),
        ({"audio": "a.wav", "prompt": "x", "gt": "y", "metric": "f2"}, "metric 'f2' is unknown"),
        ({"audio": "a.wav", "prompt": "x", "metric": "wer"}, "needs a reference"),
        ({"audio": "a.wav", "prompt": "x", "gt": 3}, "gt must be text"),
        ({"audio": "a.wav", "prompt": "x", "gt": ["y", "z"], "metric": "wer"}, "wer takes one reference"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "must end with a user turn"),
        ({"messages": [{"role": "user", "content": "<audio>"}], "audios": []}, "place 1 clips"),
        ({"messages": "hello"}, "list with at least one turn"),
        (["audio"], "expected a JSON object"),
    ],
)
def test_wrong_lines_are_refused_before_loading(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions(write(tmp_path / "d.jsonl", [row]))


def test_empty_and_missing_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\xfe")
    with pytest.raises(ValueError, match=r"a.wav, line 1: the JSON is not UTF-8 at byte 4.*one JSON object on each"):
        read_own_file(tmp_path / "a.wav", 256)
    (tmp_path / "table.csv").write_text("audio,text\na.wav,hello\n")
    with pytest.raises(ValueError, match=r"table.csv, line 1: not JSON.*expected one JSON object on each line"):
        read_own_file(tmp_path / "table.csv", 256)


@pytest.mark.parametrize(
    ("row", "metric", "language"),
    [
        ({"source": "librispeech_test_clean", "prompt": ASR}, "wer", "en"),
        ({"source": "mine", "prompt": ASR.replace("en", "yue")}, "wer", "yue"),
        (
            {"source": "covost2", "prompt": "Detect the language and translate the speech into Mandarin: <|en|>"},
            "bleu",
            "zh",
        ),
        ({"source": "meld", "prompt": "Recognize the emotion with keywords in English:"}, "accuracy", None),
        ({"source": "mine", "prompt": "Which language?"}, "accuracy", None),
        ({"source": "mine", "prompt": "Which language?", "metric": "contains", "language": "fr"}, "contains", "fr"),
        ({"source": "mine", "prompt": "Transcribe.", "metric": "wer", "language": "zh-CN"}, "wer", "zh"),
    ],
)
def test_metric_and_language_by_the_tables(
    tmp_path: Path, row: dict[str, str], metric: str, language: str | None
) -> None:
    (question,) = read_questions(write(tmp_path / "d.jsonl", [{"audio": "a.wav", "gt": "x", **row}]))
    assert (question.metric, question.language) == (metric, language)
    assert question.sample.template == "base"
