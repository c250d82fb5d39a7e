"""The command line as a person meets it: help is quick, errors are one clear line, exit codes mean something.

Three tests start an interpreter, because they are about one: the time and imports of help, a closed pipe, and the
threads that outlive a command. All others call ``main`` in this process.
"""

from __future__ import annotations

import errno
import io
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from qa_train.cli import main
from qa_train.command_line.command_table import COMMANDS, find
from qa_train.command_line.help import WIDTH, command_help, group_help, overview
from qa_train.commands.guard import guarded
from qa_train.commands.train_stage import settings_first
from qa_train.config.nearest import is_setting
from qa_train.config.options import ChatConfig, EvalConfig, parse_options
from qa_train.config.words import check_bare, option_fields, with_home
from tests.train.conftest import ROOT, environment

Captured = pytest.CaptureFixture[str]


def cli(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


def test_settings_may_stand_after_flags() -> None:
    for words, arranged in (
        ("a=1 --cfg job b=2", "a=1 b=2 --cfg job"),
        ("--cfg job a=1 +data.x={y:1} ~z", "a=1 +data.x={y:1} ~z --cfg job"),
        ("a=1 -m b=2,3", "a=1 b=2,3 -m"),
        ("-c job --package=_global_ --config-dir my a=b=c", "a=b=c -c job --package=_global_ --config-dir my"),
        ("a=1 --info defaults", "a=1 --info defaults"),
    ):
        assert settings_first(words.split()) == arranged.split()


_HELP = """
import contextlib, io, sys
from qa_train.cli import main
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main([*words.split(), "--help"])
        except SystemExit as left:
            assert left.code == 0, words
    assert words.split()[-1] in out.getvalue(), words
    if words == "--help":
        print(len(sys.modules))
slow = {"torch", "transformers", "datasets", "scipy"} & set(sys.modules)
assert not slow, slow
"""


def test_help_is_quick() -> None:
    """`qa-train --help` imports some 250 modules (0.2 CPU seconds), and no help imports torch."""
    words = ["--help", "data", *COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", _HELP, *words], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400


def test_the_table_holds_every_command_once() -> None:
    built = {f"data {point.name}" for point in entry_points(group="qa_train.data_commands")}
    assert built == {name for name, command in COMMANDS.items() if not command.function}
    for name, command in COMMANDS.items():
        assert find(name.split()) == (command, [])
        assert f"  {name}  " in overview()
        assert next(iter(command.takes())) in ("options", "paths", "settings", "words")


@pytest.mark.parametrize(
    ("command", "first", "last"),
    [
        ("data label", "shards out checkpoint url model", "engine ray_address"),
        ("data voice-chat", "path out", "engine ray_address workers seed"),
        ("data mixtures", "speech sounds out", "engine ray_address workers seed"),
        ("data preferences", "shards out", "engine ray_address workers seed"),
        ("data stats", "tokenizer tasks", "storage engine ray_address num_workers"),
        ("data clean", "min_duration_s", "storage engine ray_address num_workers"),
        ("pairs", "checkpoint shards out where", "verify allow_missing device"),
    ],
)
def test_options_are_listed_by_need(command: str, first: str, last: str) -> None:
    kind = COMMANDS[command].options
    assert kind is not None
    names = " ".join(field.name for field in option_fields(kind))
    assert names.startswith(f"{first} ")
    assert names.endswith(f" {last}")


def test_help_fits_a_terminal() -> None:
    for text in (overview(), group_help(), *map(command_help, COMMANDS.values())):
        assert [line for line in text.splitlines() if len(line) > WIDTH] == []


def test_help_names_a_command(capsys: Captured) -> None:
    assert cli("help", "data", "stats") == 0
    assert "usage: qa-train data stats" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["", "help", "--help", "-h", "data", "data --help", "data help", "plan data --help",
                                   "completion -h", "data import --help"])  # fmt: skip
def test_help_that_was_asked_for_is_no_failure(words: str, capsys: Captured) -> None:
    asked = "h" in words.replace("data import", "")
    assert cli(*words.split()) == (0 if asked else 2)
    assert "qa-train" in capsys.readouterr().out


def test_files_that_are_not_as_expected_are_one_line(tmp_path: Path, capsys: Captured) -> None:
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
        ("import librispeech /data", "qa-train data import: give one CORPUS, path= and out=; found librispeech /data"),
        (
            "import librispech path=/data out=x",
            "qa-train data import: no corpus 'librispech'; did you mean librispeech",
        ),
    ):
        assert cli("data", *words.split()) == 2
        assert said in capsys.readouterr().err


def fails(error: Exception) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "error", "told"),
    [
        ("export", RuntimeError("I/O error: No space left on device (os error 28)"), "(os error 28); free some, or"),
        (
            "data index",
            RuntimeError("Caught OSError in worker 0.\nTrace\nOSError: [Errno 28] No space left on device"),
            "index: OSError: [Errno 28] No space left on device; free some",
        ),
        ("export", OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; free some, or"),
        (
            "export",
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            "/a/b: no space left on device; free",
        ),
        ("sft", RuntimeError("failed to listen. port: 4242, code: -98, name: EADDRINUSE"), "port 4242 of this machine"),
    ],
)
def test_what_a_person_can_put_right_is_one_line(command: str, error: Exception, told: str, capsys: Captured) -> None:
    assert guarded(command, fails(error)) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_a_broken_disk_keeps_its_trace() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        guarded("data index", fails(OSError(errno.EIO, "Input/output error", "/data/a.tar")))


def test_a_run_that_lost_a_process_says_where_to_look(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("pair.cc:537 Read error [127.0.0.1]:1: Connection reset by peer. https://h/a.tar?signature=abc")
    with pytest.raises(RuntimeError, match="Read error"):
        guarded("sft", fails(lost))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert guarded("sft", fails(lost)) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "https://h/a.tar?***" in said
    assert "abc" not in said
    assert "another process of this run ended before" in said.splitlines()[-1]
    for other in ("another bug", "HTTPSConnectionPool(host='h'): Connection reset by peer"):
        with pytest.raises(RuntimeError):
            guarded("sft", fails(RuntimeError(other)))


FIRST = ": loading libraries, a few seconds"


def test_a_setting_of_a_free_section_is_not_taken_for_a_bare_key() -> None:
    check_bare(["deepspeed=zero3", "deepspeed.config.zero_optimization.stage3_max_reuse_distance=0"], "sft", is_setting)
    with pytest.raises(ValueError, match=r"write deepspeed\.config\.gradient_clipping=1"):
        check_bare(["deepspeed.config.gradient_clipping", "1"], "sft", is_setting)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "qa-train: no command 'train'"),
        ("pretrian", "did you mean pretrain? there are"),
        ("Eval", "did you mean eval? there are"),
        ("data indx", "did you mean index? there are"),
        ("data voice_chat", "did you mean voice-chat? there are"),
        ("data frobnicate --help", "qa-train data: no command 'frobnicate': there are import,"),
        ("eval --checkpoint runs/x", "write checkpoint=runs/x, not --checkpoint"),
        ("data stats x.tar --num-workers=2", "write num_workers=2, not --num-workers=2"),
        ("eval checkpoint = runs/x", 'no spaces around "=": write checkpoint=runs/x'),
        ("eval checkpoint= runs/x", "write checkpoint=runs/x"),
        ("pretrain trainer.max_steps = 3", "write trainer.max_steps=3"),
        ("pretrain run.dir=x trainer.max_steps 3", 'trainer.max_steps has no "=": write trainer.max_steps=3'),
        ("plan sft gpu h100", 'gpu has no "=": write gpu=h100'),
        ("plan sft experiment smoke", 'experiment has no "=": write experiment=smoke'),
        ("pretrain -experiment=smoke", "write experiment=smoke, not -experiment=smoke"),
        ("data sample x.tar -n 3", "write n=3, not -n"),
        ("pretrain --max-steps=3", "no dashes before them: --max-steps: here it is trainer.max_steps"),
        ("pretrain experiment=smoke", "missing run.dir=, the folder where the run lives"),
        ("pretrain experiment=smoke run.dir=", "run.dir is empty: name the folder"),
        ("pretrain experiment= run.dir=x", "experiment= lacks a name: there are "),
        ("sft experiment=smok run.dir=unused", "did you mean experiment=smoke"),
        ("plan sft experiment=smok", "did you mean experiment=smoke"),
        ("pretrain experiment=smoke run.dir=unused trainer.max_step=3", "did you mean trainer.max_steps?"),
        ("pretrain run.dir=x trainer.max_steps=abc", "trainer.max_steps is 'abc': use a whole number"),
        ("pretrain run.dir=x trainer.max_steps=0", "trainer.max_steps is 0: use 1 or more"),
        ("pretrain run.dir=x trainer.learning_rate=1e-4,1e-5", "STAGE -m runs one job for each of them"),
        ("pretrain run.dir=x trainer.learning_rate=1e-4,", "ends with a comma; write trainer.learning_rate=1e-4"),
        ("pretrain run.dir=x +trainer.max_steps=3", "exists already: write trainer.max_steps=VALUE, without +"),
        ("pretrain run.dir=x +data.sources.m={shards:[a.tar],task:asr", "close every bracket"),
        ("sft experiment=smoke run.dir=x dpo.beta=2", "dpo.beta: read by dpo only; sft would ignore it"),
        ("export checkpoint=/nowhere out=x", "/nowhere does not exist"),
        ("eval checkpoint=/nowhere", "missing out="),
        ("chat checkpoint=/nowhere voice=x", "qa-train chat: there is no option voice=; options: checkpoint="),
        ("chat checkpoint=/nowhere voice=*x", "qa-train chat: there is no option voice=; options: checkpoint="),
        ("chat chekpoint=/nowhere", "there is no option chekpoint=; did you mean checkpoint=? options: "),
        ("serve checkpoint=/nowhere prot=3", "did you mean port=?"),
        ("eval checkpoint=/nowhere out=x benchmarks=[librispeech]", "did you mean librispeech_"),
        ("eval checkpoint=/nowhere benchmark=[a]", "did you mean benchmarks=?"),
        ("serve checkpoint=/nowhere token_budget=0", "qa-train serve: token_budget=0: use 1 or more"),
        (
            "eval checkpoint=/nowhere out=x benchmarks=[librispeech_test_clean] batch_size=0",
            "qa-train eval: batch_size=0: use 1 or more",
        ),
        ("serve checkpoint=/nowhere port=high", "serve: port is 'high': use a whole number"),
        (
            "eval checkpoint=/nowhere allow_missing=a",
            "allow_missing is a list: write 'allow_missing=[VALUE,...]'",
        ),
        ("eval checkpoint=/nowhere storage.retry=3", "no option storage.retry=; did you mean storage.retries=?"),
        ("pretrain run.dir=[a]", """run.dir is a text: put one with brackets into quotes, as in 'run.dir="[a]"'"""),
        (
            "dpo run.dir=x dpo.loss_type=hinge",
            "dpo.loss_type is a list: write 'dpo.loss_type=[hinge]'",
        ),
        ("sft run.dir=x model.freeze=encoder", "model.freeze is a list: write 'model.freeze=[encoder]'"),
        ("dpo run.dir=x dpo.rpo_alpha=1", "there is no key dpo.rpo_alpha: here it is dpo.loss_type=[sigmoid,sft]"),
        ("chat checkpoint=/nowhere device=cuda:99", "device=cuda:99 cannot be used ("),
        ("data index", "give SHARDS (SHARDS: paths, folders, globs or URLs of .tar shards); options: "),
        ("dashboard", "qa-train dashboard: give RUNS_DIR"),
        ("dashboard runs colour=red", "'colour=red' is neither a path nor an option; options: out="),
        ("dashboard runs titel=mine", "an option; did you mean title=? options: out="),
        ("completion fish", "name the shell"),
        ("sft trainer.max_steps:3", "cannot read 'trainer.max_steps:3': write trainer.max_steps=3"),
        ("sft data/=empty", "write data=empty"),
        ("sft TRAINER.MAX_STEPS=3", "did you mean trainer.max_steps?"),
        ("sft tracking=null", "there is no tracking=null: there are default, none"),
        ("sft experiment=configs/experiment/smoke.yaml", "did you mean experiment=smoke?"),
        ("sft run.dir=“x”", "the quotes or the dash of a text editor"),
        ("sft –cfg", "the quotes or the dash of a text editor"),
        ("sft +data.sources.a.shards=[s-{0..3}.tar]", """'+data.sources.a.shards=["s-{0..3}.tar"]'"""),
        ("""sft '+data.sources={"a":{"task":3}}'""", "keys are without quotes: '+data.sources={a:{task:3}}'"),
        ("sft run.dir=x +data.sources=[{task:asr}]", "data.sources is no list, its entries have names"),
        ("sft run.dir=x ~data.sources", "data.sources is cleared entry by entry"),
        ("sft run.dir=x ~trainer.max_steps", "~ takes out an entry, such as data.sources.NAME"),
        ("sft run.dir=null", "run.dir is null: give it a value"),
        ("sft 'run.dir=${oc.env:NOT_SET_HERE}'", "run.dir needs the environment variable NOT_SET_HERE"),
        ("sft 'run.dir=$HOME/runs' experiment=smoke", "run.dir is '$HOME/runs': write it out"),
        ("sft 'trainer.max_steps = 3'", "write trainer.max_steps=3"),
        ("sft run.dir=x ''", "an empty word between the others"),
        ("sft 'run.dir=x\r'", "ends with a carriage return: the script has Windows line ends"),
        ("eval checkpoint=/nowhere out=x 'benchmarks=[s-{0..3}.tar, b]'", """'benchmarks=["s-{0..3}.tar","b"]'"""),
    ],
)
def test_wrong_use_is_one_clear_line(words: str, message: str, capsys: Captured) -> None:
    assert cli(*shlex.split(words)) == 2
    shown = capsys.readouterr().err.splitlines()
    # Before it a command that loads torch says so, and one that answers shows its device.
    shown = [line for line in shown if not line.endswith(FIRST) and not line.startswith("answers are computed on ")]
    assert len(shown) == 1
    assert message in shown[0]


@pytest.mark.parametrize(
    "text",
    ["Recognize the speech: <|en|>", "words only:", "Yes", "12:30", "1_000", "[laughs]", "{x}", "- a", "a #b", "*b",
     "@x", '"yes" or "no"', "${what}", "${x", "two\nlines"],
)  # fmt: skip
def test_a_text_is_taken_as_typed(text: str) -> None:
    assert parse_options(ChatConfig, ["checkpoint=x", f"text={text}"], "chat").text == text
    assert parse_options(EvalConfig, [f"judge.model={text}"], "eval").judge.model == text


def test_what_is_no_text_is_read_as_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "b")
    words = ["checkpoint=${oc.env:MINE}/c", "audio=[a.wav,'b: c.wav']", 'text="null"', "temperature=1e-1"]
    found = parse_options(ChatConfig, words, "chat")
    assert (found.checkpoint, found.audio, found.text) == ("b/c", ["a.wav", "b: c.wav"], "null")
    assert found.temperature == 0.1
    # A pattern is no YAML; nothing after "=" is no text.
    found = parse_options(ChatConfig, ["checkpoint=x", "audio=*.wav", "text="], "chat")
    assert (found.audio, found.text) == ("*.wav", None)
    found = parse_options(ChatConfig, ["checkpoint=x", 'audio=["${a}.wav"]', r"text=\${b} ${c:d}"], "chat")
    assert (found.audio, found.text) == (["${a}.wav"], "${b} ${c:d}")
    with pytest.raises(ValueError, match=r"^chat: cannot read audio=\[!!int x\]: put the texts into quotes"):
        parse_options(ChatConfig, ["checkpoint=x", "audio=[!!int x]"], "chat")
    with pytest.raises(ValueError, match="missing checkpoint="):
        parse_options(ChatConfig, [], "chat")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("text=Transcribe the speech: <|en|>", "Transcribe the speech: <|en|>"),
        ("text=Is it a dog? #1 or #2", "Is it a dog? #1 or #2"),
        ("text=[laughter] what?", "[laughter] what?"),
        ("text=no", "no"),
        ("text=12:30", "12:30"),
        ("text=null", None),
        ("text=", None),
        ("text='in quotes'", "in quotes"),
        ("audio=[a.wav, b c.wav]", ["a.wav", "b c.wav"]),
        ("audio=[v1]/a.wav", "[v1]/a.wav"),
        ("audio=x=y/a: b #1.wav", "x=y/a: b #1.wav"),
        ("""audio=[en,no,01,1_000,1e-5,"1",true,null]""", ["en", "no", "01", 1000, 1e-5, "1", True, None]),
        ("max_new_tokens=1_000", 1000),
        ("temperature=.5", 0.5),
        ("verify=yes", True),
    ],
)
def test_values_are_what_was_typed(typed: str, value: Any) -> None:
    """YAML would cut a text at " #", read a colon as an object, and no as false."""
    options = parse_options(ChatConfig, ["checkpoint=x", typed], "chat")
    assert getattr(options, typed.partition("=")[0]) == value


def test_a_home_folder_is_the_users() -> None:
    home = Path.home()
    for word, meant in {"out=~/x": f"out={home}/x", "shards=[~/a, b~/c]": f"shards=[{home}/a, b~/c]", "a=b~": "a=b~",
                        "paths=[~/a,s3://b]": f"paths=[{home}/a,s3://b]", "text=is it a,~/b": "text=is it a,~/b",
                        "path=https://h/?x=~/y": "path=https://h/?x=~/y"}.items():  # fmt: skip
        assert with_home(word) == meant


_IN_A_GROUP = """
import atexit, sys, time
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
@pytest.mark.slow
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


def test_order_does_not_depend_on_the_shape_of_the_run(capsys: Captured) -> None:
    words = ["experiment=smoke", "data.shuffle_window=200", "steps=3"]
    for world, workers in ((1, 0), (2, 2)):
        assert cli("data", "order", *words, f"world_size={world}", f"num_workers={workers}") == 0
    digests = capsys.readouterr().out.split()
    assert len(digests) == 2
    assert len(set(digests)) == 1
    assert len(digests[0]) == 64


def test_foreign_tars_become_trainable(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for i in range(6):
            audio = io.BytesIO()
            soundfile.write(audio, np.random.default_rng(i).normal(0, 0.1, 8000), 16_000, format="FLAC")
            for name, content in ((f"x{i}.flac", audio.getvalue()), (f"x{i}.json", b'{"text": "some words"}')):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert cli("data", "index", str(tmp_path / "foreign.tar")) == 0
    assert "6 records" in capfd.readouterr().out
    source = f"+data.sources={{mine:{{shards:['{tmp_path}/foreign.tar'],task:asr}}}}"
    words = ["experiment=smoke", "data=empty", "data.shuffle_window=100", "trainer.max_steps=3"]
    assert cli("pretrain", *words, source, f"run.dir={tmp_path}/run") == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    program = shlex.join([sys.executable, "-m", "qa_train"])
    piped = "\n".join(f"{program} {words} | true; echo ${{PIPESTATUS[0]}}" for words in (
        "--help", "data --help", "data clean --help", "sft --help", "sft experiment=smoke run.dir=x --cfg job",
    ))  # fmt: skip
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.split()[:4] == ["141"] * 4
    assert done.stdout.split()[4] == "141"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
