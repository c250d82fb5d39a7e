"""Run folders as they are on disk: metrics, configuration, how a run was started and its progress."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from qa_train.config import STAGES
from qa_train.utils.masking import masked_values

_DEPTH = 5
# Folders of a run, in which no further run lies.
_INSIDE = {"checkpoints", "wandb"}
# Configuration that always differs between two runs and is not informative.
_TRIVIAL = ("run.dir",)


# Equal is only the same reading of a folder: what follows from it is computed once.
@dataclass(frozen=True, eq=False)
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

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it is a number."""
        points = [(float(r["step"]), float(r[key])) for r in self.rows if is_number(r.get(key))]
        return [x for x, _ in points], [y for _, y in points]

    @cached_property
    def keys(self) -> set[str]:
        """Metrics that the run logged as numbers."""
        return {key for row in self.rows for key, value in row.items() if is_number(value)}

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by its dotted key."""
        return self.settings.get(key, default)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: dotted key -> value."""
        return {key: value for key, value in _flat(self.config, "") if key not in _TRIVIAL}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line truncated by a kill is skipped."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def find_runs(folders: Iterable[Path], read: Callable[[Path, str], Run] | None = None) -> list[Run]:
    """Runs below ``folders`` by stage and name; a folder without a metrics.jsonl is not a run.

    read: makes a run of its folder and name, where some are known already; default: `read_run`.
    """
    found: dict[Path, Run] = {}
    for root in folders:
        for path in _metrics(root):
            folder = path.parent
            name = str(folder.relative_to(root)) if folder != root else root.name
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


def read_run(folder: Path, name: str) -> Run:
    """One run folder; damaged files leave out what they held."""
    # Runs of older versions, and of other people, hold keys.
    config = masked_values(_mapping(folder / "config.yaml"))
    starts = masked_values(_json(folder / "environment.json"))
    return Run(
        name=name,
        folder=folder,
        stage=str(config.get("stage", "other")),
        rows=_by_step(read_metrics(folder)),
        config=config,
        starts=[start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [],
        finished=(folder / "finished.json").is_file(),
        changed=(folder / "metrics.jsonl").stat().st_mtime,
    )


def _by_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a step, in order: steps that were trained again after a restart replace the old ones."""
    found: dict[float, dict[str, Any]] = {}
    for row in rows:
        if not is_number(row["step"]):
            continue
        # A row without a loss is an evaluation's own.
        kept = {} if "loss" in row else found.get(row["step"], {})
        found[row["step"]] = kept | row
    return [found[step] for step in sorted(found)]


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty if the file is absent or damaged, which must not hide the run."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
