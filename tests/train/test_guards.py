"""Steps that must not count are skipped on all ranks alike, requests are met, and a hang says where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qa_train.config import ReliabilityConfig
from qa_train.train.job.requests import StopOnRequest
from qa_train.train.safety.guards import Guards, StopRun, read_tail, robust_z
from tests.train.conftest import ROOT, environment, metrics, run

NAN = torch.tensor(float("nan"))


def feed(guards: Guards, losses: list[float]) -> list[dict[str, Any]]:
    """Log one undisturbed step per loss; the records."""
    records = []
    for loss in losses:
        record: dict[str, Any] = {"loss": loss}
        guards.logged(record)
        records.append(record)
    return records


def test_stop_is_the_default_for_numbers_that_are_not_finite() -> None:
    guards = Guards(ReliabilityConfig())
    assert guards.check_loss(torch.tensor(1.0)) is None
    assert guards.check_loss(NAN) == "the loss is nan"
    assert guards.verdict(float("inf"), torch.tensor(1.0)) == "the gradient norm is inf"
    assert guards.nonfinite


def test_skipped_steps_are_counted_named_and_limited(caplog: pytest.LogCaptureFixture) -> None:
    guards = Guards(ReliabilityConfig(on_nonfinite="skip", max_skipped_steps=2))
    assert guards.check_loss(NAN) is None
    reason = guards.verdict(1.0, torch.tensor(0.0))
    assert reason == "the loss is nan"
    guards.skip(reason, "step 1: the loss is nan. Samples of this step: a, b")
    assert "Samples of this step: a, b" in caplog.text
    record: dict[str, Any] = {"loss": 0.0}
    guards.logged(record)
    assert record == {"loss": 0.0, "skipped_because": "the loss is nan", "skipped_steps": 1}
    assert guards.verdict(1.0, torch.tensor(0.5)) is None
    assert feed(guards, [0.5]) == [{"loss": 0.5, "skipped_steps": 1}]
    guards.skip("x", "x")
    guards.logged({"loss": 0.0})
    with pytest.raises(StopRun, match="2 steps in a row"):
        guards.skip("x", "step 3: x")


def test_a_spike_is_far_above_the_window_and_nothing_else() -> None:
    window = [2.0 + 0.01 * (i % 5) for i in range(30)]
    assert robust_z(2.02, window) == pytest.approx(0)
    assert robust_z(1.0, window) < 0
    assert robust_z(3.0, window) > 50
    # A flat stretch does not turn wiggles into spikes.
    assert robust_z(2.001, [2.0] * 30) == pytest.approx(0.5)
    guards = Guards(ReliabilityConfig(on_loss_spike="skip", loss_spike_z=20))
    feed(guards, window[:10])
    assert guards.verdict(1.0, torch.tensor(50.0)) is None
    feed(guards, window)
    assert "jumped to 50" in str(guards.verdict(1.0, torch.tensor(50.0)))
    assert not guards.nonfinite
    assert guards.verdict(1.0, torch.tensor(2.05)) is None


def test_a_warning_names_the_jump_and_the_step_counts() -> None:
    guards = Guards(ReliabilityConfig())
    feed(guards, [2.0 + 0.01 * (i % 5) for i in range(30)])
    assert "jumped to 9" in str(guards.logged({"loss": 9.0}))
    assert guards.skipped == 0


def test_a_resumed_run_judges_as_an_undisturbed_one(tmp_path: Path) -> None:
    options = ReliabilityConfig(
        on_loss_spike="skip", on_nonfinite="skip", max_skipped_steps=3, loss_spike_window=25
    )  # fmt: skip
    whole = Guards(options)
    records = feed(whole, [2.0 + 0.01 * (i % 7) for i in range(40)])
    for _ in range(2):
        whole.skip("bad", "bad")
        records.append({"loss": 0.0})
        whole.logged(records[-1])
    path = tmp_path / "metrics.jsonl"
    assert read_tail(path, 25) == []
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tail = read_tail(path, 25)
    assert tail == records[-27:]
    resumed = Guards(options)
    resumed.restore(tail)
    assert resumed.skipped == whole.skipped == 2
    loss = torch.tensor(5.0)
    assert resumed.verdict(1.0, loss) == whole.verdict(1.0, loss) is not None
    for guards in (whole, resumed):
        with pytest.raises(StopRun, match="3 steps in a row"):
            guards.skip("bad", "bad")


NAN_ON_RANK_1 = """
    import os, sys
    import torch
    from qa_train.cli import main
    from qa_train.train.mixin import AudioTrainerMixin

    stock = AudioTrainerMixin.check_finite

    def check_finite(self, loss):
        if self.state.global_step == 2 and os.environ["RANK"] == "1":
            loss.data.fill_(float("nan"))
        return stock(self, loss)

    AudioTrainerMixin.check_finite = check_finite
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_nan_on_one_rank_skips_the_step_on_both(tmp_path: Path, options: Callable[[str, Path], list[str]]) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(NAN_ON_RANK_1))
    words = [*options("pretrain", tmp_path / "run"), "trainer.on_nonfinite=skip"]
    done = run("pretrain", *words, processes=2, program=script)
    records = metrics(tmp_path / "run")
    assert [record.get("skipped_steps") for record in records] == [None, None, 1, 1, 1, 1]
    assert "not finite" in records[2]["skipped_because"]
    assert all(record["grad_norm"] > 0 for record in records[3:])
    assert "Samples of this step: speech-" in done.stderr


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[StopOnRequest]:
    old = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    yield StopOnRequest(tmp_path, is_main=True)
    for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), old, strict=True):
        signal.signal(number, handler)


def end_of_step(requests: StopOnRequest) -> tuple[bool, bool]:
    """Whether the end of a step saves and stops."""
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    args: Any = SimpleNamespace(world_size=1, device="cpu")
    state: Any = SimpleNamespace(global_step=3, max_steps=9)
    requests.on_step_end(args, state, control)  # type: ignore[arg-type]
    return control.should_save, control.should_training_stop


def test_files_and_signals_ask_for_a_save_or_an_end(requests: StopOnRequest, tmp_path: Path) -> None:
    assert end_of_step(requests) == (False, False)
    (tmp_path / "SAVE").touch()
    assert end_of_step(requests) == (True, False)
    assert end_of_step(requests) == (False, False)
    (tmp_path / "STOP").touch()
    assert end_of_step(requests) == (True, True)
    assert str(requests.stopped_by).endswith("STOP")
    assert not (tmp_path / "STOP").exists()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert end_of_step(requests) == (True, True)
    assert requests.stopped_by == "a signal"


HANGS = """
    import sys, time
    from pathlib import Path
    from qa_train.train.job.watchdog import Watchdog

    def a_read_that_never_returns():
        time.sleep(60)

    dog = Watchdog(Path(sys.argv[1]), 3, float(sys.argv[2]))
    dog.start()
    for _ in range(6):
        time.sleep(0.1)
        dog.beat()
    if sys.argv[3] == "hang":
        a_read_that_never_returns()
    dog.stop()
"""


@pytest.mark.parametrize("end", ["hang", "well"])
def test_a_rank_that_hangs_writes_its_stacks_and_ends(tmp_path: Path, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGS), str(tmp_path), "3" if end == "hang" else "30", end],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    stacks = tmp_path / "stacks-rank-3.txt"
    if end == "well":
        assert done.returncode == 0, done.stderr
        assert not stacks.exists()
    else:
        assert done.returncode == 1
        assert "a_read_that_never_returns" in stacks.read_text()


HANG_ON_RANK_1 = """
    import os, sys, time
    from qa_train.cli import main
    from qa_train.train.mixin import AudioTrainerMixin

    stock = AudioTrainerMixin.check_finite

    def check_finite(self, loss):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and self.state.global_step == 3 and os.environ["RANK"] == "1":
            time.sleep(600)
        return stock(self, loss)

    AudioTrainerMixin.check_finite = check_finite
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_hang_is_found_told_and_restarted_by_torchrun(
    tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(HANG_ON_RANK_1))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    words = [*options("pretrain", tmp_path / "run"), "trainer.save_steps=2", "trainer.hang_timeout_s=10"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), "pretrain", *words],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert "resuming from checkpoint-2" in done.stdout
    stacks = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("stacks-rank-*.txt"))
    assert "in check_finite" in stacks or "in _agree" in stacks or "backward" in stacks
