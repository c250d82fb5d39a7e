"""What Hydra and OmegaConf refuse, said in one line with the nearest valid key or option.

The errors are told apart by their module and text, so that this file needs neither library.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from qa_train.config.renamed import RENAMED
from qa_train.config.sections import BY_NAME, StageConfig

_NO_KEY = re.compile(r"Key '[^']*' (?:is not in struct|not in '|is not in )")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_OVERRIDDEN = re.compile(r"Could not override '[+~]*([^']+)'")
_NO_OPTION = re.compile(r"Could not find '([^']+)/([^'/]+)'")


def explain(error: BaseException) -> str | None:
    """One line for a person about an error of the configuration libraries; None for any other error."""
    if not type(error).__module__.startswith(("hydra", "omegaconf")):
        return None
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    text = "\n".join(str(each) for each in chain)
    if found := _NO_OPTION.search(text):
        return _no_option(found[1], found[2], text)
    key = _FULL_KEY.search(text) or _OVERRIDDEN.search(text)
    if key and (_NO_KEY.search(text) or "No match in the defaults list" in text):
        return _no_key(key[1])
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    if key and "missing mandatory value" in text:
        where = ", the folder where the run lives" if key[1] == "run.dir" else ""
        return f"missing {key[1]}={where}"
    if (override := getattr(error, "override", None)) is not None:
        return _unread(str(override), words[0])
    if key and (found := re.search(r"Value .* could not be converted to \w+", text)):
        return f"{key[1]}: {found[0]}"
    if key and len(chain) > 1:
        # The first line of a refused value says that it was refused; the cause says why.
        words = [f"{key[1]}: {str(chain[-1]).splitlines()[0]}"]
    return " ".join(words[:3])


def _unread(override: str, why: str) -> str:
    """What to write where Hydra's grammar ends: quotes inside quotes, one pair for it and one for the shell."""
    name, equals, value = override.partition("=")
    told = f"cannot read {override!r} ({why})"
    if equals and value and value[0] not in "{[" and not {'"', "'"} & {value[0]}:
        # Backslashes mean something before a quote only.
        quoted = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + (found[2] and '\\"'), value)
        return f"{told}: put the value into quotes: " + shlex.quote(name + f'="{quoted}"')
    urls = """, and a URL, too: 'key=["https://..."]'""" if "://" in value else ""
    return (
        f"{told}: a setting is key=value without spaces; close every bracket, and put a word with brackets into "
        f"quotes: 'key={{a: [b, c]}}'{urls}"
    )


def _no_option(group: str, option: str, text: str) -> str:
    options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
    near = get_close_matches(option, options, n=1, cutoff=0.4)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"there is no {group}={option}: {hint}there are {', '.join(options) or 'none'}"


def _no_key(key: str) -> str:
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    for section in BY_NAME:
        name = key.removeprefix(section + ".")
        if name != key and "." not in name:
            return f"there is no {key}; to add it: '+{key}={{shards: [PATHS], task: TASK}}'"
    near = nearest(key)
    if near:
        return f"there is no key {key}: did you mean {near}? (--cfg job shows every key)"
    section = key.rpartition(".")[0] + "."
    inside = [each.removeprefix(section) for each in valid_keys() if each.startswith(section)] if section != "." else []
    listed = f"{section[:-1]} has {', '.join(name for name in inside if '.' not in name)} " if inside else ""
    return f"there is no key {key}: {listed}(--cfg job shows every key)"


def nearest(key: str) -> str | None:
    """The valid dotted key that ``key`` most probably stands for, or None."""
    known = list(valid_keys())
    for section, kind in BY_NAME.items():
        if key.startswith(section + ".") and key.count(".") > section.count(".") + 1:
            name, _, option = key.removeprefix(section + ".").partition(".")
            near = get_close_matches(option, _keys(kind, ""), n=1)
            return f"{section}.{name}.{near[0]}" if near else None
    last = key.rpartition(".")[2]
    # The right word in the wrong section is likelier than a slip in every letter of another key.
    if same := [each for each in known if each.rpartition(".")[2] == last]:
        return get_close_matches(key, same, n=1, cutoff=0)[0]
    # A whole section is no answer to a key inside one.
    same_depth = [each for each in known if "." in each or "." not in key]
    if near := get_close_matches(key, same_depth, n=1, cutoff=0.85 if "." in key else 0.7):
        return near[0]
    words = {each.rpartition(".")[2]: each for each in reversed(known)}
    found = get_close_matches(last, list(words), n=1, cutoff=0.7)
    return words[found[0]] if found else None


@cache
def valid_keys() -> tuple[str, ...]:
    """Every dotted key of a stage's configuration, without those of single data sources."""
    return tuple(_keys(StageConfig, ""))


def _keys(kind: Any, prefix: str) -> list[str]:
    found = []
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.metadata.get("omegaconf_ignore"):
            continue
        name = prefix + field.name
        found.append(name)
        if is_dataclass(hints[field.name]):
            found += _keys(hints[field.name], name + ".")
    return found
