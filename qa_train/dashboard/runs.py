"""Reading run folders: metrics, configuration, how a run was started and its progress."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from qa_train.config import STAGES
from qa_train.report.page import read_metrics
from qa_train.utils.masking import masked_values

_DEPTH = 5
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

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it is a number."""
        points = [(float(r["step"]), float(r[key])) for r in self.rows if _is_number(r.get(key))]
        return [x for x, _ in points], [y for _, y in points]

    @cached_property
    def keys(self) -> set[str]:
        """Metrics that the run logged as numbers."""
        return {key for row in self.rows for key, value in row.items() if _is_number(value)}

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by its dotted key."""
        return self.settings.get(key, default)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: dotted key -> value."""
        return {key: value for key, value in _flat(self.config, "") if key not in _TRIVIAL}


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Runs below ``folders`` by stage, oldest first; a folder without a metrics.jsonl is not a run."""
    found: dict[Path, Run] = {}
    for root in folders:
        for path in _metrics(root):
            folder = path.parent
            name = str(folder.relative_to(root)) if folder != root else root.name
            found.setdefault(folder.resolve(), _read(folder, name))
    order = {stage: i for i, stage in enumerate(STAGES)}
    return sorted(found.values(), key=lambda run: (order.get(run.stage, len(order)), run.changed, run.name))


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


def _read(folder: Path, name: str) -> Run:
    # Runs of older versions, and of other people, hold keys.
    config = masked_values(_mapping(folder / "config.yaml"))
    starts = masked_values(_json(folder / "environment.json"))
    return Run(
        name=name,
        folder=folder,
        stage=str(config.get("stage", "other")),
        rows=read_metrics(folder),
        config=config,
        starts=[start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [],
        finished=(folder / "finished.json").is_file(),
        changed=(folder / "metrics.jsonl").stat().st_mtime,
    )


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


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    )
