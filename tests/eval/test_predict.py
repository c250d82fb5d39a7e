"""Predictions: the same file for one and two ranks, killed and resumed, with repaired clips; the probe."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from answerers import gathering
from fake_model import FakeModel, processor, tone

from qa_train.eval.answers import Limits
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.listening import DEAF_PERCENT
from qa_train.eval.predict import predict
from qa_train.eval.ranks import Ranks
from qa_train.eval.scores.labels import option_text, tokens_match
from qa_train.eval.scores.prediction import read_predictions
from qa_train.eval.scoring import score_rows
from qa_train.infer.generate import Generator
from qa_train.report.scores_page import listening
from tests.processes import free_port

HERE = Path(__file__).parent
YAML = (
    "benchmarks:\n  tones:\n    reader: jsonl\n    path: tones.jsonl\n    prompt: What is it?\n    metric: accuracy\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for i in range(20):
        seconds = 0.3 + 0.1 * (i * 7 % 20)
        soundfile.write(tmp_path / f"{i}.wav", tone(seconds), 16_000)
        rows.append({"audio": f"{i}.wav", "gt": f"tone {round(seconds * 25)}"})
    (tmp_path / "4.wav").write_bytes(b"RIFF and no more")
    (tmp_path / "tones.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(YAML)
    return tmp_path


def run(
    data: Path, out: str, model: FakeModel | None = None, limits: Limits | None = None, probe: int = 0
) -> FakeModel:
    parts = processor()
    model = model or FakeModel(parts.tokenizer)
    (benchmark,) = find_benchmarks([str(data / "mine.yaml")])
    limits = limits or Limits(3)
    generator = Generator(model, parts)
    rows = read_rows(benchmark, data)
    predict(
        benchmark, rows, generator, data / out, identity={"weights": "w"}, limits=limits, probe=probe, data_root=data
    )
    return model


def rows_of(data: Path, out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / out / "predictions.jsonl").read_text().splitlines()]


def test_rows_are_complete_in_order_and_relative(data: Path) -> None:
    run(data, "out")
    rows = rows_of(data, "out")
    assert [row["id"] for row in rows] == [str(i) for i in range(1, 21)]
    assert [row["audio"] for row in rows] == [f"{i}.wav" for i in range(20)]
    assert "error" in rows[4]
    assert rows[4]["prediction"] == ""
    assert all(row["prediction"].startswith("tone ") for i, row in enumerate(rows) if i != 4)
    assert rows[0]["duration_s"] == 0.3
    recorded = json.loads((data / "out" / "run.json").read_text())
    assert recorded["identity"]["decoding"]["temperature"] == 0.0
    assert recorded["benchmark"]["name"] == "tones"


def test_a_finished_run_asks_nothing_and_a_repaired_clip_only_its_batch(data: Path) -> None:
    calls = len(run(data, "out").calls)
    assert len(run(data, "out").calls) == 0
    soundfile.write(data / "4.wav", tone(1.0), 16_000)
    again = run(data, "out")
    # A readable header gives the clip another place in the plan: only batches with it are asked.
    assert 1 <= len(again.calls) < calls
    assert rows_of(data, "out")[4]["prediction"] == "tone 25"


@pytest.mark.parametrize(
    ("wave", "answer"),
    [(np.zeros(12_800, np.float32), "silence 20"), (tone(0.4), "tone 10")],
    ids=["same length", "shorter"],
)
def test_a_clip_replaced_under_its_name_is_asked_again(data: Path, wave: np.ndarray, answer: str) -> None:
    calls = len(run(data, "out", probe=4).calls)
    before = json.loads((data / "out" / "run.json").read_text())
    for name in ("scores.json", "judgements.jsonl"):
        (data / "out" / name).write_text("of the clips before")
    assert rows_of(data, "out")[15]["prediction"] == "tone 20"
    soundfile.write(data / "15.wav", wave, 16_000)
    again = len(run(data, "out", probe=4).calls)
    assert rows_of(data, "out")[15]["prediction"] == answer
    assert not (data / "out" / "scores.json").exists()
    assert not (data / "out" / "judgements.jsonl").exists()
    after = json.loads((data / "out" / "run.json").read_text())
    assert before["identity"] == after["identity"]
    assert before["clips_sha256"] != after["clips_sha256"]
    # As if nothing had been there before, at less cost.
    assert again < calls
    run(data, "new", probe=4)
    for name in ("predictions.jsonl", "run.json"):
        assert (data / "out" / name).read_bytes() == (data / "new" / name).read_bytes()
    for _ in range(2):
        assert len(run(data, "out", probe=4).calls) == 0
    run(data, "out", probe=2)
    assert json.loads((data / "out" / "run.json").read_text())["probe"]["asked"] == 2
    assert len((data / "out" / "journal-0.jsonl").read_text().splitlines()) == 1 + 19, "the journal does not grow"


def test_a_clip_that_goes_is_a_failed_answer(data: Path) -> None:
    run(data, "out", limits=Limits(1))
    (data / "out" / "scores.json").write_text("of the clips before")
    wave = (data / "3.wav").read_bytes()
    (data / "3.wav").unlink()
    assert len(run(data, "out", limits=Limits(1)).calls) == 0
    assert "no such file" in rows_of(data, "out")[3]["error"]
    assert not (data / "out" / "scores.json").exists()
    (data / "3.wav").write_bytes(wave)
    # It is the clip that was heard: its answer stands.
    assert len(run(data, "out", limits=Limits(1)).calls) == 0
    assert "error" not in rows_of(data, "out")[3]


def test_other_limits_are_another_run(data: Path) -> None:
    calls = len(run(data, "out").calls)
    assert len(run(data, "out", limits=Limits(4)).calls) > 0
    assert len(run(data, "out").calls) == calls


def test_the_probe_names_a_model_that_does_not_listen(data: Path) -> None:
    hears = FakeModel(processor().tokenizer)
    run(data, "hears", hears, probe=16)
    probe = json.loads((data / "hears" / "run.json").read_text())["probe"]
    # The stand-in says "tone" for any sound and its length in tokens: no other tone of that length changes it.
    assert probe["again"]["changed_percent"] == 0
    assert probe["silence"]["changed_percent"] == 100
    assert probe["other_clip"]["changed_percent"] == 0
    assert probe["listens"] is True
    deaf = FakeModel(processor().tokenizer)
    deaf.answer = lambda ids, states: "always this"  # type: ignore[method-assign]
    run(data, "deaf", deaf, probe=16)
    probe = json.loads((data / "deaf" / "run.json").read_text())["probe"]
    assert probe["listens"] is False
    assert probe["other_clip"]["ci_high"] < DEAF_PERCENT
    calls = len(deaf.calls)
    run(data, "deaf", deaf, probe=16)
    assert len(deaf.calls) == calls, "the probe of a finished run is kept"
    counts = FakeModel(processor().tokenizer)
    counts.answer = lambda ids, states: f"{len(states)} tokens"  # type: ignore[method-assign]
    run(data, "counts", counts, probe=16)
    assert json.loads((data / "counts" / "run.json").read_text())["probe"]["listens"] is False, "of its length alone"
    run(data, "few", FakeModel(processor().tokenizer), probe=1)
    few = FakeModel(processor().tokenizer)
    few.answer = lambda ids, states: "always this"  # type: ignore[method-assign]
    run(data, "few_deaf", few, probe=4)
    assert json.loads((data / "few_deaf" / "run.json").read_text())["probe"]["listens"] is None


def test_a_deaf_model_that_never_says_the_same_twice_is_not_said_to_listen(data: Path) -> None:
    deaf = FakeModel(processor().tokenizer)
    said = itertools.count()
    deaf.answer = lambda ids, states: f"always this, {next(said)}"  # type: ignore[method-assign]
    run(data, "deaf", deaf, probe=16)
    probe = json.loads((data / "deaf" / "run.json").read_text())["probe"]
    assert probe["silence"]["changed_percent"] == probe["other_clip"]["changed_percent"] == 100
    assert probe["again"]["changed_percent"] == 100
    assert probe["listens"] is None
    assert "undecided: its answers change from one run to the next" in listening({"probe": probe})
    # A word or two that vary now and then do not hide that it hears.
    hears = FakeModel(processor().tokenizer)
    usual = hears.answer
    hears.answer = lambda ids, states: usual(ids, states) + ("!" if next(said) % 10 == 0 else "")  # type: ignore[method-assign]
    run(data, "hears", hears, probe=16)
    probe = json.loads((data / "hears" / "run.json").read_text())["probe"]
    assert 0 < probe["again"]["changed_percent"] < 40
    assert probe["listens"] is True


def program(data: Path, out: str, world: int = 1, die: dict[int, int] | None = None) -> list[int]:
    port = free_port()
    running = []
    for rank in range(world):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if world > 1:
            env |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = [sys.executable, str(HERE / "rank_program.py"), str(data / out), str(data / "mine.yaml")]
        running.append(subprocess.Popen([*words, str((die or {}).get(rank, 0))], env=env, stderr=subprocess.DEVNULL))
    codes = []
    for process in running:
        codes.append(process.wait(timeout=300))
        if codes[-1]:
            # The others wait for it at the next meeting point.
            for other in running:
                other.kill()
    return codes


@pytest.mark.slow
def test_two_ranks_and_a_kill_give_the_same_file(data: Path) -> None:
    assert program(data, "one") == [0]
    whole = (data / "one" / "predictions.jsonl").read_bytes()
    assert program(data, "two", world=2) == [0, 0]
    assert (data / "two" / "predictions.jsonl").read_bytes() == whole
    shares = [int((data / "two" / f"calls-{rank}").read_text()) for rank in (0, 1)]
    assert min(shares) >= 3, "both ranks worked"
    # Rank 0 dies after two batches; one process finishes what both began.
    assert program(data, "cut", world=2, die={0: 2})[0] == 9
    assert not (data / "cut" / "predictions.jsonl").exists()
    assert program(data, "cut") == [0]
    assert (data / "cut" / "predictions.jsonl").read_bytes() == whole
    assert (data / "cut" / "run.json").read_bytes() == (data / "one" / "run.json").read_bytes()


def test_rows_without_reference_are_refused(tmp_path: Path) -> None:
    benchmark = Benchmark("b", "wer", "jsonl", "x", prompt="p")
    with pytest.raises(ValueError, match="no reference to score by wer"):
        predict(benchmark, [{"id": "1", "audio": "a.wav", "gt": ""}], FakeModel(None), tmp_path, identity={})  # type: ignore[arg-type]


def test_odd_line_separators_in_answers_stay_inside_them(data: Path) -> None:
    odd = FakeModel(processor().tokenizer)
    odd.answer = lambda ids, states: "one\u2028two\x85three\nfour"  # type: ignore[method-assign]
    run(data, "odd", odd)
    calls = len(odd.calls)
    rows = read_predictions(data / "odd" / "predictions.jsonl")
    assert len(rows) == 20
    assert {row["prediction"] for row in rows if "error" not in row} == {"one\u2028two\x85three\nfour"}
    run(data, "odd", odd)
    assert len(odd.calls) == calls, "the journal is read back whole"


def share(data: Path, out: str, world: int, model: FakeModel) -> list[int]:
    """Ranks as threads of this process: [calls of each]."""
    gather = gathering(world)
    models = [FakeModel(model.tokenizer) for _ in range(world)]
    (benchmark,) = find_benchmarks([str(data / "mine.yaml")])
    rows = read_rows(benchmark, data)

    def work(rank: int) -> None:
        generator = Generator(models[rank], processor())
        predict(
            benchmark, rows, generator, data / out, identity={"weights": "w"}, limits=Limits(3), probe=0,
            data_root=data, ranks=Ranks(rank, world, partial(gather, rank)),
        )  # fmt: skip

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(work, range(world)))
    return [len(m.calls) for m in models]


def test_a_kill_and_a_change_of_ranks_give_the_same_file(data: Path) -> None:
    model = run(data, "whole")
    whole = (data / "whole" / "predictions.jsonl").read_bytes()
    shares = share(data, "two", 2, model)
    assert sum(shares) == len(model.calls)
    assert min(shares) >= 3
    assert (data / "two" / "predictions.jsonl").read_bytes() == whole
    dying = FakeModel(model.tokenizer)
    generate = dying.generate

    def dies(**inputs: Any) -> Any:
        if len(dying.calls) == 2:
            raise KeyboardInterrupt
        return generate(**inputs)

    dying.generate = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(data, "cut", dying)
    assert not (data / "cut" / "predictions.jsonl").exists()
    assert sum(share(data, "cut", 3, model)) == len(model.calls) - 2
    assert sum(share(data, "cut", 2, model)) == 0
    assert (data / "cut" / "predictions.jsonl").read_bytes() == whole


def test_mmau_answers_in_the_form_of_its_own_script(data: Path) -> None:
    rows = [
        {"id": str(i), "audio_id": f"{i}.wav", "question": "Q?", "choices": ["tone 8", "tone 20"], "answer": answer,
         "task": "sound", "sub-category": "x"}
        for i, answer in ((0, "tone 8"), (4, "tone 8"), (1, "tone 20"))
    ]  # fmt: skip
    (data / "MMAU").mkdir()
    (data / "MMAU" / "mmau-test-mini.json").write_text(json.dumps(rows))
    for i in (0, 1, 4):
        (data / "MMAU" / f"{i}.wav").write_bytes((data / f"{i}.wav").read_bytes())
    (benchmark,) = find_benchmarks(["mmau_mini"])
    parts = processor()
    model = FakeModel(parts.tokenizer)
    model.answer = lambda ids, heard: f"<think>tone 8</think>{FakeModel.answer(model, ids, heard)}"  # type: ignore[method-assign]
    generator = Generator(model, parts)
    predict(benchmark, read_rows(benchmark, data), generator, data / "out", identity={}, probe=0, data_root=data)
    filled = json.loads((data / "out" / "model_output.json").read_text())
    assert [{k: v for k, v in row.items() if k in rows[0]} for row in filled] == rows
    assert filled[1]["model_output"] == "", "the clip that cannot be read"
    assert all(row["model_output"] == row["model_prediction"] for row in filled)
    assert [row["model_output"] for row in filled][::2] == ["tone 7", "tone 25"]
    # The script's rule on that file is our number.
    right = [tokens_match(row["answer"], row["model_output"], row["choices"]) for row in filled]
    result, _ = score_rows(benchmark, rows_of(data, "out"))
    assert result["value"] == pytest.approx(100 * sum(right) / 3, abs=0.01)
    assert option_text("The answer is (B).", ["dog", "cat"]) == "cat"
