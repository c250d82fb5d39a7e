"""A decoder's process in which files that begin with a certain word crash it, or never end."""

from __future__ import annotations

import pytest

from qa_train.data.audio import decoder

PROGRAM = """
import ctypes
import numpy
from qa_train.data.audio import decoder

good = decoder.read_clip

def read_clip(raw, *, max_duration_s):
    if raw.startswith(b"crash"):
        ctypes.string_at(0)
    if raw.startswith(b"hang"):
        ctypes.PyDLL(None).sleep(600)  # and lets no other thread of Python run
    if raw.startswith(b"huge"):
        numpy.empty(1 << 40)
    return good(raw, max_duration_s=max_duration_s)

decoder.read_clip = read_clip
decoder.read_indexed = lambda raw, num_samples: read_clip(raw, max_duration_s=60)
decoder.answer()
"""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that start from now on are such."""
    monkeypatch.setattr(decoder, "_PROGRAM", PROGRAM)
