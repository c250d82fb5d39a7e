"""The command line as a person meets it: help is quick, errors are one clear line, exit codes mean something."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from qa_train.cli import DATA_HELP, settings_first
from qa_train.commands.help import _DATA
from tests.train.conftest import ROOT, environment


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qa_train", *words], capture_output=True, text=True, cwd=ROOT, env=environment()
    )


def test_settings_may_stand_after_flags() -> None:
    for words, arranged in (
        ("a=1 --cfg job b=2", "a=1 b=2 --cfg job"),
        ("--cfg job a=1 +data.x={y:1} ~z", "a=1 +data.x={y:1} ~z --cfg job"),
        ("a=1 -m b=2,3", "a=1 b=2,3 -m"),
        ("-c job --package=_global_ --config-dir my a=b=c", "a=b=c -c job --package=_global_ --config-dir my"),
        ("a=1 --info defaults", "a=1 --info defaults"),
    ):
        assert settings_first(words.split()) == arranged.split()


def test_help_is_quick_and_lists_every_command() -> None:
    started = time.process_time(), time.perf_counter()
    done = cli("--help")
    assert time.perf_counter() - started[1] < 10
    assert done.returncode == 0
    for command in ("pretrain", "sft", "dpo", "eval", "chat", "export", "data index", "data order"):
        assert command in done.stdout


_EVERY_HELP = """
import contextlib, io, sys
from qa_train.cli import main
texts = []
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main([*words.split(), "--help"])
        except SystemExit as left:
            assert left.code == 0, words
    assert words.split()[-1] in out.getvalue(), words
slow = {"torch", "transformers", "datasets", "scipy"} & set(sys.modules)
assert not slow, slow
"""


def test_every_help_is_quick() -> None:
    data = re.findall(r"^ {4}data ([\w-]+)", DATA_HELP, flags=re.MULTILINE)
    known = {*_DATA.split(), *(point.name for point in entry_points(group="qa_train.data_commands"))}
    assert set(data) == known, "qa-train --help lists every data command"
    others = "pretrain sft dpo eval chat serve pairs export plan doctor dashboard data completion".split()
    words = [*others, "plan data", *(f"data {name}" for name in data)]
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_HELP, *words], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr


def test_files_that_are_not_as_expected_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "table.csv").write_text("audio,text\na.wav,hello\n")
    (tmp_path / "rows.jsonl").write_text('{"path": "a.wav", "sentence": "hi"}\n')
    for words, said in (
        (f"import table path={tmp_path}/table.csv split=train out={tmp_path}/file", "/file/listing: not a directory"),
        (f"from-jsonl {tmp_path}/file {tmp_path}/x-%05d.tar", "/file holds no line"),
        (
            f"from-jsonl {tmp_path}/rows.jsonl {tmp_path}/x-%05d.tar",
            "no 'messages', it has path, sentence; rows such as",
        ),
        (f"from-jsonl {tmp_path}/none.jsonl {tmp_path}/x-%05d.tar", "/none.jsonl: no such file or directory"),
        (f"index {tmp_path}/none.tar", "/none.tar: no such file"),
        ("import librispeech /data", "qa-train data import librispeech: '/data' is not of the form key=value"),
    ):
        done = cli("data", *words.split())
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no command 'train'"),
        (["pretrian"], "did you mean pretrain? there are"),
        (["data", "indx"], "did you mean index? there are"),
        (["eval", "--checkpoint", "runs/x"], "write checkpoint=runs/x, not --checkpoint"),
        (["eval", "checkpoint", "=", "runs/x"], 'no spaces around "=": write checkpoint=runs/x'),
        (["eval", "checkpoint=", "runs/x"], "write checkpoint=runs/x"),
        (["pretrain", "trainer.max_steps", "=", "3"], "write trainer.max_steps=3"),
        (["pretrain", "--max-steps=3"], "write max_steps=3, not --max-steps=3"),
        (["pretrain", "experiment=smoke"], "missing run.dir=, the folder where the run lives"),
        (
            ["pretrain", "run.dir=x", "trainer.max_steps=abc"],
            "max_steps: Value 'abc' of type 'str' could not be",
        ),
        (["pretrain", "run.dir=x", "+data.sources.m={shards:[a.tar], task:asr"], "close every bracket"),
        (["sft", "experiment=smoke", "run.dir=x", "dpo.beta=2"], "dpo.beta: read by dpo only; sft would ignore it"),
        (["export", "checkpoint=/nowhere", "out=x"], "/nowhere does not exist"),
        (["eval", "checkpoint=/nowhere"], "missing out="),
        (["chat", "checkpoint=/nowhere", "voice=x"], "known keys"),
        (["data", "frobnicate"], "no command 'frobnicate'"),
        (["chat", "checkpoint=/nowhere", "device=cuda:99"], "device=cuda:99 cannot be used ("),
        (["data", "index"], "give paths, folders, globs or URLs of .tar shards"),
    ],
)
def test_wrong_use_is_one_clear_line(words: list[str], message: str) -> None:
    done = cli(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


_IN_A_GROUP = """
import atexit, sys, time
from importlib.metadata import entry_points
from pathlib import Path
names = lambda: [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
atexit.register(lambda: print("at exit:", names().count("pt_gloo_runloop")))
import torch
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
for _ in range(200):  # a thread takes its name a moment after it begins
    if names().count("pt_gloo_runloop"):
        break
    time.sleep(0.05)
print("before:", names().count("pt_gloo_runloop"))
from qa_train.cli import main
main(["completion", "bash"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_the_process_group_outlives_a_command(tmp_path: Path) -> None:
    # One that frees a tensor while Python shuts down ends the process with SIGABRT, rarely and after all was done.
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_GROUP, str(tmp_path / "meet")],
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert int(lines[0].removeprefix("before: ")) > 0
    assert lines[-1] == "at exit: 0"


def test_unknown_training_key_is_named() -> None:
    done = cli("pretrain", "experiment=smoke", "run.dir=unused", "trainer.max_step=3")
    assert done.returncode != 0
    assert "max_step" in done.stderr


def test_order_does_not_depend_on_the_shape_of_the_run() -> None:
    digests = {
        cli("data", "order", "experiment=smoke", "steps=3", f"world_size={w}", f"num_workers={k}").stdout.strip()
        for w, k in ((1, 0), (2, 2))
    }
    assert len(digests) == 1
    assert len(next(iter(digests))) == 64


def test_foreign_tars_become_trainable(tmp_path: Path) -> None:
    import io
    import tarfile

    import numpy as np
    import soundfile

    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for i in range(6):
            audio = io.BytesIO()
            soundfile.write(audio, np.random.default_rng(i).normal(0, 0.1, 8000), 16_000, format="FLAC")
            for name, content in ((f"x{i}.flac", audio.getvalue()), (f"x{i}.json", b'{"text": "some words"}')):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    done = cli("data", "index", str(tmp_path / "foreign.tar"))
    assert done.returncode == 0, done.stderr
    assert "6 records" in done.stdout
    source = f"+data.sources={{mine:{{shards:['{tmp_path}/foreign.tar'],task:asr}}}}"
    trained = cli(
        "pretrain", "experiment=smoke", "data=empty", source, f"run.dir={tmp_path}/run", "trainer.max_steps=3"
    )
    assert trained.returncode == 0, trained.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    words = shlex.join([sys.executable, "-m", "qa_train", "data", "clean", "--help"])
    done = subprocess.run(["bash", "-c", f"{words} | true; echo ${{PIPESTATUS[0]}}"], cwd=ROOT, env=environment(),
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("141", "")
