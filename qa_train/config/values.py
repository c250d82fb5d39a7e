"""The values of the commands' ``key=value`` words. A text is taken as it was typed; YAML is for what is none."""

from __future__ import annotations

import re
import shlex
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import yaml

# 1_000, 1e-5, .5, inf; not 01, which may name something, nor 12:30, which YAML takes for a number.
_NUMBER = re.compile(r"[+-]?(?:(?:(?:0|[1-9]\d*(?:_\d+)*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|\.?inf|\.?nan)", re.IGNORECASE)
_WORDS = {"true": True, "false": False, "null": None, "": None}


class _Loader(yaml.SafeLoader):
    """YAML's lists and objects; of its words only those of `_scalar` are no texts: no is Norwegian."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "!scalar", re.compile(rf"(?:true|false|null||{_NUMBER.pattern})$", re.IGNORECASE), None
)
_Loader.add_constructor("!scalar", lambda loader, node: _scalar(str(node.value)))


def read_value(kind: Any, key: str, text: str) -> Any:
    """The value of ``key`` of a dataclass, as it was typed: quotes around it are removed, an empty word is null.

    Of OmegaConf's references only those to its own resolvers, such as ``${oc.env:HOME}``, are followed. Raises
    ValueError for a list or an object that YAML cannot read.
    """
    # Not of '"yes" or "no"'.
    if len(text) > 1 and text[0] in "'\"" and text.find(text[0], 1) == len(text) - 1:
        return _literal(text[1:-1])
    if _is_text(kind, key):
        return None if text in ("", "null") else _literal(text)
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return _scalar(text)
    try:
        return _literal(yaml.load(text, _Loader))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"cannot read {key}={text}: {in_quotes(key, text)}") from error


def _literal(value: Any) -> Any:
    """The value with every other reference in its texts as text."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return re.sub(r"(?<!\\)\$\{(?!oc\.)", r"\\${", value) if isinstance(value, str) else value


def in_quotes(key: str, text: str) -> str:
    """What to write for a list or an object that has a character with a meaning, such as a brace in a path."""
    if text[0] != "[" or re.search(r"""["'\[]|\{[^}]*,""", text[1:]):
        return "put texts into quotes"
    items = ",".join(f'"{item.strip()}"' for item in text[1:-1].split(","))
    return "put the texts into quotes: " + shlex.quote(f"{key}=[{items}]")


def _is_text(kind: Any, key: str) -> bool:
    """Whether the key holds nothing but a text, or null."""
    for name in key.split("."):
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(name)
        else:
            kind = get_args(kind)[-1] if get_origin(kind) is dict else None
    return kind is str or (str in get_args(kind) and {*get_args(kind)} == {str, type(None)})


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if not _NUMBER.fullmatch(text):
        return text
    try:
        return int(text)
    except ValueError:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
