"""Decoding in a child process that can be killed: a native decoder that hangs or crashes costs one clip, not the run.

The child is forked on first use by the process that decodes (the trainer, or a worker of its DataLoader), answers
one request after another through pipes, and is replaced when it dies or takes too long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.utils.process import end_with_parent

_REQUEST = struct.Struct("<Qd")
_REPLY = struct.Struct("<?Q")
# Memory that a child may allocate in addition to that of its parent.
_MORE_MEMORY = 2 << 30


@dataclass
class _Child:
    pid: int
    requests: int
    replies: int


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
        deadline = time.monotonic() + self.timeout_s
        child = self._running()
        try:
            _write(child.requests, _REQUEST.pack(len(raw), max_duration_s) + raw, deadline)
            ok, size = _REPLY.unpack(_read(child.replies, _REPLY.size, deadline))
            body = _read(child.replies, size, deadline)
        except TimeoutError as error:
            self.close()
            raise BadAudio(f"the decoder had no result after {self.timeout_s:g} s and was killed") from error
        except (EOFError, BrokenPipeError) as error:
            status = self.close()
            raise BadAudio(f"the decoder's process died ({status})") from error
        if not ok:
            raise BadAudio(body.decode())
        return np.frombuffer(body, dtype=np.float32)

    def close(self) -> str:
        """End the child; returns how it ended."""
        child, self._child = self._child, None
        if child is None or self._process != os.getpid():
            return "not running"
        os.close(child.requests)
        os.close(child.replies)
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
    request_out, request_in = os.pipe()
    reply_out, reply_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _serve(request_out, reply_in)
        finally:
            os._exit(1)
    os.close(request_out)
    os.close(reply_in)
    return _Child(pid, request_in, reply_out)


def _serve(requests: int, replies: int) -> NoReturn:
    """The child: answers until the parent's end closes."""
    end_with_parent()  # even while it hangs in a clip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Descriptors of the parent (sockets, queues, the other ends of these pipes) would be kept open by this process.
    keep = sorted((requests, replies))
    for low, high in zip([2, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, min(high, 1 << 20))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_MEMORY, used + _MORE_MEMORY))
    while True:
        try:
            size, max_duration_s = _REQUEST.unpack(_read(requests, _REQUEST.size))
            raw = bytes(_read(requests, size))
        except EOFError:
            os._exit(0)
        try:
            ok, body = True, read_clip(raw, max_duration_s=max_duration_s).tobytes()
        except (BadAudio, MemoryError) as error:
            ok, body = False, (str(error) or type(error).__name__).encode()
        _write(replies, _REPLY.pack(ok, len(body)) + body)


def _read(pipe: int, size: int, deadline: float | None = None) -> bytearray:
    parts = bytearray()
    while len(parts) < size:
        _wait([pipe], [], deadline)
        part = os.read(pipe, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return parts


def _write(pipe: int, data: bytes, deadline: float | None = None) -> None:
    view = memoryview(data)
    os.set_blocking(pipe, False)
    while view:
        _wait([], [pipe], deadline)
        view = view[os.write(pipe, view) :]


def _wait(reads: list[int], writes: list[int], deadline: float | None) -> None:
    """Until one of the pipes is ready; TimeoutError at the deadline."""
    seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not any(select.select(reads, writes, [], seconds)):
        raise TimeoutError
