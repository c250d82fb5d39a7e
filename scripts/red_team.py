"""Attack what reads the data of others, and count: tried, refused in one line, accepted, and what went wrong.

    python scripts/red_team.py                             every kind
    python scripts/red_team.py indexes pages               these kinds
    python scripts/red_team.py --rounds 300 --seed 7       so many random inputs of each kind

Inputs are those of the tests, one by one, and random ones (scripts/attacks). Each is read in a process of
its own, in a temporary folder, with limits on memory and time; the server is asked over the loopback interface, and
nothing else touches a network. Wrong is: an error of another kind than a refusal, a refusal of more than one line, a
process that ends or takes too long, an input that had to be refused and was not (or the reverse), and above all
anything that was executed, written outside the folder, or sent elsewhere. Exit code 1 if something went wrong.
Needs the extra dev, on Linux.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
# Threads do not survive a fork.
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

# Beyond what the process has when an input comes: more than small models need, and less than the bombs ask for.
MEMORY = 6 << 30
# Of CPU time; a process that waits for nothing is ended, too.
SECONDS, STUCK_S = 20, 300.0
_LONGEST = 4000
# What starts a program, by the names of Python's audit events.
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")


@dataclass(frozen=True)
class Attempt:
    """One input: ``read`` gets an empty folder, puts the input there and reads it as a command would.

    ``must``: "refuse" (ValueError with one line), "accept", or "either".
    """

    kind: str
    name: str
    read: Callable[[Path], Any]
    must: str


@dataclass
class Count:
    """What became of the inputs of one kind."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)


def attack(count: Count, attempt: Attempt, folder: Path) -> None:
    """Read one input in a process of its own and note what happened."""
    count.tried += 1
    place = folder / "input"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    outcome = _in_child(attempt, place)
    end, text = outcome["end"], outcome.get("text", "")
    faults = list(outcome.get("did", []))
    if end == "accepted":
        count.accepted += 1
        if attempt.must == "refuse":
            faults.append("accepted")
    elif end == "refused":
        count.refused += 1
        if attempt.must == "accept":
            faults.append(f"refused: {text[:200]}")
        if "\n" in text or not text or len(text) > _LONGEST:
            faults.append(f"not one line: {text[:200]!r}")
    else:
        faults.append(f"{end}: {text[:200]}")
    if (marker := executed(folder)).exists():
        faults.append("EXECUTED")
        marker.unlink()
    count.wrong += [f"{attempt.name}: {fault}" for fault in faults]


def apart(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, as JSON holds it, made in a process of its own: its threads do not live on in this one."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as file:
                json.dump(make(), file)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        made = file.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the inputs could not be made: see above")
    return json.loads(made)


def executed(folder: Path) -> Path:
    """The file that hostile inputs create if they get code to run."""
    return folder / "executed"


def _in_child(attempt: Attempt, place: Path) -> dict[str, Any]:
    """Fork, read, and hear of it through a pipe."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(attempt, place, writer)
    os.close(writer)
    said, until = b"", time.monotonic() + STUCK_S
    try:
        while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            part = os.read(reader, 65536)
            if not part:
                break
            said += part
        else:
            os.kill(pid, signal.SIGKILL)
            return {"end": f"no end within {STUCK_S:.0f} s"}
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    if not said:
        code = os.waitstatus_to_exitcode(status)
        slow = code in (-signal.SIGXCPU, -signal.SIGKILL)
        return {"end": f"more than {SECONDS} s of CPU time" if slow else f"the process ended with {code}"}
    return dict(json.loads(said))


def _child(attempt: Attempt, place: Path, writer: int) -> None:
    """Read under limits and under watch; never returns."""
    outcome: dict[str, Any] = {"end": "nothing"}
    did: list[str] = []
    try:
        faulthandler.disable()
        os.chdir(place)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        _watch(did, place.parent)
        outcome = outcome_of(attempt.read, place)
    except BaseException as error:
        outcome = {"end": type(error).__name__, "text": str(error)}
    finally:
        os.write(writer, json.dumps({**outcome, "did": did[:3]}).encode())
        os._exit(0)


def outcome_of(read: Callable[[Path], Any], place: Path) -> dict[str, Any]:
    """How reading ended: accepted, refused with the line that a command prints, or the name of the error."""
    from qa_train.commands.guard import line_of

    try:
        read(place)
    except Exception as error:
        line = line_of(error)
        if line is None or isinstance(error, UnicodeError):
            return {"end": type(error).__name__, "text": str(error)}
        return {"end": "refused", "text": line}
    return {"end": "accepted"}


def _watch(did: list[str], allowed: Path) -> None:
    """Note in ``did`` what Python starts, writes outside ``allowed`` or connects to, from now on."""
    inside = (str(allowed.resolve()), str(allowed), os.devnull)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS:
            did.append(f"STARTED {arguments!r:.200}")
        elif event == "socket.connect" and _is_elsewhere(arguments[1]):
            did.append(f"CONNECTED to {arguments[1]!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and _writes(arguments[1], arguments[2]):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 (opens nothing)
            if not path.startswith(inside):
                did.append(f"WROTE {path:.200}")

    sys.addaudithook(hook)


def _is_elsewhere(address: Any) -> bool:
    return isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost")


def _writes(mode: Any, flags: Any) -> bool:
    return bool(isinstance(mode, str) and set(mode) & set("wax+")) or bool(
        isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )


def run(kinds: list[str], rounds: int, seed: int, folder: Path) -> dict[str, Count]:
    """Attack with every input of these rooms of scripts.attacks; the counts by kind."""
    from scripts.attacks import KINDS

    counts: dict[str, Count] = {}
    for room in kinds or list(KINDS):
        made = folder / room
        made.mkdir()
        attempts: Iterator[Attempt] = KINDS[room](made, rounds, random.Random(f"{seed} {room}"))
        for attempt in attempts:
            attack(counts.setdefault(attempt.kind, Count()), attempt, made)
    return counts


def main() -> int:
    """Attack, and print one line for each kind."""
    from scripts.attacks import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=60, help="random inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        counts = run(options.kinds, options.rounds, options.seed, Path(folder).resolve())
    print(f"{'kind':<36}{'tried':>7}{'refused':>9}{'accepted':>10}{'wrong':>7}")
    for name, count in counts.items():
        print(f"{name:<36}{count.tried:>7}{count.refused:>9}{count.accepted:>10}{len(count.wrong):>7}")
    wrong = [f"WRONG {name}: {line}" for name, count in counts.items() for line in count.wrong]
    print("\n".join(wrong) if wrong else "nothing was executed, written elsewhere or sent; every refusal was one line")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
