"""Attack what reads files of others, and count: tried, refused in one line, accepted, and what went wrong.

    python scripts/red_team.py                        every kind
    python scripts/red_team.py --rounds 300 --seed 7  so many random inputs of each kind

Everything happens in a temporary folder and in this process, with a limit on its memory; nothing leaves the machine.
Inputs are those of the tests, one by one, and random ones: bits that are flipped in a checkpoint with its manifest
(each must be refused) and without (a changed weight is a weight, so it may be accepted), and fields of its
configurations that hold something else. Wrong is: an error of another kind than ValueError, more than one line, more
than a few seconds, and above all anything that was executed. Exit code 1 if something went wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# More than the small models need, and less than the bombs ask for.
MEMORY = 6 << 30
SECONDS = 20.0
ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 10**9, 10**18, 1e9, 1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd",
    "os.system", "${oc.env:HOME}", [], [[]], ["x"] * 50, {}, {"a": {"b": 1}}, {"rope_type": "x"},
]  # fmt: skip


@dataclass
class Count:
    """What became of the inputs of one kind."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)


def attack(count: Count, name: str, read: Callable[[], Any], executed: Path, *, must_refuse: bool) -> None:
    """Read one input and note what happened."""
    count.tried += 1
    started = time.perf_counter()
    try:
        read()
        count.accepted += 1
        if must_refuse:
            count.wrong.append(f"{name}: accepted")
    except ValueError as error:
        count.refused += 1
        if "\n" in str(error):
            count.wrong.append(f"{name}: more than one line: {str(error)[:200]!r}")
    except Exception as error:
        count.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    if time.perf_counter() - started > SECONDS:
        count.wrong.append(f"{name}: {time.perf_counter() - started:.0f} s")
    if executed.exists():
        count.wrong.append(f"{name}: EXECUTED")
        executed.unlink()


def listed(whole: Path, adapters: Path) -> Iterator[tuple[str, Path, bool, Callable[[Path], Any]]]:
    """(name, checkpoint, whether its manifest stays, change) of the inputs of the tests."""
    from tests.model import test_loading as tests

    for name, adapted, change in tests.CHANGED:
        yield name, adapters if adapted else whole, True, change
    for name, adapted, change, _ in tests.UNFIT:
        yield name, adapters if adapted else whole, False, change
    for name, changes, _ in tests.CONFIG:
        yield name, whole, False, tests.edit("config.json", **changes)
    for file, changes in tests.BRINGS:
        if (whole / file).is_file():
            yield f"code in {file}", whole, False, tests.edit(file, **changes)
    for changes, _ in tests.ODD:
        yield f"adapters with {changes}", adapters, False, tests.edit("adapter_config.json", **changes)
    for name, found, _ in tests.BASES:
        yield f"a base: {name}", adapters, False, lambda f, g=found: tests.edit("base.json", **g(f))(f)


def flipped(draw: random.Random, folder: Path) -> None:
    """One bit of one of the files that it was saved with."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name not in ("manifest.json", "evil.py")]
    files = [p for p in files if p.stat().st_size]
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def odd_field(draw: random.Random, folder: Path) -> None:
    """One field, at any depth, of one of its JSON files holds something else."""
    names = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json", "base.json",
             "adapter_config.json", "tokenizer.json")  # fmt: skip
    path = draw.choice([folder / name for name in names if (folder / name).is_file()])
    content = json.loads(path.read_text())
    place = content
    while True:
        key = draw.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.2:
            break
        place = place[key]
    place[key] = draw.choice(ODD)
    path.write_text(json.dumps(content))


def models(folder: Path, rounds: int, draw: random.Random) -> dict[str, Count]:
    """Whole checkpoints and adapters."""
    from qa_train.model import load_model
    from tests.model.stored import write_adapters, write_model

    whole, adapters = write_model(folder / "whole"), write_adapters(folder / "adapters")
    executed, copy = folder / "executed", folder / "copy"
    counts = {name: Count() for name in ("listed", "bits, with manifest", "bits, without", "fields, without manifest")}

    def one(kind: str, name: str, source: Path, manifest: bool, change: Callable[[Path], Any], must: bool) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        if not manifest:
            (copy / "manifest.json").unlink()
        (copy / "evil.py").write_text(f"open({str(executed)!r}, 'w')\n")
        change(copy)
        attack(counts[kind], name, lambda: load_model(copy), executed, must_refuse=must)

    for name, source, manifest, change in listed(whole, adapters):
        one("listed", name, source, manifest, change, True)
    for number in range(rounds):
        source = adapters if number % 3 == 0 else whole
        state = draw.getstate()
        for kind, manifest, act in (
            ("bits, with manifest", True, flipped),
            ("bits, without", False, flipped),
            ("fields, without manifest", False, odd_field),
        ):
            # A failure can be made again from its number.
            own = random.Random(f"{state[1][0]} {number} {kind}")
            one(kind, f"{kind} {number}", source, manifest, lambda f, a=act, d=own: a(d, f), manifest)
        draw.random()
    return counts


def states(folder: Path, rounds: int, draw: random.Random) -> dict[str, Count]:
    """The states of a training, as a resume reads them."""
    from qa_train.train.job.states import fault
    from tests.train import test_states as tests

    executed = folder / "executed"
    counts = {name: Count() for name in ("states, listed", "states, bits")}

    def read(checkpoint: Path) -> None:
        if (reason := fault(checkpoint)) is not None:
            raise ValueError(reason)

    for name, zero, forge in tests.FORGED:
        checkpoint = tests.make(folder / f"run-{counts['states, listed'].tried}", 2, zero=zero)
        forge(checkpoint, executed)
        tests.commit(checkpoint, zero)
        attack(counts["states, listed"], name, lambda c=checkpoint: read(c), executed, must_refuse=True)
    original = {zero: tests.make(folder / f"original-{zero}", 2, zero=zero) for zero in (True, False)}
    for number in range(rounds):
        zero = number % 2 == 0
        copy = folder / "states" / "checkpoint-2"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original[zero], copy)
        flipped(draw, copy)
        # The forger's checksums are right.
        tests.commit(copy, zero)
        attack(counts["states, bits"], f"states {number}", lambda c=copy: read(c), executed, must_refuse=False)
    return counts


def main() -> int:
    """Attack, and print one line a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="random inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    draw = random.Random(options.seed)
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder:
        import torch  # noqa: F401 (its address space is not part of what an input may take)

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        counts |= models(Path(folder), options.rounds, draw)
        counts |= states(Path(folder), options.rounds, draw)
    print(f"{'kind':<28}{'tried':>7}{'refused':>9}{'accepted':>10}{'wrong':>7}")
    for name, count in counts.items():
        print(f"{name:<28}{count.tried:>7}{count.refused:>9}{count.accepted:>10}{len(count.wrong):>7}")
    for count in counts.values():
        for line in count.wrong:
            print("WRONG", line)
    return 1 if any(count.wrong for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
