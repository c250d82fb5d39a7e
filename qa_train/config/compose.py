"""How the YAML files become a composed configuration, and that checked dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from qa_train.config.checks.stage_checks import check
from qa_train.config.guide import check_experiment
from qa_train.config.places import config_dir, own_config_dirs, starter_dir
from qa_train.config.references import references, register_environment
from qa_train.config.renamed import with_new_names
from qa_train.config.settings.sections import BY_NAME, StageConfig
from qa_train.utils.safe_yaml import read_yaml


def to_stage_config(raw: Any) -> StageConfig:
    """Turn a composed Hydra config into checked dataclasses.

    Raises:
        ValueError: settings that contradict each other, with what to change.
    """
    for path, kind in BY_NAME.items():
        _fill(raw, path, kind)
    from_environment = references(raw)
    cfg = OmegaConf.to_object(raw)
    if not isinstance(cfg, StageConfig):
        raise ValueError(f"expected a stage config, found {type(cfg).__name__}: compose it from configs/*.yaml")
    cfg.from_environment = from_environment
    _refuse_added(cfg)
    for name, source in cfg.data.sources.items():
        source.name = name
    check(cfg)
    return cfg


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint is in (or is itself), if it is in one."""
    return next(
        (folder for folder in (checkpoint, *checkpoint.parents[:2]) if (folder / "config.yaml").is_file()), None
    )


def read_stored(folder: Path) -> StageConfig:
    """The checked configuration that a run folder holds, of this version's names.

    Raises OSError, ValueError, yaml.YAMLError or an error of OmegaConf if it holds none.
    """
    stored = with_new_names(OmegaConf.create(read_yaml(folder / "config.yaml")))
    return to_stage_config(OmegaConf.merge(OmegaConf.structured(StageConfig), stored))


def _refuse_added(value: Any, path: str = "") -> None:
    """ValueError for a key that "+" added to a typed section: Hydra accepts it, but nothing reads it."""
    if isinstance(value, dict):
        for name, entry in value.items():
            _refuse_added(entry, f"{path}{name}.")
    if not is_dataclass(value):
        return
    known = {field.name for field in fields(value)}
    for name, entry in vars(value).items():
        if name not in known:
            raise ValueError(
                f"there is no key {path}{name}; {path.rstrip('.') or 'the configuration'} has {sorted(known)}"
            )
        _refuse_added(entry, f"{path}{name}.")


def _fill(raw: Any, path: str, kind: type[Any]) -> None:
    """Make every entry of a section by name a ``kind``: an unknown key or a wrong type fails, defaults are filled in.

    Hydra composes these sections as plain dicts, because OmegaConf lets no override add an entry to a typed one.
    """
    entries: Any = OmegaConf.to_container(OmegaConf.select(raw, path) or OmegaConf.create())
    if not entries:
        return
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            keys = ", ".join(field.name for field in fields(kind))
            raise ValueError(f"{path}.{name} is {entry!r}: it takes keys, {path}.{name}.KEY=VALUE ({keys})")
    # Merged at their place in the tree, so that an error names the whole key.
    typed, plain = OmegaConf.create(), OmegaConf.create()
    OmegaConf.update(typed, path, dict.fromkeys(entries, kind))
    OmegaConf.update(plain, path, entries)
    typed.merge_with(plain)
    OmegaConf.update(raw, path, OmegaConf.select(typed, path), merge=False)


class OwnConfigs(SearchPathPlugin):
    """Makes Hydra look into the user's own folders of configurations, after the package's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them to Hydra's list."""
        for folder in own_config_dirs():
            search_path.append("own", f"file://{folder}")


@cache
def register() -> None:
    """Register the dataclasses with Hydra, so that every composed key is checked against them, and `OwnConfigs`.

    Once in a process: describing the dataclasses takes an eighth of the time of composing a stage.
    """
    Plugins.instance().register(OwnConfigs)
    ConfigStore.instance().store(name="stage_schema", node=StageConfig)
    register_environment()
    # ${starter:} in YAML is the folder of the starter data, ${configs:} that of the YAML files.
    OmegaConf.register_new_resolver("configs", lambda: str(config_dir().resolve()), replace=True)
    OmegaConf.register_new_resolver("starter", lambda: str(starter_dir()), replace=True)


def compose_stage(stage: str, overrides: list[str]) -> StageConfig:
    """The checked configuration of a stage, as the command line composes it; ``run.dir`` may be missing.

    Raises ValueError, or an error of Hydra, for words that it refuses.
    """
    from hydra import compose, initialize_config_dir

    register()
    check_experiment(overrides)
    if not any(word.startswith("run.dir=") for word in overrides):
        overrides = [*overrides, "run.dir=unused"]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        return to_stage_config(compose(config_name=stage, overrides=overrides))
