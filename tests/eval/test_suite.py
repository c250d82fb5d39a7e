"""The command from benchmarks to a report: steps run together and apart, judge, comparison, clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fake_model import FakeModel, processor, tone

from qa_train.cli import main
from qa_train.config import EvalConfig, parse_options
from qa_train.eval import suite
from qa_train.eval.suite import evaluate
from qa_train.infer.generate import Generator
from qa_train.llm.judge import Judge

YAML = """
benchmarks:
  words:
    title: Words
    reader: jsonl
    path: words.jsonl
    prompt: "Detect the language and recognize the speech: <|en|>"
    metric: wer
    language: en
    rule: corpus WER
    items: 9
    numbers: {paper: 1.6, hf: 1.7, Other: 2.0}
    comparable: with nothing
  opinions:
    reader: jsonl
    path: opinions.jsonl
    prompt: What do you think?
    template: chat
    metric: voicebench_open
  kept:
    reader: jsonl
    path: opinions.jsonl
    prompt: What do you think?
    metric: none
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    parts = processor()
    model = FakeModel(parts.tokenizer)
    monkeypatch.setattr(suite, "_answerer", lambda options: (Generator(model, parts), {"weights": options.checkpoint}))
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", tone(0.4 * (i + 1)), 16_000)
    soundfile.write(tmp_path / "long.wav", tone(6), 16_000)
    names = [*(f"{i}.wav" for i in range(8)), "long.wav", "gone.wav"]
    words = [{"audio": n, "gt": "tone ten"} for n in names]
    words[2]["gt"] = "tone 30"
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    opinion = {"audio": "1.wav", "gt": "", "question": "Nice & <easy>?"}
    (tmp_path / "opinions.jsonl").write_text(json.dumps(opinion) + "\n")
    (tmp_path / "my.yaml").write_text(YAML)
    return tmp_path


def options(folder: Path, *words: str) -> Any:
    return parse_options(EvalConfig, [f"out={folder / 'out'}", *words], "eval")


def test_predict_and_score_apart_equal_both_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=4"]
    assert evaluate(options(folder, *mine)) == 0
    together = (folder / "out" / "results.json").read_text()
    assert "| Words | wer |" in capsys.readouterr().out
    apart = parse_options(EvalConfig, [f"out={folder / 'apart'}", *mine, "step=predict"], "eval")
    assert evaluate(apart) == 0
    assert not (folder / "apart" / "results.json").exists()
    assert evaluate(parse_options(EvalConfig, [f"out={folder / 'apart'}", "step=score"], "eval")) == 0
    assert json.loads((folder / "apart" / "results.json").read_text()) == json.loads(together)
    result = json.loads(together)["words"]
    assert (result["n"], result["failed"], result["items_differ"]) == (10, 1, True)
    assert sum(part["n"] for part in result["by_length"].values()) == 10
    assert set(result["by_length"]) == {"0-5 s", "5-10 s", "unknown"}
    assert len(result["worst"]) == 5
    assert result["worst"][0]["item_score"] == 100.0
    assert json.loads(together)["kept"]["value"] is None


def test_the_report_stands_alone_and_says_what_is_wrong(folder: Path) -> None:
    evaluate(options(folder, f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=4"))
    page = (folder / "out" / "report.html").read_text()
    text = (folder / "out" / "report.md").read_text()
    assert page.count("<audio") == 5 - page.count("no player")
    assert 'src="data:audio/ogg;base64,' in page
    assert "://" not in page
    for part in ("1.60", "1.70", "Other 2.0", "1 failed"):
        assert part in text
        assert part in page
    assert "words: 10 items, published are 9: other data" in text
    assert "opinions: no score: needs a judge" in text
    assert "words: comparable: with nothing" in text
    assert "words by clip length" in text


def test_the_judge_is_replayed_from_its_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0"]
    evaluate(options(folder, *mine))
    with pytest.raises(ValueError, match="the judge is offline and 1 of 1"):
        evaluate(options(folder, "step=score", "judge.model=stub"))
    from qa_train.eval.benchmarks.judged import prompts_of
    from qa_train.eval.scores.prediction import read_predictions

    (prompt,) = prompts_of("voicebench_open", read_predictions(folder / "out" / "opinions" / "predictions.jsonl"))
    assert "Nice & <easy>?" in prompt
    cache = folder / "out" / "judge-cache.jsonl"
    row = {"key": Judge("stub", cache)._key(prompt), "text": "4", "refused": False, "error": None}
    cache.write_text(json.dumps(row) + "\n")
    capsys.readouterr()
    assert evaluate(options(folder, "step=score", "judge.model=stub")) == 0
    assert "judge: 1 prompts, 1 of them cached" in capsys.readouterr().out
    result = json.loads((folder / "out" / "results.json").read_text())["opinions"]
    assert (result["value"], result["strict"], result["judge"]) == (4.0, 4.0, "stub")


def test_two_evaluations_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        words = [
            f"out={folder / name}",
            f"benchmarks=[{folder / 'my.yaml'}]",
            f"checkpoint={name}",
            "probe=0",
            "step=predict",
        ]
        evaluate(parse_options(EvalConfig, words, "eval"))
    code = evaluate(options(folder, f"compare=[{folder / 'a'},{folder / 'b'}]"))
    assert code == 0
    out = capsys.readouterr().out
    assert "may be chance" in out
    assert "| opinions | voicebench_open | 1 | – | – | – | – | not compared" in out
    assert json.loads((folder / "out" / "comparison.json").read_text())["words"]["difference"] == 0


def test_answers_to_other_questions_are_not_scored(folder: Path) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0", "step=predict"]
    evaluate(options(folder, *mine))
    path = folder / "my.yaml"
    # Another rule of scoring is taken without asking again.
    path.write_text(YAML.replace("metric: wer", "metric: cer").replace("paper: 1.6", "paper: 9.9"))
    evaluate(options(folder, "step=score", mine[0]))
    result = json.loads((folder / "out" / "results.json").read_text())["words"]
    assert (result["metric"], result["benchmark"]["numbers"]["paper"]) == ("cer", 9.9)
    assert result["first_error"] == "gone.wav: no such file"
    path.write_text(YAML.replace("recognize the speech", "write down the speech"))
    with pytest.raises(
        ValueError, match=r"as it was before a change \(prompt was .*recognize the speech.*score without"
    ):
        evaluate(options(folder, "step=score", mine[0]))


def test_a_report_goes_with_the_answers_it_is_of(folder: Path) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]", "probe=0"]
    evaluate(options(folder, *mine, "checkpoint=a"))
    evaluate(options(folder, *mine, "checkpoint=a", "step=predict"))
    assert (folder / "out" / "report.html").is_file(), "nothing changed"
    evaluate(options(folder, *mine, "checkpoint=b", "step=predict"))
    assert not [name for name in suite.REPORTS if (folder / "out" / name).exists()]


def test_a_benchmark_without_answers_is_not_skipped_in_silence(folder: Path) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]"]
    evaluate(options(folder, *mine, "checkpoint=a", "probe=0", "step=predict"))
    shutil.rmtree(folder / "out" / "opinions")
    with pytest.raises(ValueError, match="holds no predictions of opinions: run the prediction step for them"):
        evaluate(options(folder, *mine, "step=score"))
    evaluate(options(folder, "step=score"))


def test_changed_predictions_are_not_scored(folder: Path) -> None:
    mine = [f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0"]
    evaluate(options(folder, *mine, "step=predict"))
    path = folder / "out" / "words" / "predictions.jsonl"
    path.write_text(path.read_text().replace("tone 30", "tone ten"))
    with pytest.raises(ValueError, match="was changed after the model wrote it"):
        evaluate(options(folder, "step=score"))
    # The journal has the answers: the prediction step writes the file anew.
    evaluate(options(folder, *mine))


def test_doubts_are_in_the_report(folder: Path) -> None:
    text = YAML.replace("    language: en\n", "").replace("metric: none", "metric: choice")
    (folder / "my.yaml").write_text(text)
    opinion = {"audio": "1.wav", "gt": "yes", "choices": ["Yes", "no"], "question": "Nice?"}
    (folder / "opinions.jsonl").write_text(json.dumps(opinion) + "\n")
    evaluate(options(folder, f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0"))
    report = (folder / "out" / "report.md").read_text()
    assert "words: 10 items have an unknown language: scored by words" in report
    (folder / "my.yaml").write_text(YAML.replace("language: en", "language: klingon"))
    evaluate(parse_options(EvalConfig, [f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0",
                                        f"out={folder / 'zh'}"], "eval"))  # fmt: skip
    known = (folder / "zh" / "report.md").read_text()
    assert "unknown language ('klingon': not a code such as en, zh or yue)" in known
    assert "words: 1 items without an answer, which count as empty" in report
    assert "kept: 1 items have a right answer that is not among their options" in report


def test_a_reference_system_that_is_not_there_is_said(folder: Path) -> None:
    evaluate(options(folder, f"benchmarks=[{folder / 'my.yaml'}]", "checkpoint=a", "probe=0", "step=predict"))
    with pytest.raises(ValueError, match="has no answers to opinions: evaluate it first"):
        evaluate(options(folder, "step=score", "judge.model=stub", f"judge.reference={folder}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step=guess"], "step='guess' is unknown"),
        ([], r"missing checkpoint= .*, benchmarks="),
        (["step=score"], "holds no predictions"),
        (["step=predict", "checkpoint=a"], r"missing benchmarks="),
        (["benchmarks=[meld]", "data=x.jsonl", "checkpoint=a"], "not both"),
        (["benchmarks=[meld]", "checkpoint=a", "data_root=/nowhere"], "there is no /nowhere/MELD, nor the released"),
        (["compare=[a]"], "takes two evaluation folders"),
        (["judge.url=http://x", "step=score"], "holds no predictions"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(options(tmp_path, *words))


def test_the_command_line_reaches_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["eval", "checkpoint=/nowhere", f"out={tmp_path}", "benchmarks=[nothing]"])
    assert end.value.code == 2
    assert "no benchmark 'nothing'" in capsys.readouterr().err
