"""Decoding in a child process that can be killed: a native decoder that hangs or crashes costs one clip, not the run.

The child is forked on first use by the process that decodes (the trainer, or a worker of its DataLoader), answers
one request after another through a pipe, and is replaced when it dies or takes too long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.utils.process import end_with_parent

# A request is two messages: the longest duration in seconds, and the file. A reply is an error; or an empty one, and
# the samples.
_LIMIT = struct.Struct("<d")
# Memory that a child may allocate in addition to that of its parent.
_MORE_MEMORY = 2 << 30


@dataclass
class _Child:
    pid: int
    pipe: Connection


class KillableDecoder:
    """``read_clip`` in a child process. Picklable: every process has its own child."""

    def __init__(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise ValueError(f"data.decode_timeout_s is {timeout_s}: give seconds, or null to decode in the worker")
        self.timeout_s = timeout_s
        self._child: _Child | None = None
        self._process = os.getpid()

    def read_clip(self, raw: bytes, *, max_duration_s: float) -> np.ndarray:
        """Decode to float32 mono at 16 kHz, [n]; BadAudio also when the decoder crashed or took too long."""
        pipe = self._running().pipe
        try:
            # An idle child reads at once, so only its answer can be late.
            pipe.send_bytes(_LIMIT.pack(max_duration_s))
            pipe.send_bytes(raw)
            if not pipe.poll(self.timeout_s):
                self.close()
                raise BadAudio(f"the decoder had no result after {self.timeout_s:g} s and was killed")
            if error := pipe.recv_bytes():
                raise BadAudio(error.decode())
            return np.frombuffer(bytearray(pipe.recv_bytes()), dtype=np.float32)
        except (EOFError, OSError) as death:
            status = self.close()
            raise BadAudio(f"the decoder's process died ({status})") from death

    def close(self) -> str:
        """End the child; returns how it ended."""
        child, self._child = self._child, None
        if child is None or self._process != os.getpid():
            return "not running"
        child.pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"

    def _running(self) -> _Child:
        if self._process != os.getpid():
            # The child answers the process that forked it; this is a fork of that one.
            self._child, self._process = None, os.getpid()
        if self._child is None:
            self._child = _fork()
        return self._child

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s, "_child": None, "_process": os.getpid()}


def _fork() -> _Child:
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _serve(theirs)
        finally:
            os._exit(1)
    theirs.close()
    return _Child(pid, ours)


def _serve(pipe: Connection) -> NoReturn:
    """The child: answers until the parent's end closes."""
    end_with_parent()  # even while it hangs in a clip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Descriptors of the parent (sockets, queues, the other end of this pipe) would be kept open by this process.
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_MEMORY, used + _MORE_MEMORY))
    while True:
        try:
            (max_duration_s,), raw = _LIMIT.unpack(pipe.recv_bytes()), pipe.recv_bytes()
        except EOFError:
            os._exit(0)
        try:
            samples = read_clip(raw, max_duration_s=max_duration_s)
        except (BadAudio, MemoryError) as error:
            pipe.send_bytes((str(error) or type(error).__name__).encode())
            continue
        pipe.send_bytes(b"")
        pipe.send_bytes(samples.data)
