"""The API reference: pdoc builds it without a warning, and it holds what users call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.conftest import ROOT, environment

pytest.importorskip("pdoc")


@pytest.mark.slow
def test_the_reference_is_built_without_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "api_docs.py"), str(tmp_path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert ", 0 warnings" in done.stdout
    page = (tmp_path / "qa_train" / "train" / "job" / "checkpoints.html").read_text()
    assert 'id="newest_complete"' in page
    assert 'id="_' not in page
    assert "Arguments:" in page
    options = (tmp_path / "qa_train" / "config.html").read_text()
    assert "<code>tokens_per_batch=3000</code> Budget of one batch" in options, "options stand with their comments"
    assert "load_model" in (tmp_path / "qa_train" / "model.html").read_text()
