"""Weights that lie in packages of a registry: one version is known, by the sum of its file."""

from __future__ import annotations

from pathlib import Path

from qa_train.utils.digests import sha256_of_file


def check_packaged(path: Path, sha256: str, wheel: str) -> Path:
    """The path, if the file has that SHA-256. ValueError otherwise: nothing of it is read."""
    found = sha256_of_file(path)
    if found != sha256:
        raise ValueError(
            f"{path.name} of the package {wheel} has the SHA-256 {found[:16]}..., expected {sha256[:16]}...: another "
            f"version, or damaged. Install the pinned one: pip install --force-reinstall -c constraints.txt {wheel}"
        )
    return path
