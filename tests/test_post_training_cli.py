"""Runs that drift, and builders of pairs, through the command line, with a small random model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from qa_train.cli import main
from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.data.shards.index import load_index
from qa_train.infer.generate import Generator
from qa_train.model import build_model
from tests.train.conftest import metrics, options, run, shards  # noqa: F401

pytestmark = pytest.mark.slow
Options = Callable[[str, Path], list[str]]


def stop(shards: Path, action: str) -> list[str]:  # noqa: F811
    sets = f"{{speech: {{shards: ['{shards}/speech-*.tar'], task: ask_transcript, limit: 5, seen_in_training: true}}}}"
    return [
        "evaluation.every=2", f"+evaluation.sets={sets}", "evaluation.max_new_tokens=12",
        f"+evaluation.stop.speech={{rise: 0, length_ratio: 1, action: {action}}}", "trainer.learning_rate=5e-2",
        "trainer.warmup_steps=0",
    ]  # fmt: skip


def test_a_drift_warns_and_goes_on(tmp_path: Path, shards: Path, options: Options) -> None:  # noqa: F811
    done = run("dpo", *options("dpo", tmp_path / "run"), *stop(shards, "warn"))
    readings = [row["evaluation"]["speech"] for row in metrics(tmp_path / "run") if "evaluation" in row]
    assert len(readings) == 4
    assert any(reading != readings[0] for reading in readings)
    assert "evaluation.stop.speech" in done.stdout
    assert len([row for row in metrics(tmp_path / "run") if "loss" in row]) == 6


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("dpo", []),
        ("sft", ["deepspeed=zero3", "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"]),
    ],
    ids=["dpo", "zero3"],
)
def test_a_drift_stops_all_processes(
    stage: str, more: list[str], tmp_path: Path, shards: Path, options: Options  # noqa: F811
) -> None:  # fmt: skip
    words = [*options(stage, tmp_path / "run"), *stop(shards, "stop"), *more]
    done = run(stage, *words, processes=2, check=False)
    assert done.returncode == 1
    assert "Use an earlier checkpoint, a lower learning rate" in done.stderr
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] < 6
    assert "loss" not in last
    assert last["evaluation"]["speech"]["n"] == 5
    assert not (tmp_path / "run/finished.json").exists()


class ShorterWins(BaseHTTPRequestHandler):
    """A judge that prefers the shorter answer."""

    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.asked.append(prompt)
        a, b = re.findall(r"^Answer A: (.*?)\n+Answer B: (.*?)\n\nWhich answer", prompt, re.MULTILINE | re.DOTALL)[0]
        verdict = "TIE" if len(a) == len(b) else "A" if len(a) < len(b) else "B"
        body = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ShorterWins)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
               "num_mel_bins": 80}  # fmt: skip
    llm = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1,
           "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
    parts = {"encoder": EncoderConfig(config=encoder), "llm": LanguageModelConfig(config=llm)}
    model, processor = build_model(ModelConfig(name="test", tokenizer="builtin:nano", **parts), seed=1)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        # One feature is as good as constant: few tokens are likely, and answers end after a few of them.
        model.model.language_model.embed_tokens.weight[:, 0] = 10
        model.lm_head.weight[:, 0] = -2
        model.lm_head.weight[300:340, 0] = 0
        model.lm_head.weight[end, 0] = 0.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def made(folder: Path) -> list[dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("pairs-*.tar")) for row in load_index(str(path)).table.to_pylist()]
    return [json.loads(row["meta"]) for row in rows]


def pairs_words(checkpoint: Path, shards: Path, out: Path) -> list[str]:  # noqa: F811
    return ["pairs", f"checkpoint={checkpoint}", f"shards={shards}/speech-*.tar", f"out={out}", "limit=10",
            "max_new_tokens=10", "samples=3"]  # fmt: skip


def test_pairs_by_word_errors_are_ranked_and_reproducible(
    checkpoint: Path, shards: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    for out in ("one", "two"):
        assert command(*pairs_words(checkpoint, shards, tmp_path / out), "temperature=1.5", "margin=0.1") == 0
    one, two = (tmp_path / out / "pairs-000.tar" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    for record in made(tmp_path / "one"):
        assert record["chosen"] != record["rejected"]
        assert record["messages"][0]["content"].startswith("<audio>")
    report = json.loads((tmp_path / "one/pairs.report.json").read_text())
    assert report["pairs"] == len(made(tmp_path / "one")) == len(report["examples"]) > 0
    assert command(*pairs_words(checkpoint, shards, tmp_path / "one")) == 2, "pairs are not overwritten"


def test_pairs_go_on_after_a_kill(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    words = [*pairs_words(checkpoint, shards, tmp_path / "out"), "temperature=1.5", "margin=0.1"]
    assert command(*words) == 0
    whole, report = tmp_path / "out/pairs-000.tar", tmp_path / "out/pairs.report.json"
    expected = whole.read_bytes(), report.read_bytes()
    # As if killed while the shards were written: they are there, the report is not, and one shard too many.
    report.unlink()
    whole.write_bytes(b"half")
    (tmp_path / "out/pairs-001.tar").write_bytes(b"of other options")
    monkeypatch.setattr(Generator, "sample", lambda *args: pytest.fail("asked again"))
    assert command(*words) == 0
    assert (whole.read_bytes(), report.read_bytes()) == expected
    assert not (tmp_path / "out/pairs-001.tar").exists()


def test_pairs_of_two_processes_are_those_of_one(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    for processes in (1, 2):
        more = ("temperature=1.5", "margin=0.1", "limit=null", "batch_size=6")
        words = [*pairs_words(checkpoint, shards, tmp_path / str(processes)), *more]
        run(words[0], *words[1:], processes=processes)
    one, two = (tmp_path / name / "pairs-000.tar" for name in ("1", "2"))
    assert one.read_bytes() == two.read_bytes()
    for rank in range(2):
        assert len((tmp_path / f"2/answers-{rank}.jsonl").read_text().splitlines()) > 1, "each answered some"


def test_pairs_by_a_judge_train_a_model(
    checkpoint: Path, shards: Path, judge: str, tmp_path: Path, options: Options  # noqa: F811
) -> None:  # fmt: skip
    words = [*pairs_words(checkpoint, shards, tmp_path / "out"), "temperature=1.5", "by=judge", "judge_model=stub"]
    assert command(*words, f"judge_url={judge}") == 0
    found = made(tmp_path / "out")
    assert found
    assert all(len(record["chosen"]) < len(record["rejected"]) for record in found)
    asked = len(ShorterWins.asked)
    report = json.loads((tmp_path / "out/pairs.report.json").read_text())
    assert asked == 2 * report["judged"]["comparisons"], "both orders of every two answers"
    # Offline, from the cache: the same pairs, and nobody is asked.
    (tmp_path / "out/pairs-000.tar").rename(tmp_path / "before.tar")
    assert command(*words) == 0
    assert (tmp_path / "out/pairs-000.tar").read_bytes() == (tmp_path / "before.tar").read_bytes()
    assert len(ShorterWins.asked) == asked
    given = options("dpo", tmp_path / "run")
    given = [re.sub(r"'[^']*pairs-\*\.tar'", f"'{tmp_path}/out/pairs-*.tar'", word) for word in given]
    run("dpo", *[re.sub(r",french:\{.*\}\}$", "}", word) for word in given], "trainer.max_steps=2",
        "data.tokens_per_batch=600")  # fmt: skip
    assert len(metrics(tmp_path / "run")) == 2
