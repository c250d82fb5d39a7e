"""The compiler that kernels written in Triton need on a GPU when they are first called."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

REMEDY = "apt-get install gcc libc6-dev python3-dev, or point CC to a C compiler"


def missing_compiler(environ: Mapping[str, str] = os.environ) -> str | None:
    """What Triton would not find here, or None: ``CC``, gcc or clang, and the headers of this Python.

    Triton compiles a small C file against Python.h for every kernel (triton/runtime/build.py).
    """
    asked = environ.get("CC")
    if shutil.which(asked or "gcc") is None and (asked or shutil.which("clang") is None):
        return f"there is no {asked} (CC)" if asked else "there is neither gcc nor clang"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"there is no {header}"
