"""A precomputed reference: the same losses as a live one, kept with the run, and never another one in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qa_train.train.reference import Reference
from tests.train.conftest import metrics, run

Options = Callable[[str, Path], list[str]]
FAST = ["trainer.learning_rate=3e-3", "trainer.max_steps=8", "trainer.save_steps=4"]


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory: pytest.TempPathFactory, options: Options) -> Path:
    """A finished run with a precomputed reference."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    done = run("dpo", *options("dpo", folder), *FAST, "dpo.reference=precomputed")
    assert "computed once" in done.stdout
    return folder


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


def test_losses_equal_those_of_a_live_reference(precomputed: Path, tmp_path: Path, options: Options) -> None:
    run("dpo", *options("dpo", tmp_path / "live"), *FAST)
    first = metrics(precomputed)[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(losses(precomputed), losses(tmp_path / "live"), atol=2e-5)
    assert losses(precomputed)[-1] < np.log(2) - 0.01
    kinds = [
        json.loads((f / "reference/reference.json").read_text())["facts"] for f in (precomputed, tmp_path / "live")
    ]
    assert [facts.pop("kind") for facts in kinds] == ["precomputed", "live"]
    assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_a_reference_that_moves_comes_back_with_the_run(tmp_path: Path, options: Options) -> None:
    moving = ["dpo.sync_ref_model=true", "dpo.ref_model_sync_steps=2", "dpo.ref_model_mixup_alpha=0.5"]
    for name, more in (("fixed", []), ("whole", moving)):
        run("dpo", *options("dpo", tmp_path / name), *FAST, *more)
    # It moves after the second step.
    assert losses(tmp_path / "whole")[:2] == losses(tmp_path / "fixed")[:2]
    assert losses(tmp_path / "whole")[2] > losses(tmp_path / "fixed")[2] + 1e-3
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    shutil.rmtree(again / "checkpoints" / "checkpoint-8")
    (again / "finished.json").unlink()
    run("dpo", *options("dpo", again), *FAST, *moving)
    assert losses(again) == losses(tmp_path / "whole")


def test_another_reference_is_refused(precomputed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/reference"
    shutil.copytree(precomputed / "reference", folder)
    path = folder / "reference.json"
    record = json.loads(path.read_text())
    facts = record["facts"]
    found = Reference(folder, facts, is_main=True)
    assert len(found.table) == record["pairs"] > 10
    for name, other in (("weights_digest", "0" * 64), ("dtype", "float16"), ("ld_alpha", 0.5), ("kind", "live")):
        with pytest.raises(ValueError, match=f"began with another reference \\({name} "):
            Reference(folder, {**facts, name: other}, is_main=True)
    path.write_text(json.dumps({**record, "table": "0" * 64}))
    with pytest.raises(ValueError, match=r"is not the file that reference\.json speaks of"):
        Reference(folder, facts, is_main=True)
    (folder / "logps.parquet").unlink()
    with pytest.raises(ValueError, match="is not the file"):
        Reference(folder, facts, is_main=True)
