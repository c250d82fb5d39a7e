"""The command line: `qa-train COMMAND key=value ...`.

Commands import what they need when they run, so that `qa-train --help` is quick.
"""

from __future__ import annotations

import sys

from qa_train import __version__
from qa_train.command_line.command_table import COMMANDS, NAMES, find, run
from qa_train.commands.guard import guarded, leave_the_group, show_warnings
from qa_train.utils.process import (
    end_with_launcher,
    expand_segments,
    no_bars_in_logs,
    print_any_name,
    without_local_rank,
)


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failure, 2 wrong use, 73 run.dir is another's, 75 stopped."""
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    end_with_launcher()
    expand_segments()
    no_bars_in_logs()
    print_any_name()
    named = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS or name in NAMES), "")
    code = guarded(named, lambda: _run(words))
    if code not in (2, 130):  # After an error other ranks may still wait for this one: torchrun ends them.
        leave_the_group()
    sys.exit(code)


def _run(words: list[str]) -> int:
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise ValueError(f"Python reads and writes {encoding} here, qa-train UTF-8: set PYTHONUTF8=1")
    if words[:1] in (["-V"], ["--version"]):
        print(f"qa-train {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        from qa_train.command_line.help import overview

        print(overview())
        return 0 if words else 2
    command, rest = find(words)
    asked = bool({"-h", "--help"} & set(words)) or rest == ["help"]
    if command is None or asked:
        from qa_train.command_line.help import command_help, group_help

        print(group_help() if command is None else command_help(command))
        return 0 if asked else 2
    show_warnings()
    return run(command.name, rest)
