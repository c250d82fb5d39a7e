"""One owner of a run folder at a time.

Two starts of one run (a requeue before the previous job has ended, a job submitted twice)
would write into each other's metrics and delete each other's checkpoints. The first start therefore locks
``RUN/owner.lock`` (flock, which the kernel releases when the process dies) and writes its identity to
``RUN/owner.json``, again every ``BEAT_S`` seconds.

On file systems without locks, or with locks local to one machine (some mounts of Lustre and NFS), the beats decide: an
owner on another machine is dead when its file has not changed for ``DEAD_AFTER_S`` seconds. Two simultaneous starts
there are resolved at the next read of the file (`Owner.check`, and every beat): the one that finds another identity in
it exits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK, FACTS = "owner.lock", "owner.json"
# sysexits.h EX_CANTCREAT: the folder is somebody else's. slurm/train.sbatch does not requeue it.
EXIT_OWNED = 73
BEAT_S = 15.0
DEAD_AFTER_S = 90.0
# How long a start waits for the one before it in the same job, which may still be saving or dying.
PREDECESSOR_WAIT_S = 300.0
_LOOK_S = 1.0
# flock is missing, or the lock daemon of a network file system does not respond.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class Owned(ValueError):
    """Another process trains this run; the message has its identity and start time."""


_current: Owner | None = None


def own(folder: Path) -> Owner:
    """This process's claim on ``folder``, taken if it is not yet; one folder at a time.

    Raises:
        Owned: another process trains there.
        OSError: the folder cannot be written.
    """
    global _current
    if _current is None or _current.folder != folder:
        release()
        owner = Owner(folder)
        owner.take()
        _current = owner
    return _current


def release() -> None:
    """Release what `own` took, at the end of a stage; the death of the process does so too."""
    global _current
    owner, _current = _current, None
    if owner is not None:
        owner.release()


class Owner:
    """One process's claim on a run folder; rank 0 only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FACTS
        self._lock: FileLock | None = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)
        self._facts: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": _now(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "launch": _launch_id(),
        }
        self._beats = 0
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="owner of the run folder", daemon=True)

    def take(self) -> None:
        """Become the owner; waits only for an earlier start of the same job.

        Raises:
            Owned: another process is.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting_since = time.monotonic()
        told = False
        while (other := self._other()) is not None:
            if not self._is_predecessor(other) or time.monotonic() - waiting_since > PREDECESSOR_WAIT_S:
                raise Owned(
                    f"{self.folder} is being trained by {_who(other)}: wait for its end, stop it "
                    f"(touch {self.folder}/STOP), or choose another run.dir"
                )
            if not told:
                print(f"waiting for the start before this one to end: {_who(other)}", file=sys.stderr, flush=True)
                told = True
            time.sleep(_LOOK_S)
        self._write()
        self._beating.start()

    def check(self) -> None:
        """Check again, before the first file of a run is replaced.

        Raises:
            Owned: another start took the folder at the same time, where locks do not work.
        """
        other = self._read()
        if other.get("token") != self._facts["token"]:
            raise Owned(f"{self.folder} was taken by {_who(other)} in the same moment: choose another run.dir")

    def release(self) -> None:
        """Give the folder back."""
        self._over.set()
        self._beating.join(timeout=5)
        if self._read().get("token") == self._facts["token"]:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._lock is not None:
            self._lock.release()

    def _other(self) -> dict[str, Any] | None:
        """The other owner of the folder, or None if this process holds the lock or locks are not supported."""
        if self._lock is not None:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return self._read() or {"host": "an unknown machine"}
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self._lock = None
        other = self._read()
        # On this machine locks are reliable: the previous holder is dead.
        if not other or (self._lock is not None and other.get("host") == self._facts["host"]):
            return None
        if not self._alive(other):
            return None
        if self._lock is not None:
            self._lock.release()
        return other

    def _alive(self, other: dict[str, Any]) -> bool:
        """Whether the file of an owner elsewhere changes, or changed, within ``DEAD_AFTER_S`` seconds."""
        left = DEAD_AFTER_S - self._age()
        if left > 0:
            logger.warning("%s: is %s still there? Looking for %.0f s", self.folder, _who(other), left)
        until = time.monotonic() + left
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            seen = self._read()
            if not seen:
                return False
            if seen != other:
                return True
        return False

    def _age(self) -> float:
        """Seconds since the file was written, by the clock of the file system that holds it."""
        probe = self.folder / LOCK
        try:
            probe.touch()
            return probe.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return DEAD_AFTER_S

    def _is_predecessor(self, other: dict[str, Any]) -> bool:
        """Whether the other was started by the same job, or the same torchrun: its end is near."""
        return any(other.get(name) and other[name] == self._facts[name] for name in ("job", "launch"))

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            other = self._read()
            if other and other.get("token") != self._facts["token"]:
                print(
                    f"{self.folder} was taken over by {_who(other)} while this process gave no sign: it ends here",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_OWNED)
            try:
                self._write()
            except OSError as error:
                # A full disk must not end a run that may outlast it; a save reports it anyway.
                logger.warning("%s cannot be written: %s", self._path, error)

    def _write(self) -> None:
        """Write the facts with a new number, atomically but without flushing: they are useless after a crash."""
        self._beats += 1
        temporary = self._path.with_name(f"{FACTS}.{self._facts['token']}")
        temporary.write_text(json.dumps({**self._facts, "beat": self._beats, "seen": _now()}, indent=2) + "\n")
        temporary.replace(self._path)

    def _read(self) -> dict[str, Any]:
        """The contents of the file; empty when it is missing or damaged."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _who(facts: dict[str, Any]) -> str:
    job = f", Slurm job {facts['job']}" if facts.get("job") else ""
    since = f", since {facts['since']}" if facts.get("since") else ""
    seen = f" (last sign {facts['seen']})" if facts.get("seen") else ""
    return f"process {facts.get('pid', '?')} on {facts.get('host', '?')}{job}{since}{seen}"


def _launch_id() -> str | None:
    """What torchrun's restarts of one launch have in common; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "none") else name


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
