"""YAML that somebody else may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES, _MOST_VALUES = 8 << 20, 200_000


def read_yaml(path: Path, kind: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The values of a file, as plain types; ``kind``: a loader with rules of its own.

    A few aliases of aliases stand for billions of values (``a: &a [x, x]``, ``b: &b [*a, *a]`` ...), which hang whoever
    looks at each of them. They are counted first, each alias as all that it stands for.

    Raises:
        ValueError: the file is no text, too large, or stands for too many values, or for endless ones.
        yaml.YAMLError: it is no YAML.
    """
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size / 2**20:.0f} MiB: at most {_MOST_BYTES >> 20} MiB of YAML are read")
    try:
        loader = kind(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (values := _values(node, {})) > _MOST_VALUES:
            raise ValueError(f"{path} stands for {values:.3g} values, by aliases: at most {_MOST_VALUES:,} are read")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply, or an alias in it refers to itself") from error
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. RecursionError: it holds itself."""
    if id(node) not in known:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_values(each, known) for each in below)
    return known[id(node)]
