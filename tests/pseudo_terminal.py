"""A command in a pseudo terminal of its own: what a person sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path


def opened(columns: int) -> tuple[int, int]:
    """A terminal of so many columns: the end that reads what is shown, and the one that a command writes to."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return parent, child


def shown(parent: int) -> str:
    """All that is written until the last writer has left."""
    found = b""
    with contextlib.suppress(OSError):  # how a terminal that was left ends on Linux
        while part := os.read(parent, 4096):
            found += part
    os.close(parent)
    return found.decode().replace("\r\n", "\n")


def in_terminal(
    command: Sequence[str], columns: int, *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run ``command`` with stdout and stderr on a terminal of so many columns; its exit code and what it wrote."""
    parent, child = opened(columns)
    own = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    own |= {"TERM": "xterm-256color", **(environ or {})}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=cwd, env=own) as process:
        os.close(child)
        found = shown(parent)
        return process.wait(), found
