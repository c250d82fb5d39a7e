"""One process of a node plans a window and the others read it, also when the planner is killed or stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.data.order import batch_plan
from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.epoch import Ints
from qa_train.data.order.shuffle_window import Lengths
from qa_train.data.stores import node_files
from qa_train.data.stores.node_files import NodeFiles

FORK = multiprocessing.get_context("fork")


@dataclass
class Counted:
    """A source that tells every process what it was asked, and may do something the first time."""

    name: str
    fingerprint: str
    asked: Any = field(default_factory=lambda: FORK.Value("q", 0))
    first: Callable[[], None] | None = None
    weight: float = 1.0
    settings: str = "s"
    shard_ids: list[str] | None = None
    max_epochs: int | None = None
    shard_lengths: Ints = field(default_factory=lambda: np.asarray([700, 500]))

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        if self.first is not None:
            action, self.first = self.first, None
            action()
        with self.asked.get_lock():
            self.asked.value += len(rows)
        tokens = 20 + (rows * 7919 + epoch * 104_729) % 200
        reason = np.where(rows % 9 == 0, "filtered by where", "").astype(object)
        return Lengths(tokens, tokens**2, tokens, tokens**2, tokens // 2, reason)


def plan(fingerprint: str, *, share: bool = True, first: Callable[[], None] | None = None, asked: Any = None) -> Plan:
    source = Counted("a", fingerprint, first=first, **({} if asked is None else {"asked": asked}))
    return Plan([source], seed=1, tokens_per_batch=900, batches_per_step=4, shuffle_window=300, share=share)


def deliver(made: Plan, first: int, step: int, count: int, out: Connection) -> None:
    """What a loader worker does: its batches, and the windows ahead."""
    for k in range(first, count, step):
        out.send((k, made.batch(k)))
        made.ahead(k)
    out.send(None)
    out.close()


def run(plans: list[Plan], count: int) -> tuple[dict[int, Any], list[int | None]]:
    """Every plan in a process of its own, each with its share of the batches; what came, and the exit codes."""
    pipes, processes = [], []
    for number, made in enumerate(plans):
        ours, theirs = FORK.Pipe(duplex=False)
        processes.append(FORK.Process(target=deliver, args=(made, number, len(plans), count, theirs)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    found: dict[int, Any] = {}
    for pipe in pipes:
        try:
            while (item := pipe.recv()) is not None:
                found[item[0]] = item[1]
        except EOFError:
            continue
    for process in processes:
        process.join()
    return found, [process.exitcode for process in processes]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_files, "_folder", lambda: tmp_path)


def test_six_processes_plan_every_window_once() -> None:
    asked = FORK.Value("q", 0)
    found, codes = run([plan("six", asked=asked) for _ in range(6)], 360)
    alone = plan("six", share=False)
    assert found == {k: alone.batch(k) for k in range(360)}
    assert codes == [0] * 6
    # The last window, and at most two that are ahead of it.
    wanted = alone.sources[0].asked.value
    assert wanted <= asked.value <= wanted + 2.2 * 300 * 9 / 8


def test_a_killed_planner_is_replaced(tmp_path: Path) -> None:
    """It dies while it plans, with its lock: the others go on without a wait."""
    asked = FORK.Value("q", 0)
    victim = plan("killed", asked=asked, first=lambda: os.kill(os.getpid(), signal.SIGKILL))
    found, codes = run([victim], 4)
    assert (found, codes) == ({}, [-signal.SIGKILL])
    assert list(tmp_path.glob("window-*.part"))
    began = time.monotonic()
    plans = [plan("killed", asked=asked) for _ in range(4)]
    # A second one dies in the middle of the run, after it has delivered batches.
    windows = [0]

    def later() -> None:
        windows[0] += 1
        plans[1].sources[0].first = later if windows[0] < 2 else lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]

    plans[1].sources[0].first = later  # type: ignore[attr-defined]
    found, codes = run(plans, 200)
    alone = plan("killed", share=False)
    lost = set(range(200)) - set(found)
    assert found == {k: alone.batch(k) for k in set(range(200)) - lost}
    assert all(k % 4 == 1 for k in lost)
    assert codes[0] == codes[2] == codes[3] == 0
    assert time.monotonic() - began < node_files._WAIT_S / 2
    # Whoever reads the batches of the dead finds them planned.
    again = plan("killed", asked=asked)
    assert {k: again.batch(k) for k in lost} == {k: alone.batch(k) for k in lost}


def test_a_stopped_planner_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_files, "_WAIT_S", 0.2)
    stopped = plan("stopped", first=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    _, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=deliver, args=(stopped, 0, 1, 4, theirs))
    process.start()
    while not list(tmp_path.glob("window-*.part")):
        time.sleep(0.01)
    time.sleep(0.1)
    mine, alone = plan("stopped"), plan("stopped", share=False)
    with caplog.at_level(logging.WARNING):
        assert [mine.batch(k) for k in range(90)] == [alone.batch(k) for k in range(90)]
    assert "another process has been making" in caplog.text
    # Ahead of a batch nobody waits at all.
    assert plan("stopped").ahead(0) is None
    process.kill()
    process.join()


def test_what_is_damaged_or_cannot_be_written_is_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = plan("d", share=False)
    wanted = [alone.batch(k) for k in range(60)]
    assert [plan("d").batch(k) for k in range(60)] == wanted
    files = sorted(tmp_path.glob("window-*"))
    for number, file in enumerate(files):
        file.write_bytes((b"", file.read_bytes()[:300], b"\x93NUMPY rest", file.read_bytes()[:-8])[number % 4])
    assert [plan("d").batch(k) for k in range(60)] == wanted
    assert "is damaged" in caplog.text

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch_plan, "write_window", full)
    assert [plan("other").batch(k) for k in range(60)] == [plan("other", share=False).batch(k) for k in range(60)]
    assert "is not shared" in caplog.text
    monkeypatch.setattr(node_files, "_folder", lambda: None)
    assert [plan("none").batch(k) for k in range(60)] == [plan("none", share=False).batch(k) for k in range(60)]
    assert not list(tmp_path.glob("*.part"))


def test_windows_of_other_data_or_places_are_others(tmp_path: Path) -> None:
    first = plan("one")
    first.batch(100)
    made = len(list(tmp_path.glob("window-*")))
    assert plan("one").batch(100) == first.batch(100)
    assert len(list(tmp_path.glob("window-*"))) == made
    plan("two").batch(0)
    assert len(list(tmp_path.glob("window-*"))) == made + 1
    resumed = plan("one")
    resumed.seek(*first.seek_hint(100))
    assert resumed.batch(100) == first.batch(100)
    assert resumed.window(first.locate(100)[0]).skipped == first.window(first.locate(100)[0]).skipped


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    files = NodeFiles("thing", 1000)
    for number in range(30):
        (tmp_path / "other-x").touch()
        assert files.get(
            str(number), lambda: b"x" * 100, lambda made, path: path.write_bytes(made) and None, Path.read_bytes
        )
        # What is used stays.
        assert files.find("0", Path.read_bytes) is not None
        assert sum(path.stat().st_size for path in tmp_path.glob("thing-*")) <= 1000
        time.sleep(0.002)
    assert files.find("3", Path.read_bytes) is None
    left = tmp_path / "thing-dead.part"
    left.touch()
    os.utime(left, (0, 0))
    files.get("new", lambda: b"y", lambda made, path: path.write_bytes(made) and None, Path.read_bytes)
    assert not left.exists()
    assert (tmp_path / "other-x").exists()


def hold(folder: Path, release: Connection, told: Connection) -> None:
    """A process that uses the folder until it is told to end."""
    used = node_files._claimed(folder)
    assert used is not None
    told.send("here")
    release.recv()
    node_files._leave(folder, used, os.getpid())


def test_the_last_process_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    people = []
    for _ in range(3):
        (release, ours), (heard, tell) = FORK.Pipe(duplex=False), FORK.Pipe(duplex=False)
        process = FORK.Process(target=hold, args=(folder, release, tell))
        process.start()
        assert heard.recv() == "here"
        people.append((process, ours))
    people[0][0].kill()
    people[0][0].join()
    for process, ours in people[1:]:
        assert folder.is_dir()
        ours.send(None)
        process.join()
        assert process.exitcode == 0
    assert not folder.exists()
    # Somebody else's folder, or one that others may read, is not used.
    folder.mkdir(mode=0o755)
    assert node_files._claimed(folder) is None
