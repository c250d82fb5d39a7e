"""A run goes on with data that changed, if it is allowed to; a start that is refused leaves no trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.conftest import metrics, run

Options = Callable[[str, Path], list[str]]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "more"), [("pretrain", []), ("dpo", ["dpo.reference=precomputed"])])
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
    words = [word.replace(str(shards), str(copied)) for word in options(stage, folder)] + more
    run(stage, *words, "trainer.max_steps=3")
    settings = (folder / "config.yaml").read_text()
    for path in sorted(shards.glob(f"{kind}-002*")):
        shutil.copy(path, copied)
    refused = run(stage, *words, check=False)
    assert refused.returncode
    assert "the data differ from those" in refused.stderr
    assert (folder / "config.yaml").read_text() == settings
    assert (folder / "finished.json").is_file()
    done = run(stage, *words, "run.allow_data_change=true")
    assert "resuming from checkpoint-3" in done.stdout
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert "max_steps: 6" in (folder / "config.yaml").read_text()
