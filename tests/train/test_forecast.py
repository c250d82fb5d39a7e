"""Forecasts: measured before the first step without a trace in the run, and said again from the steps themselves."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

import qa_train.train.encode_once as encode_once
import qa_train.train.forecast as forecast
from qa_train.config import config_dir, register, to_stage_config
from qa_train.train.dpo import dpo
from qa_train.train.numbers.metrics import FIRST_STEPS, Pace
from qa_train.train.pretrain import pretrain

RUN = {"pretrain": pretrain, "dpo": dpo}
Options = Callable[[str, Path], list[str]]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """A run takes signals and threads for itself."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(stage: str, words: list[str]) -> None:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        cfg = to_stage_config(compose(stage, words))
    assert RUN[stage](cfg) == 0  # type: ignore[operator]


def records(folder: Path) -> list[dict[str, Any]]:
    """The steps' records without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "_s" not in k and k not in ("seconds", "peak_memory_gb")} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return {name: value for file in sorted(newest.glob("*.safetensors")) for name, value in load_file(file).items()}


CASES = {
    "muon": ("pretrain", ["trainer.muon_learning_rate=1e-3"]),
    "adapters": ("pretrain", ["model.lora.parts=[llm]", "model.lora.dropout=0.3", "model.freeze=[encoder]"]),
    "pairs, live reference": ("dpo", ["dpo.reference=live"]),
    "pairs": ("dpo", ["trainer.bf16=true"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_rehearsed_run_is_equal_to_the_last_bit(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    stage, more = CASES[case]
    words = ["trainer.max_steps=4", *more]
    rehearsed: list[Any] = []
    real = forecast.rehearse

    def spied(trainer: Any, opened: Any) -> Any:
        rehearsed.append(real(trainer, opened))
        return rehearsed[-1]

    monkeypatch.setattr(forecast, "rehearse", spied)
    train(stage, [*options(stage, tmp_path / "with"), *words])
    monkeypatch.setattr(forecast, "rehearse", lambda trainer, opened: None)
    train(stage, [*options(stage, tmp_path / "without"), *words])

    assert rehearsed[0].batch_s > 0 < rehearsed[0].update_s
    one, other = records(tmp_path / "with"), records(tmp_path / "without")
    assert len(one) == 4
    assert one == other
    ours, theirs = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resume_takes_its_own_steps_and_rehearses_nothing(
    options: Options, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*options("pretrain", tmp_path / "run"), "trainer.save_steps=2"]
    train("pretrain", [*words, "trainer.max_steps=4"])
    assert "from a rehearsal step" in capfd.readouterr().out
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) | {"seconds": 7.0} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run" / "finished.json").unlink(missing_ok=True)
    train("pretrain", [*words, "trainer.max_steps=9"])
    assert "about 35 s for 5 steps of 7 s, as before the restart; shown again after 3 steps" in capfd.readouterr().out


def seconds_in(text: str, pattern: str) -> float:
    found = re.search(pattern + r"[^\n]*?([\d.e-]+) s\b", text)
    assert found is not None, text
    return float(found[1])


def test_encoding_says_how_long_it_takes(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode_once, "_LOOK_S", 0.0)
    words = ["model.freeze=[encoder]", f"data.encoder_cache={tmp_path / 'cache'}", "trainer.max_steps=1"]
    train("pretrain", [*options("pretrain", tmp_path / "one"), *words])
    screen = capfd.readouterr().out
    assert screen.count("encoding takes about") == 1
    assert screen.index("of audio once") < screen.index("encoding takes about") < screen.index("writes to")
    train("pretrain", [*options("pretrain", tmp_path / "two"), *words])
    again = capfd.readouterr().out
    assert "of audio once" not in again
    assert "encoding takes" not in again


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "nano"])
def test_forecasts_are_true(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model: str
) -> None:
    """The first within a factor 2, that after three steps within 1.5; by CPU seconds, which other programs leave be."""
    clock = SimpleNamespace(perf_counter=time.process_time)
    monkeypatch.setattr("qa_train.train.mixin.time", clock)
    monkeypatch.setattr("qa_train.train.forecast.time", clock)
    words = ["trainer.max_steps=36", "data.tokens_per_batch=500", "trainer.save_steps=36"]
    if model == "nano":
        # As the quickstart trains it.
        words += [
            "model=nano",
            "model.freeze=[encoder]",
            f"data.encoder_cache={tmp_path / 'cache'}",
            "trainer.bf16=auto",
        ]
        words += ["trainer.muon_learning_rate=5e-3", "data.tokens_per_batch=1500"]
    train("pretrain", [*options("pretrain", tmp_path / "run"), *words])
    screen = capfd.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    took = mean(row["seconds"] for row in rows)
    first = seconds_in(screen, r"time +about .* for 36 steps of")
    again = seconds_in(screen, r"time: about .* for the 33 steps left \(")
    assert took / 2 < first < 2 * took, f"{first} s a step were said, {took} s taken"
    assert took / 1.5 < again < 1.5 * took, f"{again} s a step were said after three, {took} s taken"
    # A tenth of 36 is 4 steps: said again.
    assert "for the 32 steps left" in screen


@pytest.mark.parametrize(
    ("last", "first", "spoken"),
    [(8, 0, {3}), (3, 0, set()), (40, 0, {3, 4}), (560, 0, {3, 56}), (560, 460, {463, 470})],
)
def test_when_there_is_something_to_say(last: int, first: int, spoken: set[int]) -> None:
    pace = Pace(first, last)
    assert {step for step in range(first + 1, last + 1) if pace.step(1.0) is not None} == spoken


def test_the_first_step_is_not_what_the_others_take() -> None:
    pace = Pace(0, 100)
    assert pace.step(30.0) is None
    pace.step(2.0)
    assert pace.step(2.0) == "time: about 3 min for the 97 steps left (2 s a step, measured over 3)"
    for _ in range(6):
        pace.step(2.0)
    # A save was in the last one.
    assert pace.step(11.0) == "time: about 4 min for the 90 steps left (3 s a step, measured over 10)"
    assert FIRST_STEPS == 3
