"""Debian packages as a source of data: downloaded and unpacked, never installed (no root needed)."""

from __future__ import annotations

import subprocess
from pathlib import Path


def fetch(packages: tuple[str, ...], folder: Path) -> list[Path]:
    """Downloads the missing ``packages`` with ``apt-get download``; returns one .deb for each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for package in packages:
        found = sorted(folder.glob(f"{package}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            found = sorted(folder.glob(f"{package}_*.deb"))
        if not found:
            raise ValueError(
                f"no {package}_*.deb in {folder} after 'apt-get download {package}'; "
                "run 'apt-get update', or put the file there by hand"
            )
        files.append(found[-1])
    return files


def unpack(debs: list[Path], root: Path) -> Path:
    """Extracts the files of ``debs`` under ``root`` (done once: a marker remembers each)."""
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        marker = root / f".{deb.name}.unpacked"
        if not marker.exists():
            subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
            marker.touch()
    return root
