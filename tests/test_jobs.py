"""Jobs in processes of their own: order, failures, deaths, and what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qa_train.jobs.executor import ATTEMPTS, HERE, Engine, each
from qa_train.jobs.processes import NodeLost, Processes
from tests.processes import running

TWO = Engine(2)


def slow_first(name: str) -> str:
    time.sleep(0.3 if name == "a" else 0)
    return name.upper()


def where(name: str) -> int:
    return os.getpid()


def dies(name: str, log: str) -> str:
    with Path(log).open("a") as file:
        file.write(name)
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def dies_once(name: str, log: str) -> str:
    if name == "b" and not Path(log).exists():
        Path(log).touch()
        os._exit(7)
    return name


def dies_at_once(number: int) -> str:
    os._exit(7)


def refuses(name: str) -> str:
    if name == "b":
        raise ValueError("b is wrong")
    if name == "slow":
        time.sleep(60)
    return name


def breaks(name: str) -> str:
    return {}[name]  # type: ignore[no-any-return]


def lasts(name: str, folder: str) -> None:
    Path(folder, f"{name}.{os.getpid()}").touch()
    time.sleep(60)


@pytest.mark.parametrize("engine", [HERE, Engine(1), TWO])
def test_results_come_in_order_and_sizes_are_counted(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, str]] = []
    done = each(slow_first, "abcde", engine=engine, ready=lambda item, result: told.append((item, result)))
    assert list(done) == list("ABCDE")
    assert sorted(told) == list(zip("abcde", "ABCDE", strict=True))
    assert list(each(slow_first, [], engine=engine)) == []


def test_each_job_has_a_process_of_its_own() -> None:
    pids = list(each(where, "abcdef", engine=TWO))
    assert len({*pids, os.getpid()}) == 7
    assert set(each(where, "abc")) == {os.getpid()}


def test_a_kept_process_takes_job_after_job(tmp_path: Path) -> None:
    kept = Engine(2, keep=True)
    pids = list(each(where, "abcdef", engine=kept))
    assert os.getpid() not in pids
    assert len({*pids}) <= 2
    # One that dies is replaced, and an error ends what waits.
    assert list(each(dies_once, "abcdef", str(tmp_path / "once"), engine=kept)) == list("abcdef")
    started = time.monotonic()
    with pytest.raises(ValueError, match="b is wrong"):
        list(each(refuses, ["a", "slow", "b"], engine=kept))
    assert time.monotonic() - started < 30


def test_a_kept_process_sees_the_gpus_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, gpus = Processes(1, [], keep=True), "CUDA_VISIBLE_DEVICES"
    pids = []
    for visible in ("0", "0", "1", None):
        monkeypatch.delenv(gpus, raising=False) if visible is None else monkeypatch.setenv(gpus, visible)
        assert pool.run(os.getenv, gpus) == visible
        pids.append(pool.run(os.getpid))
    assert pids[0] == pids[1]
    assert len({*pids}) == 3
    # The others are gone, and what they held with them.
    assert [Path(f"/proc/{pid}").exists() for pid in pids[1:]] == [False, False, True]
    pool.close()


def test_few_results_wait_for_a_slow_job() -> None:
    begun = 0

    def told(item: str, result: str) -> None:
        nonlocal begun
        begun += 1

    results = each(slow_first, ["a", *map(str, range(200))], engine=Engine(2), ready=told)
    next(results)
    assert begun <= 8
    results.close()


def test_a_death_is_tried_again_and_then_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(each(dies_once, "abc", str(tmp_path / "once"), engine=TWO)) == ["a", "b", "c"]
    assert "b: its process died (exit code 7); tried again, 2 of 3" in capsys.readouterr().err
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"b: its process died \(exit code -9\) \(3 times\): a decoder crashed"):
        list(each(dies, "abc", str(log), engine=TWO))
    assert log.read_text().count("b") == ATTEMPTS
    log.unlink()
    ready: list[str] = []
    found = each(
        dies, "abcd", str(log), engine=TWO, ready=lambda item, _: ready.append(item), died=lambda item, why: why
    )
    assert [len(each) > 1 for each in found] == [False, True, False, False]
    assert sorted(ready) == ["a", "c", "d"]
    assert sorted(log.read_text()) == list("abbbcd")


def test_deaths_at_the_same_time_keep_their_exit_codes() -> None:
    told = list(each(dies_at_once, range(60), engine=Engine(4), died=lambda item, why: why))
    assert {why.split(" (3 times)")[0] for why in told} == {"its process died (exit code 7)"}


def test_an_error_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="b is wrong") as caught:
        list(each(refuses, ["slow", "b"], engine=TWO))
    assert str(caught.value) == "b is wrong"
    assert time.monotonic() - started < 30
    assert "in refuses" in caught.value.__notes__[0]
    with pytest.raises(KeyError):
        list(each(breaks, "a", engine=TWO))


def test_wrong_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="engine='slurm': use one of local, ray"):
        list(each(where, "a", engine=Engine(1, "slurm")))
    with pytest.raises(ValueError, match="only used with engine=ray"):
        list(each(where, "a", engine=Engine(1, ray_address="head:6379")))
    with pytest.raises(ValueError, match="cores=1 and gpus=2 are only used with engine=ray"):
        list(each(where, "a", engine=Engine(1, gpus=2.0)))
    with pytest.raises(ValueError, match="start the command on a node of the cluster"):
        list(each(where, "a", engine=Engine(1, "ray", "ray://head:10001")))


def test_no_process_outlives_a_killed_command(tmp_path: Path) -> None:
    program = (
        "from qa_train.jobs.executor import Engine, each\nfrom tests.test_jobs import lasts\n"
        f"list(each(lasts, 'ab', {str(tmp_path)!r}, engine=Engine(2)))"
    )
    command = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while len(names := list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.kill()
    command.wait()
    for pid in (int(name.suffix[1:]) for name in names):
        while running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


class _Unlucky:
    """A pool whose node is lost whenever a job runs."""

    ahead = 1

    def submit(self, *work: Any) -> Future[int]:
        future = Future[int]()
        future.set_result(0)
        return future

    def result(self, future: Future[int]) -> int:
        raise NodeLost("its node is gone")

    def close(self) -> None:
        """Nothing is open."""


def test_a_job_that_takes_its_nodes_down_ends_the_run() -> None:
    engine: Any = SimpleNamespace(pool=lambda modules: _Unlucky())
    with pytest.raises(ValueError, match="x: its node is gone, 10 times: it may take its nodes down"):
        list(each(len, ["x"], engine=engine))
