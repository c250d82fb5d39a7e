"""The packages for a GPU machine without a network: the right ones, in an archive that a run puts first."""

from __future__ import annotations

import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import by_path


@pytest.fixture
def kit() -> Any:
    return by_path.script("gpu_kit")


def test_all_that_a_run_needs_is_there_or_in_the_archive(kit: Any) -> None:
    found = kit.needed("qa-train", kit.EXTRAS)
    direct = {
        canonicalize_name(Requirement(line).name) for line in requires("qa-train") or [] if "extra ==" not in line
    }
    assert direct <= found.keys() | kit.THERE
    # What these need in turn, and what extras bring.
    assert {
        "tokenizers",
        "omegaconf",
        "antlr4-python3-runtime",
        "cffi",
        "rapidfuzz",
        "peft",
        "liger-kernel",
    } <= found.keys()
    assert not found.keys() & {"torch", "numpy", "wandb", "pytest"}


def test_a_wheel_lies_in_the_archive_as_in_site_packages(kit: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("pack/__init__.py", "pack/tests/test_a.py", "pack/stub.pyi", "pack-1.dist-info/METADATA"):
            wheel.writestr(name, name)
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as tar:
        kit.add_wheel(tar, tmp_path / "a.whl")
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        assert tar.getnames() == ["pack/__init__.py", "pack-1.dist-info/METADATA"]
        tar.extractall(tmp_path, filter="data")
    assert (tmp_path / "pack/__init__.py").read_text() == "pack/__init__.py"


def test_a_run_takes_the_packages_of_the_archive_first(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenacity.py").write_text("")
    with tarfile.open(tmp_path / "kit.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "tenacity.py", "tenacity.py")
    monkeypatch.setattr(kit, "ARCHIVE", tmp_path / "kit.tar.xz")
    out = tmp_path / "found"
    look = f"import tenacity, qa_train, pathlib; pathlib.Path({str(out)!r}).write_text(tenacity.__file__)"
    monkeypatch.setitem(kit.RUNS, "checks", ["-c", look])
    assert kit.run("checks", "cpu", None) == 0
    assert out.read_text().endswith("tenacity.py")
    assert "site-packages" not in out.read_text()
