"""What the YAML files offer: groups, options and experiments, for help, completion and error messages."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from qa_train.config.nearest import free_sections, how_to_clear, valid_keys
from qa_train.config.places import GROUPS, config_dir, option_files, searched
from qa_train.utils.closest import did_you_mean


def about_stage(stage: str) -> str:
    """The first sentence of the stage's YAML file."""
    return _comment(config_dir() / f"{stage}.yaml").partition(". qa-train")[0] + "."


def chosen(stage: str) -> dict[str, str]:
    """The option of each group that a stage takes by default."""
    entries = yaml.safe_load((config_dir() / f"{stage}.yaml").read_text())["defaults"]
    return {name: option for each in entries if isinstance(each, dict) for name, option in each.items()}


def group_options(group: str) -> list[tuple[str, str]]:
    """(name, what its file opens with) of the options of a group."""
    return [(path.stem, _gist(_comment(path))) for path in option_files(group)]


def experiments(stage: str) -> list[tuple[str, str]]:
    """(name, hardware) of the experiments of a stage."""
    facts = {path.stem: _facts(path) for path in option_files("experiment")}
    runs = re.compile(rf"(?:qa-train|qa_train) (?:\w+\|)*{stage}\b")
    # One's own may have no header: they are of any stage.
    mine = [name for name, each in facts.items() if runs.search(each.get("Command", f"qa-train {stage}"))]
    return [(name, facts[name].get("Hardware", "")) for name in mine]


def check_experiment(words: list[str]) -> None:
    """ValueError for arguments that Hydra accepts but does not act on as one would think.

    These are an unknown ``experiment=`` (the group is optional), an option that two folders have, and
    a dictionary set to {}, which Hydra merges.
    """
    for word in words:
        name, equals, value = word.partition("=")
        if equals and value.replace(" ", "") == "{}" and name.lstrip("+") in free_sections():
            raise ValueError(f"{word} would clear nothing: {how_to_clear(name.lstrip('+'))}")
    if any(word.startswith(("--config-path", "-cp")) for word in words):
        return
    for group in GROUPS:
        names: dict[str, Path] = {}
        for path in option_files(group):
            if path.stem in names:
                raise ValueError(f"{group}={path.stem} is in {names[path.stem]} and {path}: rename one of them")
            names[path.stem] = path
    for word in words:
        name, _, value = word.lstrip("+").partition("=")
        known = [path.stem for path in option_files(name)] if name in GROUPS else []
        for each in value.split(",") if known else []:
            # Hydra refuses the unknown options of the other groups, but for null.
            if each not in known and (name == "experiment" or each == "null"):
                # The path of a file is its name with more around it.
                hint = did_you_mean(Path(each.strip("[]")).stem, known, f"{name}={{}}")
                told = f"there is no {name}={each}" if each else f"{word} lacks a name"
                raise ValueError(f"{told}: {hint}there are {', '.join(known)}; {searched(name)}")


def complete_setting(word: str) -> list[str]:
    """Completions of one word of a training stage: ``group=option`` and ``key=``."""
    name, mark, value = word.partition("=")
    if mark:
        return [f"{name}={p.stem}" for p in option_files(name) if p.stem.startswith(value)] if name in GROUPS else []
    return [f"{key}=" for key in sorted({*GROUPS, *valid_keys(), "plugins"}) if key.startswith(word)]


def _comment(path: Path) -> str:
    """The comment that a YAML file opens with, on one line."""
    words = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#") or line.startswith("# @"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def _gist(text: str, most: int = 200) -> str:
    """The first sentences of a text: as many as there is room for, and one at least."""
    first, *others = re.split(r"(?<=[.]) (?=[A-Z(])", text)
    for sentence in others:
        if len(first) + 1 + len(sentence) > most:
            break
        first += f" {sentence}"
    return first


def _facts(path: Path) -> dict[str, str]:
    """Command, Hardware, Time and Expected from an experiment's header."""
    found = re.findall(r"^# (\w+): +(.*)$", path.read_text(), flags=re.MULTILINE)
    # Of two lines of one name the first counts.
    return dict(reversed(found))
