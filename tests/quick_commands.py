"""Commands as processes of their own, forked from one interpreter that has never loaded torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.leave import leave
from tests.pseudo_terminal import opened, shown

ROOT = Path(__file__).parent.parent
# What a command ends with that would load torch.
LOADS_TORCH = 9


@dataclass(frozen=True)
class Start:
    """A command line, in a terminal of so many columns; None: with its output in files."""

    words: str
    columns: int | None = None
    environ: dict[str, str] = field(default_factory=dict)


def ends(starts: list[Start], cwd: Path) -> list[tuple[int, str, str]]:
    """The exit code, stdout and stderr of each start, in order; in a terminal all that it shows is stdout."""
    program = [sys.executable, "-m", "tests.quick_commands", str(cwd), json.dumps([asdict(start) for start in starts])]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


class NoTorch:
    """The end of the process where torch would be loaded: it prints a mark, and no more."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch":
            print("TORCH", file=sys.stderr, flush=True)
            os._exit(LOADS_TORCH)


def _run(start: Start, cwd: str, out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    os.chdir(cwd)
    for name in ("NO_COLOR", "COLUMNS"):
        os.environ.pop(name, None)
    os.environ |= {"TERM": "xterm-256color", **start.environ}
    main(start.words.split())


def _in_files(start: Start, cwd: str) -> tuple[int, str, str]:
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        if not (pid := os.fork()):
            leave(lambda: _run(start, cwd, out.fileno(), err.fileno()))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def _in_terminal(start: Start, columns: int, cwd: str) -> tuple[int, str, str]:
    parent, child = opened(columns)
    if not (pid := os.fork()):
        os.close(parent)
        os.dup2(child, 0)
        leave(lambda: _run(start, cwd, child, child))
    os.close(child)
    found = shown(parent)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), found, ""


if __name__ == "__main__":
    sys.meta_path.insert(0, NoTorch())
    # What several of them import first.
    import hydra.main  # noqa: F401
    import soundfile  # noqa: F401

    import qa_train.config
    import qa_train.data.shards.index  # noqa: F401
    from qa_train.cli import main

    folder, found = sys.argv[1], []
    for each in (Start(**given) for given in json.loads(sys.argv[2])):
        found.append(_in_files(each, folder) if each.columns is None else _in_terminal(each, each.columns, folder))
    print(json.dumps(found))
