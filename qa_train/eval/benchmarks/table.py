"""Benchmarks as a table: YAML in ``configs/benchmarks``.

A file holds ``benchmarks: {name: entry}``, and optionally ``suite`` (a name for all of them) and
``defaults`` (keys of every entry). A user's own file has the same form; its paths are relative to
its folder. The keys of an entry are the fields of ``Benchmark``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from qa_train.config import config_dir
from qa_train.eval.benchmarks.benchmark import Benchmark, from_dict
from qa_train.eval.benchmarks.layouts import READERS, SHUFFLED
from qa_train.utils.closest import did_you_mean
from qa_train.utils.safe_yaml import read_yaml


def benchmarks_dir() -> Path:
    """The folder of the built-in tables."""
    return config_dir() / "benchmarks"


def read_table(path: Path) -> list[Benchmark]:
    """All benchmarks of one YAML file; paths of a user's file become absolute.

    Raises:
        ValueError: no such file, not YAML of the expected form, or a wrong entry, naming file and entry.
    """
    if not path.is_file():
        raise ValueError(f"no benchmark file {path}")
    try:
        table = read_yaml(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("benchmarks"), dict) or not table["benchmarks"]:
        raise ValueError(f"{path}: expected a mapping with benchmarks: {{name: {{reader, path, metric, ...}}}}")
    stray = sorted(table.keys() - {"benchmarks", "defaults", "suite"})
    if stray:
        raise ValueError(f"{path}: unknown keys {stray}; a file holds benchmarks, defaults and suite")
    common = {"suite": table.get("suite") or path.stem} | (table.get("defaults") or {})
    own = path.resolve().parent != benchmarks_dir().resolve()
    found = []
    for name, entry in table["benchmarks"].items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, {name}: expected a mapping, found {type(entry).__name__}")
        values = common | {"name": str(name), "title": str(name)} | entry
        if own and isinstance(values.get("path"), str):
            values["path"] = str(path.resolve().parent / values["path"])
        if own and isinstance(values.get("tables"), str):
            values["tables"] = str(path.resolve().parent / values["tables"])
        try:
            found.append(_readable(from_dict(values)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def _readable(entry: Benchmark) -> Benchmark:
    if entry.reader not in READERS:
        problem = f"reader {entry.reader!r} is unknown: use one of {', '.join(READERS)}"
    elif entry.shuffle_options is not None and entry.reader not in SHUFFLED:
        problem = f"shuffle_options has no effect on reader {entry.reader!r}: it is for {', '.join(SHUFFLED)}"
    else:
        return entry
    raise ValueError(f"benchmark {entry.name!r}: {problem}")


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by name, by suite (all of a table), or by a YAML file of one's own.

    Raises:
        ValueError: an unknown name, with those that exist, or two benchmarks of one name.
    """
    tables = [entry for path in sorted(benchmarks_dir().glob("*.yaml")) for entry in read_table(path)]
    found: list[Benchmark] = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            found += read_table(Path(name))
            continue
        matching = [entry for entry in tables if name in (entry.name, entry.suite)]
        if not matching:
            suites = sorted({entry.suite for entry in tables})
            known = [entry.name for entry in tables]
            raise ValueError(
                f"no benchmark {name!r}; {did_you_mean(name, [*known, *suites])}suites are {', '.join(suites)}; "
                f"benchmarks are {', '.join(known)}; or give a YAML file of your own"
            )
        found += matching
    names_found = [entry.name for entry in found]
    twice = sorted({name for name in names_found if names_found.count(name) > 1})
    if twice:
        raise ValueError(f"benchmarks named twice: {', '.join(twice)}")
    return found
