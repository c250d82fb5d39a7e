"""One owner of a run folder: locks, heartbeats, and what a second start does and leaves alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from qa_train.config import RunConfig, StageConfig
from qa_train.train.job import owner
from qa_train.train.job.owner import FACTS, LOCK, Owned, Owner, own, release
from qa_train.train.job.run import RunFolder
from tests.train.conftest import ROOT, environment

HOLD = """
import sys, time
from pathlib import Path
from qa_train.train.job.owner import Owner
Owner(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Beats in hundredths of seconds, no job around this process, and nothing held afterwards."""
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(owner, "_LOOK_S", 0.01)
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    yield
    release()


@contextlib.contextmanager
def another_process(folder: Path, **more: str) -> Any:
    env = environment() | more
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], env=env, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        try:
            yield process
        finally:
            process.kill()


def foreign(folder: Path, *, age_s: float, **more: Any) -> dict[str, Any]:
    """What an owner on another machine wrote ``age_s`` seconds ago."""
    folder.mkdir(exist_ok=True)
    facts = {"token": "theirs", "host": "elsewhere", "pid": 17, "since": "2026-01-02T03:04:05Z", "job": "88", **more}
    (folder / FACTS).write_text(json.dumps(facts))
    then = time.time() - age_s
    os.utime(folder / FACTS, (then, then))
    return facts


def facts_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / FACTS).read_text()))


def test_a_second_owner_is_told_who_and_since_when(tmp_path: Path) -> None:
    first = Owner(tmp_path)
    first.take()
    for _ in range(2):
        with pytest.raises(Owned, match=rf"process {os.getpid()} on .* since 20\d\d-.*T.*Z.*STOP.*another run.dir"):
            Owner(tmp_path).take()
    assert facts_of(tmp_path)["pid"] == os.getpid()
    first.release()
    second = Owner(tmp_path)
    second.take()
    second.check()
    second.release()
    assert not (tmp_path / FACTS).exists()


def test_the_lock_is_released_by_death(tmp_path: Path) -> None:
    with another_process(tmp_path, SLURM_JOB_ID="4711") as process:
        with pytest.raises(Owned, match=f"process {process.pid} on .*, Slurm job 4711"):
            own(tmp_path)
        process.kill()
        process.wait()
        # What it left behind still names it.
        assert facts_of(tmp_path)["pid"] == process.pid
        started = time.monotonic()
        own(tmp_path)
        assert time.monotonic() - started < 10
        assert facts_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_start_waits_for_its_own_predecessor_and_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with another_process(tmp_path, **{name: "12"}) as process:
        monkeypatch.setenv(name, "13")
        monkeypatch.setattr(owner, "PREDECESSOR_WAIT_S", 20.0)
        started = time.monotonic()
        with pytest.raises(Owned):
            Owner(tmp_path).take()
        assert time.monotonic() - started < 10
        monkeypatch.setenv(name, "12")
        monkeypatch.setattr(owner, "PREDECESSOR_WAIT_S", 0.3)
        with pytest.raises(Owned):
            Owner(tmp_path).take()
        assert time.monotonic() - started >= 0.3
        monkeypatch.setattr(owner, "PREDECESSOR_WAIT_S", 20.0)
        killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
        own(tmp_path).check()
        killer.wait()
    assert "waiting for the start before this one" in capsys.readouterr().err


def test_launches_without_a_name_are_not_taken_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchrun's name for a launch that was given none.
    with another_process(tmp_path, TORCHELASTIC_RUN_ID="none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        started = time.monotonic()
        with pytest.raises(Owned):
            Owner(tmp_path).take()
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("locks", [True, False], ids=["locks of one machine", "no locks"])
def test_an_owner_elsewhere_is_judged_by_its_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(FileLock, "acquire", refusing(errno.ENOLCK))
    foreign(tmp_path, age_s=1000)
    started = time.monotonic()
    own(tmp_path).check()
    assert time.monotonic() - started < 10
    release()
    # Young, and silent from now on: dead after the limit.
    monkeypatch.setattr(owner, "DEAD_AFTER_S", 0.6)
    foreign(tmp_path, age_s=0)
    started = time.monotonic()
    own(tmp_path).check()
    assert 0.4 < time.monotonic() - started < 15
    release()
    # Young, and beating.
    facts = foreign(tmp_path, age_s=0)
    monkeypatch.setattr(owner, "DEAD_AFTER_S", 20.0)
    # Whole at once, as an owner writes it.
    beats = (
        f"import json, os, time\nfor beat in range(2, 9999):\n with open({str(tmp_path / 'beat')!r}, 'w') as file:\n"
        f"  json.dump({facts!r} | {{'beat': beat}}, file)\n"
        f" os.replace(file.name, {str(tmp_path / FACTS)!r})\n time.sleep(.1)"
    )
    beating = subprocess.Popen([sys.executable, "-c", beats])
    with pytest.raises(Owned, match="process 17 on elsewhere, Slurm job 88, since 2026-01-02T03:04:05Z"):
        own(tmp_path)
    beating.kill()
    beating.wait()
    assert facts_of(tmp_path)["token"] == "theirs"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_two_starts_in_one_moment_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(FileLock, "acquire", refusing(number))
    monkeypatch.setattr(owner, "BEAT_S", 60.0)
    first, second = Owner(tmp_path), Owner(tmp_path)
    monkeypatch.setattr(Owner, "_other", lambda self: None)  # neither saw the other
    first.take()
    second.take()
    second.check()
    with pytest.raises(Owned, match="in the same moment"):
        first.check()
    # Who lost takes nothing away from who won.
    first.release()
    assert facts_of(tmp_path)["token"] == second._facts["token"]
    second.release()


def refusing(number: int) -> Any:
    def acquire(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return acquire


def test_an_error_of_the_disk_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLock, "acquire", refusing(errno.EIO))
    with pytest.raises(OSError, match="put/output"):
        own(tmp_path)


def test_beats_go_on_and_survive_a_full_disk_and_a_removed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    own(folder)
    first = facts_of(folder)["beat"]
    wait_until(lambda: facts_of(folder)["beat"] > first + 1)
    # At once: a beat writes a file beside another.
    folder.rename(tmp_path / "removed")
    wait_until(lambda: "cannot be written" in caplog.text)
    assert not folder.exists()
    release()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_lost_its_folder_ends() -> None:
    program = (
        "import sys, time, json\nfrom pathlib import Path\nfrom qa_train.train.job import owner\nowner.BEAT_S = 0.05\n"
        "import tempfile\nfolder = Path(tempfile.mkdtemp())\nowner.own(folder)\n"
        "(folder / owner.FACTS).write_text(json.dumps({'token': 'x', 'host': 'elsewhere', 'pid': 3}))\ntime.sleep(30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == owner.EXIT_OWNED, done.stderr
    assert "was taken over by process 3 on elsewhere" in done.stderr


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"token": 3}', '{"host": {"a": 1}}'])
def test_a_damaged_file_of_facts_does_not_stop_a_start(tmp_path: Path, text: str) -> None:
    (tmp_path / FACTS).write_text(text)
    old = time.time() - 1000
    os.utime(tmp_path / FACTS, (old, old))
    own(tmp_path).check()
    assert facts_of(tmp_path)["pid"] == os.getpid()


def test_a_forked_child_neither_keeps_nor_undoes_the_lock(tmp_path: Path) -> None:
    own(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    try:
        with pytest.raises(Owned):
            Owner(tmp_path).take()
        release()
        Owner(tmp_path).take()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def folder_of(path: Path) -> RunFolder:
    return RunFolder(StageConfig(stage="sft", run=RunConfig(dir=str(path))), is_main=True)


def test_a_finished_run_needs_no_owner_and_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "finished.json").write_text('{"steps": 5}')
    before = sorted(path.name for path in tmp_path.iterdir())
    assert folder_of(tmp_path).take(5) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert folder_of(tmp_path).take(6) is None
    assert (tmp_path / LOCK).exists()


def test_a_start_that_waited_sees_that_the_run_is_finished_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(self: Owner) -> None:
        (self.folder / "finished.json").write_text('{"steps": 5}')
        return

    monkeypatch.setattr(Owner, "_other", finish)
    assert folder_of(tmp_path).take(5) == 5


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        folder_of(tmp_path / "file" / "run").take(5)
