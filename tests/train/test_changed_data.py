"""A run goes on with data that changed, if it is allowed to; a start that is refused leaves no trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.conftest import metrics, run

Options = Callable[[str, Path], list[str]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("pretrain", ["model.freeze=[encoder]", "data.encoder_cache={}/cache"]),
        ("dpo", ["dpo.reference=precomputed"]),
    ],
)
def test_a_run_resumes_on_changed_shards(
    stage: str, more: list[str], shards: Path, tmp_path: Path, options: Options
) -> None:
    kind = "pairs" if stage == "dpo" else "speech"
    copied = tmp_path / "shards"
    copied.mkdir()
    for path in sorted(shards.glob(f"{kind}-*")):
        # The last shard comes later.
        if not path.name.startswith(f"{kind}-002"):
            shutil.copy(path, copied)
    folder = tmp_path / "run"
    words = [word.replace(str(shards), str(copied)) for word in options(stage, folder)]
    words += [word.format(tmp_path) for word in more]
    run(stage, *words, "trainer.max_steps=3")
    settings = (folder / "config.yaml").read_text()
    for path in sorted(shards.glob(f"{kind}-002*")):
        shutil.copy(path, copied)
    refused = run(stage, *words, check=False)
    assert refused.returncode
    assert "the data differ from those" in refused.stderr
    assert "encoding" not in refused.stdout, "refused before new clips are encoded"
    assert (folder / "config.yaml").read_text() == settings
    assert (folder / "finished.json").is_file()
    done = run(stage, *words, "run.allow_data_change=true")
    assert "resuming from checkpoint-3" in done.stdout
    assert "has 1 new shards: they join epoch" in done.stderr
    assert len(list((folder / "plans").iterdir())) == 2
    assert ("encoding" in done.stdout) == (stage == "pretrain")
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert "max_steps: 6" in (folder / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_other_batches_per_step_go_on_with_the_next_batch(
    stage: str, shards: Path, tmp_path: Path, options: Options
) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    run(stage, *options(stage, whole), "trainer.batches_per_step=2", "trainer.max_steps=7")
    run(stage, *options(stage, changed), "trainer.batches_per_step=2", "trainer.max_steps=3")
    words = [*options(stage, changed), "trainer.batches_per_step=4", "trainer.max_steps=5"]
    refused = run(stage, *words, check=False)
    assert "other values of trainer.batches_per_step " in refused.stderr
    # Two processes that could not share three batches, say.
    run(stage, *words, "run.allow_config_change=true", processes=2)
    for name in ("tokens", "supervised_tokens", "audio_s"):
        once, twice = ([record[name] for record in metrics(folder)] for folder in (whole, changed))
        joined = [*once[:3], once[3] + once[4], once[5] + once[6]]
        assert twice == pytest.approx(joined), name
