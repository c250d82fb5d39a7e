"""Triton's compiler is looked for as Triton looks for it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from qa_train.utils.process import missing_compiler


@pytest.mark.parametrize(
    ("there", "asked", "missing"),
    [
        (["gcc"], None, None),
        (["clang"], None, None),
        (["gcc", "clang"], None, None),
        (["mycc"], "mycc", None),
        ([], None, "there is neither gcc nor clang"),
        (["g++", "cc"], None, "there is neither gcc nor clang"),
        # Triton takes CC at its word.
        (["gcc"], "icc", "there is no icc (CC)"),
        (["clang"], "icc", "there is no icc (CC)"),
    ],
)
def test_compilers(
    there: list[str], asked: str | None, missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert missing_compiler({"CC": asked} if asked else {}) == missing


def test_headers_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert missing_compiler({}) == f"there is no {tmp_path}/Python.h"
