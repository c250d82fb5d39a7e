"""`qa-train plan data`: the effective_mixture mixture, without audio or model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_train.cli import main
from qa_train.data.shards.writer import ShardWriter
from tests.data.conftest import noise


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A mixture of two sources over 60 short clips, one of which runs dry."""
    with ShardWriter(tmp_path / "s-%d.tar", max_samples=20) as writer:
        for i in range(60):
            record = {"text": "green bird " * (1 + i % 4), "language": ("en", "fr")[i % 2]}
            writer.write(f"k{i}", record, noise(0.3 + i / 60, seed=i))
    shards = f"shards:['{tmp_path}/s-*.tar']"
    sources = f"{{asr:{{{shards},task:asr}},lid:{{{shards},task:lid,where:{{language:fr}},max_epochs:1,weight:1}}}}"
    return [
        "experiment=smoke", "data=empty", f"+data.sources={sources}", "data.tokens_per_batch=600",
        "data.shuffle_window=80", "trainer.batches_per_step=4",
    ]  # fmt: skip


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as done:
        main(words)
    return int(done.value.code or 0)


def test_the_dry_run_says_what_a_run_trains_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert run(["plan", "data", "steps=6", f"json={out}", *words]) == 0
    shown = capsys.readouterr().out
    assert "after 1 epochs its share goes to the others" in shown
    assert "balance, in useful operations of this model" in shown
    assert "4 ranks: the costliest rank of a step does" in shown
    result = json.loads(out.read_text())
    asr, lid = result["sources"]
    assert result["batches"] == 24
    assert asr["samples"] + lid["samples"] == result["samples"]
    assert asr["tokens"] + lid["tokens"] == result["tokens"]
    # 30 French clips once; the rest of the run is recognition.
    assert lid["samples"] == 30
    assert lid["epochs"] == 1
    assert asr["epochs"] == pytest.approx(asr["samples"] / 60)
    assert lid["left_out"] == {"filtered by where": 30}
    assert result["available"][1]["left_out"] == {"filtered by where": 30}
    assert 0.9 < result["fill"] <= 1


def test_wrong_use_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan"]) == 2
    assert run(["plan", "data", "steps=0", *words]) == 2
    assert run(["plan", "data", *words, "+data.sources.asr.max_epochs=2"]) == 2
    shown = capsys.readouterr().err
    for message in ("name what to plan", "steps=0: use 1 or more", "every source has max_epochs"):
        assert message in shown
