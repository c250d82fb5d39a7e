"""Values that come from environment variables, and how they are written down: as the reference, never as the value.

``${oc.env:NAME}`` in YAML or on the command line is the way to pass keys, signed URLs and machine-specific paths. A
run's files record where a value came from, and a salted, slow digest of it, so that a resume detects a change.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import Container, DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from qa_train.config.settings.sections import StageConfig
from qa_train.utils.masking import masked_options, masked_values

# Names that the resolver was asked for since `references` emptied it.
_asked: list[str] = []


def register_environment() -> None:
    """Make ``${oc.env:...}`` record what it reads; otherwise it works as OmegaConf defines it."""

    def noted(name: str, *default: Any) -> Any:
        _asked.append(name)
        return oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", noted, replace=True)


def references(raw: Container) -> dict[str, str]:
    """Dotted key -> interpolation, of every value that depends, directly or not, on an environment variable."""
    return dict(_references(raw, ""))


def written(cfg: StageConfig) -> dict[str, Any]:
    """The configuration as stored and logged: references instead of values from the environment, no secrets."""
    found = asdict(cfg)
    for key, text in found.pop("from_environment").items():
        _put(found, key.split("."), text)
    storage = found["data"]["storage"]
    storage["options"] = masked_options(storage["options"])
    return dict(masked_values(found))


def from_references(text: Any) -> Any:
    """The current value of a stored reference; the reference itself if the variable is not set."""
    if not isinstance(text, str) or "${oc.env:" not in text:
        return text
    try:
        return OmegaConf.create({"value": text}).value
    except OmegaConfBaseException:
        return text


def digests(cfg: StageConfig, before: dict[str, str]) -> dict[str, str]:
    """Key -> "salt:digest" (hex) of every value from the environment; with the salts of ``before``, to compare.

    Keys and signatures in a value are ignored: they expire and are renewed without changing the run.
    scrypt (RFC 7914) with 16 MiB: guessing a short value from its digest is slow, and precomputed tables do not help.
    """
    found: dict[str, str] = {}
    values = asdict(cfg)
    for key in cfg.from_environment:
        value: Any = values
        for name in key.split("."):
            value = value[int(name) if isinstance(value, list) else name]
        salt = bytes.fromhex(before[key].partition(":")[0]) if key in before else os.urandom(16)
        digest = hashlib.scrypt(repr(masked_values([value])).encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
        found[key] = ":".join((salt.hex(), digest.hex()))
    return found


def changed(cfg: StageConfig, before: dict[str, str]) -> list[str]:
    """The keys with environment values that changed since ``before`` was written."""
    now = digests(cfg, before)
    return [key for key, value in now.items() if key in before and not hmac.compare_digest(value, before[key])]


def _references(node: Any, path: str) -> Iterator[tuple[str, str]]:
    names: Any = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        child = node._get_node(name)
        key = f"{path}.{name}" if path else str(name)
        if isinstance(child, Node) and child._is_interpolation():
            _asked.clear()
            _ = node[name]
            if _asked:
                yield key, str(child._value())
        elif isinstance(child, Container) and not child._is_none() and not child._is_missing():
            yield from _references(child, key)


def _put(values: Any, names: list[str], text: str) -> None:
    for name in names[:-1]:
        values = values[int(name) if isinstance(values, list) else name]
    values[int(names[-1]) if isinstance(values, list) else names[-1]] = text
