"""scripts/check_plan.py: the runs that it makes for the table of docs/lab/planning.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qa_train.config import config_dir, register, to_stage_config
from tests import by_path

check_plan = by_path.script("check_plan")


@pytest.mark.slow
def test_the_runs_of_the_table_can_be_composed(tmp_path: Path) -> None:
    register()
    seen = {}
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        for kind in check_plan.TABLE:
            assert kind.pace[0] != kind.pace[1]
            for tokens in (*kind.pace, *kind.planned):
                words = check_plan.command(tmp_path, kind, tokens, 25)
                given = words[words.index("pretrain") + 1 :]
                cfg = to_stage_config(compose(config_name="pretrain", overrides=given))
                assert cfg.data.tokens_per_batch == tokens
                assert bool(cfg.data.encoder_cache) == (cfg.model.freeze == ["encoder"])
                # One folder is one run, whichever comparison asks for it first.
                assert seen.setdefault(cfg.run.dir, words) == words
    assert len(seen) == 11


def test_a_table_is_made_run_by_run_and_compared(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    made = []
    monkeypatch.setattr(check_plan.subprocess, "run", lambda words, check: made.append(words[-1]))
    compared = []
    monkeypatch.setattr(check_plan, "compare", lambda runs: compared.append([run.name for run in runs]) or 0.02)
    monkeypatch.setattr(sys, "argv", ["check_plan.py", "--make", str(tmp_path)])
    assert check_plan.main() == 0
    assert len(made) == sum(2 + len(kind.planned) for kind in check_plan.TABLE)
    assert compared[0] == ["tiny-1-1000", "tiny-1-4000", "tiny-1-1500", "tiny-1-2500"]
    assert compared[-1] == ["nano-2-1250", "nano-2-2500", "nano-2-5000"]
