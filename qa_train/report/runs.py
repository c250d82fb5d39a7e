"""Run folders as they are on disk: metrics, configuration, how a run was started and its progress."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from qa_train.config import STAGES
from qa_train.utils.masking import masked_values
from qa_train.utils.safe_yaml import read_yaml

_DEPTH = 5
# Bytes at the beginning and the end of what was read of a file, by which it is known again.
_ENDS = 4096
# Folders of a run, in which no further run lies.
_INSIDE = {"checkpoints", "wandb"}
# Configuration that always differs between two runs and is not informative.
_TRIVIAL = ("run.dir",)


@dataclass(frozen=True)
class Run:
    """One run folder. ``rows``: its metrics, one dictionary for each step; ``starts``: environment.json."""

    name: str
    folder: Path
    stage: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    starts: list[dict[str, Any]]
    finished: bool
    changed: float
    # Where the rows come from: the same for every reading of a folder that goes on from one before.
    steps: Steps

    def grown(self) -> Run:
        """The run with the steps that its metrics.jsonl has by now; the other files are not read again.

        Raises:
            OSError: there is no metrics.jsonl, or it cannot be read.
        """
        return replace(self, rows=self.steps.rows(), changed=_changed(self.folder))

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by its dotted key."""
        return self.settings.get(key, default)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: dotted key -> value."""
        return {key: value for key, value in _flat(self.config, "") if key not in _TRIVIAL}


class Steps:
    """A metrics.jsonl as one row a step; what it has grown by is all that is read of it the next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        # Whole lines that were read, in bytes, and what the first and the last of these bytes were.
        self._end, self._ends = 0, (b"", b"")
        self._found: dict[float, dict[str, Any]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """The rows in order: steps that were trained again after a restart replace the old ones.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        with self._path.open("rb") as file:
            if self._ends != self._ends_of(file):
                self._forget()
            file.seek(self._end)
            for line in file:
                # The last one may go on: it is read again.
                if line.endswith(b"\n"):
                    self._end += len(line)
                if (row := _row(line)) is not None and is_number(row["step"]):
                    # A row without a loss is an evaluation's own.
                    old = None if "loss" in row else self._found.get(row["step"])
                    self._found[row["step"]] = row if old is None else old | row
            self._ends = self._ends_of(file)
        return [self._found[step] for step in sorted(self._found)]

    def _ends_of(self, file: BinaryIO) -> tuple[bytes, bytes]:
        file.seek(0)
        first = file.read(min(_ENDS, self._end))
        file.seek(max(0, self._end - _ENDS))
        return first, file.read(min(_ENDS, self._end))


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of a metrics.jsonl; None if it is damaged."""
    try:
        row = json.loads(line.decode("utf-8", "replace"), object_pairs_hook=_interned)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON: the names of the metrics are kept once, not in every row."""
    return {sys.intern(key): value for key, value in pairs}


def find_runs(folders: Iterable[Path], read: Callable[[Path, str], Run] | None = None) -> list[Run]:
    """Runs below ``folders`` by stage and name; a folder without a metrics.jsonl is not a run.

    A folder that cannot be read, or is deleted meanwhile, is left out.

    read: makes a run of its folder and name, where some are known already; default: `read_run`.
    """
    found: dict[Path, Run] = {}
    for root in folders:
        for path in _metrics(root):
            folder = path.parent
            name = str(folder.relative_to(root)) if folder != root else root.name
            with suppress(OSError):
                if (place := folder.resolve()) not in found:
                    found[place] = (read or read_run)(folder, name)
    order = {stage: i for i, stage in enumerate(STAGES)}
    return _distinct(sorted(found.values(), key=lambda run: (order.get(run.stage, len(order)), run.name)))


def _distinct(runs: list[Run]) -> list[Run]:
    """The same, with a number after names that two folders share: a page tells runs apart by name."""
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        named.append(replace(run, name=f"{run.name} ({seen[run.name]})") if seen[run.name] > 1 else run)
    return named


def differences(runs: list[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all of ``runs``: dotted key -> one value for each run, None where absent."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _metrics(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        here = Path(folder)
        below[:] = sorted(name for name in below if name not in _INSIDE and not name.startswith("."))
        if len(here.relative_to(root).parts) >= _DEPTH:
            below.clear()
        if "metrics.jsonl" in files:
            yield here / "metrics.jsonl"


def read_run(folder: Path, name: str, steps: Steps | None = None) -> Run:
    """One run folder; damaged files leave out what they held.

    steps: its metrics, where they were read before.

    Raises:
        OSError: it has no metrics.jsonl, or one that cannot be read.
    """
    config = _mapping(folder / "config.yaml")
    starts = _json(folder / "environment.json")
    steps = steps or Steps(folder / "metrics.jsonl")
    return Run(
        name=name,
        folder=folder,
        stage=str(config.get("stage", "other")),
        rows=steps.rows(),
        config=config,
        starts=[start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [],
        finished=(folder / "finished.json").is_file(),
        changed=_changed(folder),
        steps=steps,
    )


def _changed(folder: Path) -> float:
    return (folder / "metrics.jsonl").stat().st_mtime


# Runs of older versions, and of other people, hold keys: what is read is masked. That recurses, as parsing does.
def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty if the file is absent or damaged, which must not hide the run."""
    try:
        found = masked_values(read_yaml(path))
    # PyYAML has plain ValueErrors too, of dates and numbers.
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> Any:
    try:
        return masked_values(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def is_number(value: Any) -> bool:
    """A number that a curve can have: finite, and small enough to compute with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
