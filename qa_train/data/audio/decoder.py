"""Decoding in a child process that can be killed: a native decoder that hangs or crashes costs one clip, not the run.

The child is forked on first use by the process that decodes (the trainer, or a worker of its DataLoader), answers
one request after another through a socket, and is replaced when it dies or takes too long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qa_train.data.audio.waveform import BadAudio, read_indexed
from qa_train.utils.process import end_with_parent

# Before a request: the number of samples, and the bytes of the file. Before a reply: whether it is the samples, not an
# error, and its bytes.
_REQUEST, _REPLY = struct.Struct("<qQ"), struct.Struct("<?Q")
# Memory that a child may allocate in addition to that of its parent.
_MORE_MEMORY = 2 << 30


@dataclass
class _Child:
    pid: int
    link: socket.socket


class KillableDecoder:
    """`read_indexed` in a child process. Picklable: every process has its own child."""

    def __init__(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise ValueError(f"data.decode_timeout_s is {timeout_s}: give seconds, or null to decode in the worker")
        self.timeout_s = timeout_s
        self._child: _Child | None = None
        self._process = os.getpid()

    def read_indexed(self, raw: bytes, num_samples: int) -> np.ndarray:
        """The clip, float32 mono at 16 kHz, [num_samples]; BadAudio also when the decoder crashed or took too long."""
        link = self._running().link
        try:
            link.sendall(_REQUEST.pack(num_samples, len(raw)))
            link.sendall(raw)
            ok, size = _REPLY.unpack(_received(link, _REPLY.size))
            reply = _received(link, size)
        except TimeoutError as error:
            self.close()
            raise BadAudio(f"the decoder had no result after {self.timeout_s:g} s and was killed") from error
        except (EOFError, OSError) as death:
            status = self.close()
            raise BadAudio(f"the decoder's process died ({status})") from death
        if not ok:
            raise BadAudio(bytes(reply).decode())
        return np.frombuffer(reply, np.float32)

    def close(self) -> str:
        """End the child; returns how it ended."""
        child, self._child = self._child, None
        if child is None or self._process != os.getpid():
            return "not running"
        child.link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"

    def _running(self) -> _Child:
        if self._process != os.getpid():
            # The child answers the process that forked it; this is a fork of that one.
            self._child, self._process = None, os.getpid()
        if self._child is None:
            self._child = _fork(self.timeout_s)
        return self._child

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s, "_child": None, "_process": os.getpid()}


def _fork(timeout_s: float) -> _Child:
    ours, theirs = socket.socketpair()
    # Of every call: a child may be stopped before it has read the request, or within its reply.
    ours.settimeout(timeout_s)
    pid = os.fork()
    if pid == 0:
        try:
            _serve(theirs)
        finally:
            os._exit(1)
    theirs.close()
    return _Child(pid, ours)


def _received(link: socket.socket, size: int) -> memoryview:
    """The next ``size`` bytes; EOFError where the other end closes before."""
    rest = found = np.empty(size, np.uint8).data
    while rest:
        count = link.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return found


def _serve(link: socket.socket) -> NoReturn:
    """The child: answers until the parent's end closes."""
    end_with_parent()  # even while it hangs in a clip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Descriptors of the parent (sockets, queues, the other end of this socket) would be kept open by this process.
    os.closerange(3, link.fileno())
    os.closerange(link.fileno() + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_MEMORY, used + _MORE_MEMORY))
    while True:
        try:
            num_samples, size = _REQUEST.unpack(_received(link, _REQUEST.size))
            raw = bytes(_received(link, size))
        except EOFError:
            os._exit(0)
        try:
            ok, reply = True, read_indexed(raw, num_samples).view(np.uint8).data
        except (BadAudio, MemoryError) as error:
            ok, reply = False, memoryview((str(error) or type(error).__name__).encode())
        link.sendall(_REPLY.pack(ok, len(reply)))
        link.sendall(reply)
