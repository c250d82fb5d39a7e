"""What launchers, and their ghosts in the environment, do to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qa_train import cli
from qa_train.train.job.arithmetic import check_arithmetic
from qa_train.utils.process import check_ranks_announced, no_bars_in_logs, without_local_rank
from tests.processes import running

WHOLE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
NOTHING = ("", "PATH=/bin")


def environ(text: str) -> dict[str, str]:
    return dict(word.split("=") for word in text.split())


@pytest.mark.parametrize(
    "left",
    ["WORLD_SIZE=2", "WORLD_SIZE=2 RANK=0", "RANK=1", "LOCAL_RANK=3", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2",
     "WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=1", "WORLD_SIZE=two", "RANK=x", "RANK=-1",
     "RANK=2 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=1",
     "RANK=1 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=1", "WORLD_SIZE=0"],
)  # fmt: skip
def test_half_an_announcement_is_refused_at_once(left: str) -> None:
    with pytest.raises(ValueError, match=r"the environment has .*unset .*torchrun") as error:
        check_ranks_announced(environ(left))
    assert "\n" not in str(error.value)
    for word in left.split():
        assert word in str(error.value)


@pytest.mark.parametrize("fine", [*NOTHING, "MASTER_PORT=29500", "WORLD_SIZE=1", "RANK=0 WORLD_SIZE=1", "WORLD_SIZE="])
def test_one_process_says_nothing(fine: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_ranks_announced(environ(fine))
    assert capsys.readouterr().err == ""


def test_a_whole_announcement_without_a_launcher_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_ranks_announced(WHOLE)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "rank 1 of 2" in told
    assert "waits for the other 1" in told
    assert "MASTER_PORT=29500" in told
    environment = dict(WHOLE)
    for launcher in ("TORCHELASTIC_RUN_ID", "CROSS_SIZE"):
        environment[launcher] = "1"
        check_ranks_announced({**WHOLE, launcher: "1"})
    assert capsys.readouterr().err == ""
    # Evaluations may do without LOCAL_RANK.
    del environment["LOCAL_RANK"]
    check_ranks_announced(environment, local=False)
    with pytest.raises(ValueError, match="but not LOCAL_RANK"):
        check_ranks_announced(environment)


CONTRADICTIONS = [
    ("ACCELERATE_MIXED_PRECISION=bf16", "trainer.bf16"), ("ACCELERATE_MIXED_PRECISION=fp16", "trainer.bf16"),
    ("ACCELERATE_MIXED_PRECISION=fp8", "trainer.bf16"), ("ACCELERATE_DYNAMO_BACKEND=inductor", "compile_layers"),
    ("ACCELERATE_DYNAMO_BACKEND=EAGER", "compile_layers"), ("ACCELERATE_USE_FSDP=true", "zero3"),
    ("ACCELERATE_USE_DEEPSPEED=true", "deepspeed="), ("ACCELERATE_USE_MEGATRON_LM=1", "zero3"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "batches_per_step"), ("ACCELERATE_GRADIENT_CLIPPING=0.5", "max_grad"),
    ("ACCELERATE_DOWNCAST_BF16=true", "bf16"), ("ACCELERATE_USE_PARALLELISM_CONFIG=true", "parallelism"),
    ("ACCELERATE_USE_SAGEMAKER=true", "torchrun"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "remedy"), CONTRADICTIONS)
def test_an_arithmetic_that_the_configuration_does_not_say_is_refused(word: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"{word} is in the environment.*{remedy}.*torchrun"):
        check_arithmetic(bf16=False, gpu=False, inherited=environ(word), environ=environ(word))


def test_bfloat16_and_a_hidden_gpu() -> None:
    inherited = environ("ACCELERATE_MIXED_PRECISION=bf16")
    check_arithmetic(bf16=True, gpu=True, inherited=inherited, environ={})
    with pytest.raises(ValueError, match="fp16"):
        check_arithmetic(bf16=True, gpu=True, inherited=environ("ACCELERATE_MIXED_PRECISION=fp16"), environ={})
    check_arithmetic(bf16=True, gpu=False, inherited=environ("ACCELERATE_USE_CPU=True"), environ={})
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        check_arithmetic(bf16=True, gpu=True, inherited=environ("ACCELERATE_USE_CPU=True"), environ={})


def test_what_accelerate_launch_sets_by_itself_is_cleared() -> None:
    # As `accelerate launch --num_processes 2` of accelerate 1.15 sets them.
    text = (
        "ACCELERATE_MIXED_PRECISION=no ACCELERATE_DYNAMO_BACKEND=NO ACCELERATE_DYNAMO_MODE=default "
        "ACCELERATE_DYNAMO_USE_FULLGRAPH=False ACCELERATE_DYNAMO_USE_DYNAMIC=False ACCELERATE_USE_CPU=False "
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION=False OMP_NUM_THREADS=1 ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1 "
        "ACCELERATE_FP8_BACKEND=te ACCELERATE_DEEPSPEED_ZERO3_INIT=true ACCELERATE_CPU_AFFINITY=1"
    )
    left = environ(text)
    check_arithmetic(bf16=False, gpu=True, inherited=environ(text), environ=left)
    assert left == {"OMP_NUM_THREADS": "1", "ACCELERATE_CPU_AFFINITY": "1"}
    # What the libraries set for themselves in an earlier stage of this process is no wish of the user.
    left = environ("ACCELERATE_USE_DEEPSPEED=true ACCELERATE_MIXED_PRECISION=bf16")
    check_arithmetic(bf16=False, gpu=True, inherited={}, environ=left)
    assert left == {}


def test_deepspeeds_launcher_adds_a_word() -> None:
    words = ["--local_rank=3", "sft", "run.dir=x", "--local-rank=3"]
    assert without_local_rank(words, {"LOCAL_RANK": "3"}) == ["sft", "run.dir=x"]
    assert without_local_rank(words, {"LOCAL_RANK": "2"}) == words
    assert without_local_rank(words, {}) == words


CHILD = (
    "import os, sys, time\nfrom qa_train.utils.process import end_with_launcher\nend_with_launcher()\n"
    "os.write(1, str(os.getpid()).encode() + b'\\n')\nos.close(1)\n{busy}"
)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
@pytest.mark.parametrize("busy", ["time.sleep(60)", "while True: pass", "os.kill(os.getpid(), 19)"])
@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "CROSS_SIZE", None])
def test_a_rank_ends_with_its_launcher_and_a_run_of_a_shell_does_not(busy: str, launcher: str | None) -> None:
    if launcher is None and busy != "time.sleep(60)":
        pytest.skip("one kind is enough")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("TORCHELASTIC_RUN_ID", "CROSS_SIZE"):
        env.pop(name, None)
    if launcher:
        env[launcher] = "1"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}.replace("
         f"'{{busy}}', {busy!r})])"], env=env, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        deadline = time.monotonic() + (10 if launcher else 0.5)
        while running(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running(child) == (launcher is None)
    finally:
        if running(child):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8"])
def test_another_encoding_than_that_of_all_files_is_refused(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    told = capsys.readouterr()
    assert end.value.code == (0 if encoding == "utf-8" else 2)
    assert (f"{encoding} here, qa-train UTF-8: set PYTHONUTF8=1" in told.err) == (encoding != "utf-8")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_of_libraries_are_for_terminals(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    made: dict[str, str] = {}
    no_bars_in_logs(made)
    assert bool(made) is not terminal
