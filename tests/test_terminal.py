"""What a person sees: widths follow the terminal, words stay whole, pipes are plain, and something is said at once."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qa_train.command_line.command_table import COMMANDS, HEAVY
from qa_train.utils.terminal import PLAIN, Layout, columns, layout
from tests.pseudo_terminal import in_terminal
from tests.quick_commands import LOADS_TORCH, Start, ends
from tests.train.conftest import ROOT

FIRST = r"qa-train {}[^:]*: loading libraries, a few seconds"
SHARD = str(ROOT / "data" / "starter" / "sound-test.tar")


def words_of(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).split()


def too_long(line: str, width: int) -> bool:
    """Whether a line has words beyond the width; one word, an address, may be longer than there is room for."""
    return columns(line) > width and len(words_of(line)[-1]) < width - 24


@pytest.mark.parametrize("width", [40, 80, 140])
def test_text_follows_the_width_and_keeps_its_words(width: int) -> None:
    page = Layout(width, True)
    text = "  note: " + "some words with a /rather/long/path/of/a/file " * 5 + "x" * 200
    folded = page.fold(text)
    assert words_of(folded) == text.split()
    lines = folded.splitlines()
    assert [line for line in lines if columns(line) > width] == [f"    {'x' * 200}"]
    assert all(line.startswith("    ") for line in lines[1:])
    pairs = [("a", "many words " * 30), ("a term that is too long", "b"), ("c", "")]
    shown = page.entries(pairs, 12)
    assert max(map(columns, shown.splitlines())) <= width
    assert words_of(shown) == " ".join(f"{term} {told}" for term, told in pairs).split()
    # Without a width nothing is folded, and nothing is coloured.
    assert PLAIN.fold(text) == text
    assert PLAIN.entries([("a", "b " * 200)], 4) == f"  a {'b ' * 200}".rstrip()


def test_lines_are_broken_by_columns() -> None:
    wide = "これは" * 30
    lines = Layout(60).fold(wide).splitlines()
    assert list(map(columns, lines)) == [60, 60, 60, 6]
    assert "".join(map(str.strip, lines)) == wide
    # Latin words between wide characters stay whole.
    mixed = Layout(40).fold("語" * 18 + "Qwen2-Audio" + "語" * 18 + " " + "é" * 50).splitlines()
    assert mixed == ["語" * 18, "  Qwen2-Audio" + "語" * 13, "  " + "語" * 5, "  " + "é" * 50]
    beside = Layout(40).entries([("a", wide)], 10).splitlines()
    assert {columns(line) for line in beside[:-1]} == {40}
    # Codes take no room, and stay with what they colour.
    page = Layout(41, True)
    for word in ("green", "緑緑"):
        plain, painted = " ".join([word] * 20), " ".join([page.paint(word, "green")] * 20)
        assert re.sub(r"\x1b\[[0-9;]*m", "", page.fold(painted)) == page.fold(plain)
    assert all(line.endswith("\x1b[0m") for line in page.fold(painted).splitlines())


def test_text_of_narrow_characters_is_wrapped_as_the_standard_library_does() -> None:
    draw = random.Random(0)
    parts = ["a", "bc", "word", "é", "-", " ", "   ", "\t", "\n", "x" * 50]
    for _ in range(300):
        text = "".join(draw.choices(parts, k=40)).strip()
        margin = " " * draw.randrange(40)
        assert Layout(40)._wrap(text, margin, margin + "  ") == textwrap.wrap(
            text, max(40, len(margin) + 16), initial_indent=margin, subsequent_indent=margin + "  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def test_tables_put_their_notes_where_there_is_room() -> None:
    head, rows = ["source", "hours", "skipped"], [["asr", "1.50"], ["语音", "12.25"], ["chat", "3.00"]]
    notes = ["12 too long for the budget of a batch", "", "1 damaged"]
    assert PLAIN.table(head, rows, notes=notes).splitlines() == [
        "  source  hours  skipped",
        "  asr      1.50  12 too long for the budget of a batch",
        "  语音    12.25  -",
        "  chat     3.00  1 damaged",
    ]
    beside = Layout(40).table(head, rows, notes=notes).splitlines()
    assert beside[1:3] == ["  asr      1.50  12 too long for the", " " * 17 + "budget of a batch"]
    rows = [[f"{name}-of-a-source-with-a-name", hours] for name, hours in rows]
    below = Layout(40).table(head, rows, notes=notes).splitlines()
    assert below[0].split() == ["source", "hours"]
    assert below[2:5] == ["      skipped: 12 too long for the", "        budget of a batch", below[4]]
    assert not any(line.endswith("-") for line in below)
    # Too narrow for a row: its name has a line of its own, and no cell is cut.
    narrow = Layout(30).table(head[:2], rows).splitlines()
    assert narrow[2:4] == [f"  {rows[0][0]}", "     1.50"]


class _Terminal:
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm"}, Layout(80, True)),
        ({"TERM": "xterm", "COLUMNS": "120"}, Layout(120, True)),
        ({"TERM": "xterm", "COLUMNS": "7"}, Layout(40, True)),
        ({"TERM": "xterm", "COLUMNS": "many", "NO_COLOR": ""}, Layout(80, True)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Layout(80, False)),
        ({"TERM": "dumb"}, Layout(80, False)),
        ({}, Layout(80, False)),
    ],
)
def test_the_environment_is_asked(environ: dict[str, str], expected: Layout) -> None:
    # /dev/null is no terminal that could tell a width.
    assert layout(_Terminal(), environ) == expected  # type: ignore[arg-type]


def test_a_pipe_is_plain_whatever_the_environment_says() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        assert layout(pipe, {"TERM": "xterm-256color", "COLUMNS": "50"}) == PLAIN


QUICK = ["--help", "pretrain --help", "data import --list", f"data stats {SHARD}", "sft x=1"]
TERMINALS = [Start("", 80), Start("", 80, {"NO_COLOR": "1"}), Start("", 60, {"COLUMNS": "100"})]
FIRST_LINE = [
    "pretrain experiment=smoke run.dir=x", "sft experiment=smoke run.dir=x", "dpo experiment=smoke run.dir=x",
    "plan sft experiment=smoke", "plan data experiment=smoke", "doctor", "eval compare=[a,b]", "chat checkpoint=x",
    "serve checkpoint=x", "export checkpoint=x out=y", "pairs checkpoint=x shards=y out=z", "data tokens",
    "data order", f"data rewrite shards={SHARD} out=y model=q",
]  # fmt: skip
SILENT = [
    "--help", "pretrain --cfg job experiment=smoke run.dir=x", f"data inspect {SHARD}", "data index copy.tar",
    f"data stats {SHARD}", f"data clean {SHARD}", "data import --list", "completion bash",
]  # fmt: skip
RANK_1 = {"RANK": "1"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, str]]:
    """The exit code, stdout and stderr of any of the starts of this file: one interpreter makes them all."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "copy.tar").write_bytes(Path(SHARD).read_bytes())
    starts = [Start(words) for words in dict.fromkeys([*QUICK, *FIRST_LINE, *SILENT])]
    starts += [replace(terminal, words=words) for words in QUICK for terminal in TERMINALS]
    starts += [Start(words, None, RANK_1) for words in FIRST_LINE if words.startswith("plan")]
    found = list(zip(starts, ends(starts, folder), strict=True))
    return lambda words, columns=None, environ=None: next(
        end for start, end in found if start == Start(words, columns, environ or {})
    )


@pytest.mark.parametrize("words", QUICK)
def test_quick_commands_fit_a_terminal_and_are_plain_elsewhere(words: str, ended: Any) -> None:
    expected, out, err = ended(words)
    plain = out + err
    assert "\x1b" not in plain
    for terminal in TERMINALS:
        code, shown, _ = ended(words, terminal.columns, terminal.environ)
        assert code == expected
        # The bar of a command redraws its line.
        lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
        fits = int(terminal.environ.get("COLUMNS", str(terminal.columns)))
        assert [line for line in lines if too_long(line, fits)] == []
        assert set(words_of(plain)) - set(words_of("\n".join(lines))) <= {"stats:"}
        if "NO_COLOR" in terminal.environ:
            assert "\x1b[" not in re.sub(r"\x1b\[A", "", "\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "plan sft experiment=sft_7b gpu=h100 gpus=8 price=2.5",
        "plan data experiment=smoke steps=4",
        "doctor",
        "pretrain experiment=smoke run.dir=run trainer.max_steps=2",
    ],
)
def test_what_a_run_says_fits_80_columns(words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qa_train", *words.split()]
    _, shown = in_terminal(command, 80, cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert re.match(FIRST.format(words.split()[0]), shown)
    lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
    assert [line for line in lines if too_long(line, 80)] == []
    # Broken between words: what a line begins with is no tail of a word.
    assert not re.search(r"\S-?\n\s+[a-z]{1,2}\b[,;.]?\n", shown)
    assert "\x1b[1m" in shown or "\x1b[3" in shown


@pytest.mark.parametrize("words", FIRST_LINE)
def test_the_first_line_comes_before_torch(words: str, ended: Any) -> None:
    code, out, err = ended(words)
    told = err.splitlines()
    assert re.fullmatch(FIRST.format(words.split()[0]), told[0])
    assert told[-1] == "TORCH"
    assert code == LOADS_TORCH
    # What programs read is not disturbed; the doctor has begun with what needs no torch.
    assert out == "" or words == "doctor"
    if words.startswith("plan"):
        assert ended(words, None, RANK_1)[2].splitlines()[0] == "TORCH"


@pytest.mark.parametrize("words", SILENT)
def test_quick_commands_neither_load_torch_nor_say_so(words: str, ended: Any) -> None:
    code, _, err = ended(words)
    assert code == 0, err
    assert "loading" not in err


# Runs what every command that says nothing imports before anything else; ends where one of them would load torch.
_IMPORTS = """
import ast, inspect, sys
from qa_train.command_line.command_table import COMMANDS
from tests.quick_commands import NoTorch
sys.meta_path.insert(0, NoTorch())
for name in sys.argv[1:]:
    print(name, flush=True)
    function = COMMANDS[name].load()
    for statement in ast.parse(inspect.getsource(function)).body[0].body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(ast.unparse(statement))
"""


def test_commands_that_load_torch_say_so() -> None:
    def looked_at(*names: str) -> tuple[int, list[str]]:
        done = subprocess.run([sys.executable, "-c", _IMPORTS, *names], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines()

    assert COMMANDS.keys() >= HEAVY
    quick = [name for name in COMMANDS if name not in HEAVY]
    assert looked_at(*quick) == (0, quick)
    assert looked_at("data inspect", "convert", "doctor") == (LOADS_TORCH, ["data inspect", "convert"])
