"""Decoding in a child process that can be killed: a native decoder that hangs or crashes costs one clip, not the run.

The child is a new interpreter and no fork: it shares neither locks nor memory nor a GPU with its parent, which may have
threads and a loaded model, and takes 30 MB while it waits. It answers one request after another through a socket (its
standard input), and is replaced when it dies or takes too long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.audio.waveform import BadAudio, read_clip, read_indexed
from qa_train.utils.process import end_with_parent

# Before a request: the number of samples (-1: unknown), the most seconds, and the bytes of the file. Before a reply:
# whether it is the samples, not an error, and its bytes.
_REQUEST, _REPLY = struct.Struct("<qdQ"), struct.Struct("<?Q")
# What a child sends when its libraries are loaded, and how long that may take on a busy machine with a slow disk.
_READY, _READY_S = b"r", 120.0
# Memory that a child may allocate in addition to its libraries; macOS knows no such limit.
_MORE_MEMORY = 2 << 30
# How often one that waits for a child asks whether it shall go on.
_ASK_AGAIN_S = 0.1
_GIVEN_UP = "the decoder was given up"
# The folder that holds qa_train, should it be found by another way than a folder of sys.path.
_ROOT = Path(__file__).parents[3].resolve()
_PROGRAM = "from qa_train.data.audio.decoder import answer; answer()"


class DecoderEnded(BadAudio):
    """The decoder crashed in the clip, or was killed over it."""


class _Stopped(Exception):
    """Waiting for a child is over; says why."""


@dataclass
class _Child:
    pid: int
    link: socket.socket
    # A child ends with the thread that started it.
    thread: threading.Thread
    is_ready: bool = False


class KillableDecoder:
    """`read_clip` and `read_indexed` in a child process. For one thread at a time.

    Picklable: every process has its own child, from its first clip on.
    """

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: the most seconds for a clip."""
        if timeout_s <= 0:
            raise ValueError(f"decode_timeout_s is {timeout_s:g}: give seconds above 0")
        self.timeout_s = timeout_s
        self._child: _Child | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Let the child load now, in the background, and not at the first clip."""
        if self._process != os.getpid():
            # The child answers the process that started it; this is a fork of that one.
            self._child, self._process = None, os.getpid()
        if self._child is not None and (not self._child.thread.is_alive() or _has_ended(self._child.link)):
            # Killed between two clips, of which none is to blame.
            self.close()
        if self._child is None:
            self._child = _start()

    def read_indexed(self, raw: bytes, num_samples: int) -> np.ndarray:
        """The clip, float32 mono at 16 kHz, [num_samples].

        Raises BadAudio, which is DecoderEnded when the decoder crashed or took too long.
        """
        return self._decoded(raw, num_samples, 0.0, lambda: False)

    def read_clip(
        self, raw: bytes, *, max_duration_s: float, given_up: Callable[[], bool] = lambda: False
    ) -> np.ndarray:
        """The clip, float32 mono at 16 kHz, [n]; its decoder is killed when ``given_up``, which is asked all the time.

        Raises BadAudio, which is DecoderEnded when the decoder crashed, took too long or was given up.
        """
        return self._decoded(raw, -1, max_duration_s, given_up)

    def _decoded(self, raw: bytes, num_samples: int, most_s: float, given_up: Callable[[], bool]) -> np.ndarray:
        self.start()
        assert self._child is not None
        link = self._child.link
        try:
            self._await_ready(self._child, given_up)
        except _Stopped as why:
            # The child has nothing to do with it: it is for the next clip.
            raise DecoderEnded(str(why)) from None
        late = _Stopped(f"the decoder had no result after {self.timeout_s:g} s")
        go_on = _until(self.timeout_s, given_up, late)
        try:
            for part in (_REQUEST.pack(num_samples, most_s, len(raw)), raw):
                _move(link.send, part, go_on)
            ok, size = _REPLY.unpack(_received(link, _REPLY.size, go_on))
            reply = _received(link, size, go_on)
        except _Stopped as why:
            self._replace()
            raise DecoderEnded(f"{why} and was killed") from None
        except (EOFError, OSError) as death:
            raise DecoderEnded(f"the decoder's process died ({self._replace()})") from death
        except BaseException:
            # Else its reply would be taken for that of the next clip.
            self.close()
            raise
        if not ok:
            raise BadAudio(bytes(reply).decode())
        return np.frombuffer(reply, np.float32)

    def _await_ready(self, child: _Child, given_up: Callable[[], bool]) -> None:
        """RuntimeError for a child that does not start: no clip is to blame."""
        if given_up():
            raise _Stopped(_GIVEN_UP)
        if child.is_ready:
            return
        late = RuntimeError(f"the decoder's process has not started in {_READY_S:g} s: the machine is overloaded")
        try:
            _received(child.link, len(_READY), _until(_READY_S, given_up, late))
        except (EOFError, OSError) as death:
            status = self.close()
            raise RuntimeError(f"the decoder's process does not start ({status}): see its message above") from death
        child.is_ready = True

    def _replace(self) -> str:
        """A new child at once, so that the next clip need not wait for it; returns how the old one ended."""
        status = self.close()
        self.start()
        return status

    def close(self) -> str:
        """End the child; returns how it ended."""
        child, self._child = self._child, None
        if child is None or self._process != os.getpid():
            return "not running"
        child.link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        except ChildProcessError:  # a launcher that ignores SIGCHLD
            return "its status is not known"
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s, "_child": None, "_process": os.getpid()}


def _start() -> _Child:
    ours, theirs = socket.socketpair()
    # Modules come from where this process has them, and from no other folder that it happens to be in.
    places = [os.path.abspath(place) for place in map(str, sys.path) if place]  # noqa: PTH100
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with theirs:
        ours.settimeout(_ASK_AGAIN_S)
        # Libraries may have set a time-out for all sockets.
        theirs.setblocking(True)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-c", _PROGRAM],
            {**os.environ, "PYTHONPATH": os.pathsep.join([*places, str(_ROOT)]), **one_thread},
            # Standard output is the command's result.
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            # Ctrl-C reaches the whole group of a command: the command alone answers it.
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM],
        )
    return _Child(pid, ours, threading.current_thread())


def _has_ended(link: socket.socket) -> bool:
    """Whether the other end is closed."""
    link.settimeout(0)
    try:
        return not link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        link.settimeout(_ASK_AGAIN_S)


def _until(seconds: float, given_up: Callable[[], bool], late: Exception) -> Callable[[], None]:
    """What raises ``late`` when the time is over, and _Stopped when the caller has given up."""
    end = time.monotonic() + seconds

    def go_on() -> None:
        if given_up():
            raise _Stopped(_GIVEN_UP)
        if time.monotonic() > end:
            raise late

    return go_on


def _move(step: Callable[[memoryview], int], data: bytes | memoryview, go_on: Callable[[], None]) -> None:
    """Send or receive all of ``data``; EOFError where the other end closes before."""
    rest = memoryview(data)
    while rest:
        go_on()
        with contextlib.suppress(TimeoutError):
            count = step(rest)
            if not count:
                raise EOFError
            rest = rest[count:]


def _received(link: socket.socket, size: int, go_on: Callable[[], None] = lambda: None) -> memoryview:
    found = np.empty(size, np.uint8).data
    _move(link.recv_into, found, go_on)
    return found


def answer() -> None:
    """The child: answers at its standard input until the parent's end closes."""
    end_with_parent()  # even while it hangs in a clip
    link = socket.socket(fileno=0)
    # What the parent's libraries left open for children would be kept open by this process.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_MEMORY, used + _MORE_MEMORY))
    # Crashes may be many.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link.sendall(_READY)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            num_samples, most_s, size = _REQUEST.unpack(_received(link, _REQUEST.size))
            raw = bytes(_received(link, size))
            try:
                wave = read_clip(raw, max_duration_s=most_s) if num_samples < 0 else read_indexed(raw, num_samples)
                ok, reply = True, wave.view(np.uint8).data
            except (BadAudio, MemoryError) as error:
                ok, reply = False, memoryview((str(error) or type(error).__name__).encode())
            link.sendall(_REPLY.pack(ok, len(reply)))
            link.sendall(reply)
