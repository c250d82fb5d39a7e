"""Errors of Hydra and OmegaConf in one line, with the nearest valid key or option.

The errors are recognized by module and text, so that this file imports neither library.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_origin, get_type_hints

import yaml

from qa_train.config.habits import habit
from qa_train.config.places import GROUPS, searched
from qa_train.config.renamed import RENAMED
from qa_train.config.settings.sections import BY_NAME, StageConfig
from qa_train.config.values import in_quotes
from qa_train.utils.closest import closest, did_you_mean

_NO_KEY = re.compile(r"Key '[^']*' (?:is not in struct|not in '|is not in )")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_OVERRIDDEN = re.compile(r"Could not override '[+~]*([^']+)'")
_NO_OPTION = re.compile(r"Could not find '([^']+)/([^'/]+)'")
# Groups for which people give a place instead of a name -> what to write.
_PLACES = {
    "model": "model= names a shape; weights are model.checkpoint=FOLDER_OR_HUB_ID",
    "data": "data= names a mixture; your own shards are data=empty '+data.sources.NAME.shards=[PATHS]' (docs/data.md)",
}
_SEVERAL = re.compile(r"Ambiguous value for argument '([^'=]+)=(.*)'")
_THERE_ALREADY = re.compile(r"An item is already at '([^']+)'")
_MERGED = re.compile(r"Error merging override [+~]*[^=\s]+=(.*)")
_WRONG_KIND = re.compile(r"Value (.+?) (?:of type '\w+' could not be converted to|is not a valid) (\w+)")
_NOT_SET = re.compile(r"Environment variable '([^']+)' not found")
_NO_REFERENCE = re.compile(r"Interpolation key '([^']+)' not found")
# What text editors and web pages make of quotes and of two dashes.
_TYPOGRAPHIC = re.compile("[“”„‘’]|^[–—]")
# key:value, /group=option, group/=option
_SLIP = re.compile(r"/([\w.]+)=(.*)|([\w.]+)[:/]=?([^=]*)")
_QUOTED_KEY = re.compile(r"""["']([\w.-]+)["']\s*:""")
_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def explain(error: BaseException) -> str | None:
    """One line for a person about an error of the configuration libraries; None for any other error."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if not type(error).__module__.startswith(("hydra", "omegaconf")):
        return None
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    text = "\n".join(str(each) for each in chain)
    if found := _NO_OPTION.search(text):
        return _no_option(found[1], found[2], text)
    if found := _SEVERAL.search(text):
        return (
            f"{found[1]} has several values, {found[2]}: qa-train STAGE -m runs one job for each of them; "
            f"a list is written '{found[1]}=[{found[2]}]'"
        )
    if found := _THERE_ALREADY.search(text):
        return f"{found[1]} exists already: write {found[1]}=VALUE, without +"
    key = _FULL_KEY.search(text) or _OVERRIDDEN.search(text)
    if key and (told := _nothing(key[1], text)):
        return told
    if found := _NOT_SET.search(text):
        return f"{key[1] if key else 'a value'} needs the environment variable {found[1]}, which is not set"
    if key and (_NO_KEY.search(text) or "No match in the defaults list" in text):
        # The first names the missing part of the key, the second has the key as written.
        written = _OVERRIDDEN.search(text)
        return _no_key(written[1] if written and written[1].startswith(key[1]) else key[1])
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    if key and "missing mandatory value" in text:
        where = ", the folder where the run lives" if key[1] == "run.dir" else ""
        return f"missing {key[1]}={where}"
    if (override := getattr(error, "override", None)) is not None:
        return _unread(str(override))
    if key and "is not a ListConfig" in text:
        given = _MERGED.search(text)
        return f"{key[1]} is a list: write '{key[1]}=[{given[1] if given else 'VALUE,...'}]'"
    if key and (found := _WRONG_KIND.search(text)):
        return f"{key[1]} is {found[1]}: use {_KINDS.get(found[2], found[2])}"
    if key and (found := _NO_REFERENCE.search(text)):
        return (
            f"{key[1]}: there is no key {found[1]} to refer to; a variable of the environment is ${{oc.env:{found[1]}}}"
        )
    if key and "to string" in text:
        return f"{key[1]} is a text: put one with brackets into quotes, as in " + shlex.quote(f'{key[1]}="[a]"')
    if key and len(chain) > 1:
        # The first line only reports that a value was refused; the cause has the reason.
        words = [f"{key[1]}: {str(chain[-1]).splitlines()[0]}"]
    return " ".join(words[:3])


def _nothing(key: str, text: str) -> str | None:
    """What to write where a key was to be nothing, or a list of entries that have names; None for another error."""
    deleted, null = "does not support deletion" in text, "is not Optional" in text
    if (deleted or null) and key in (*free_sections(), *BY_NAME):
        return how_to_clear(key)
    if deleted:
        return f"~ takes out an entry, such as data.sources.NAME: leave {key} out for its default, or give it a value"
    if null:
        return f"{key} is null: give it a value, or leave it out for its default"
    if "Cannot merge DictConfig with ListConfig" in text:
        return f"{key} is no list, its entries have names: '+{key}.NAME={{KEY: VALUE}}'"
    return None


def _unread(override: str) -> str:
    """What to write where Hydra's grammar ends: quotes inside quotes, one pair for it and one for the shell."""
    name, equals, value = override.partition("=")
    told = f"cannot read {override!r}"
    if _TYPOGRAPHIC.search(override):
        return f"{told}: it has the quotes or the dash of a text editor: write \", ' and -"
    if (slip := _SLIP.fullmatch(override)) and (slip[1] or slip[3]) in (*GROUPS, *valid_keys()):
        return f"{told}: write {slip[1] or slip[3]}={slip[2] or slip[4]}"
    if _QUOTED_KEY.search(value):
        return f"{told}: keys are without quotes: " + shlex.quote(f"{name}={_QUOTED_KEY.sub(chr(92) + '1:', value)}")
    if value.startswith("[") and value.endswith("]"):
        return f"{told}: {in_quotes(name, value)}"
    if value.strip(",") and value.endswith(",") and value[0] not in "{[":
        return f"{told}: it ends with a comma; write {name}={value.rstrip(',')}"
    if equals and value and ":" not in name and value[0] not in "{[" and not {'"', "'"} & {value[0]}:
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
    first, _, folder = group.partition("/")
    if first in _PLACES and (folder or "." in option):
        return f"there is no {first}={f'{folder}/' if folder else ''}{option}: {_PLACES[first]}"
    hint = did_you_mean(option, options, f"{group}={{}}", cutoff=0.4)
    return f"there is no {group}={option}: {hint}there are {', '.join(options) or 'none'}; {searched(group)}"


def _no_key(key: str) -> str:
    if key == "experiment":
        return "the YAML file of an experiment begins with the line '# @package _global_' (and no byte-order mark)"
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    if key.startswith("dpo.gates"):
        return (
            f"there is no key {key}: held-out speech stops every stage now, as evaluation.every=100 "
            "'+evaluation.sets.speech={shards: [PATHS], task: ask_transcript, limit: 32}' "
            "'+evaluation.stop.speech={rise: 1.0, length_ratio: 1.3}' (action: warn continues)"
        )
    for section in BY_NAME:
        name, *option = key.removeprefix(section + ".").split(".")
        # The key is valid but its entry does not exist: the whole entry is missing.
        if key.startswith(section + ".") and (not option or nearest(key) == key):
            entry = "{rise: 1.0}" if section == "evaluation.stop" else "{shards: [PATHS], task: TASK}"
            return f"there is no {section}.{name}; to add it: '+{section}.{name}={entry}'"
    if free := next((each for each in free_sections() if key.startswith(each + ".")), None):
        return f"{free} has no {key.removeprefix(free + '.')} yet; to add it: '+{key}=VALUE'"
    if known := habit(key):
        return f"there is no key {key}: {known}"
    near = nearest(key)
    if near:
        return f"there is no key {key}: did you mean {near}? (--cfg job shows every key)"
    section = key.rpartition(".")[0] + "."
    inside = [each.removeprefix(section) for each in valid_keys() if each.startswith(section)] if section != "." else []
    listed = f"{section[:-1]} has {', '.join(name for name in inside if '.' not in name)} " if inside else ""
    return f"there is no key {key}{': ' if listed else ' '}{listed}(--cfg job shows every key)"


def meant(key: str) -> str | None:
    """What a key without its section is here; None for one that is right, and for one that is no other's."""
    if "." in key or is_setting(key):
        return None
    inside = [each for each in valid_keys() if each.rpartition(".")[2] == key]
    return habit(key) or (f"here it is {min(inside, key=len)}" if inside else None)


def is_setting(key: str) -> bool:
    """Whether a stage has this key, or a section where entries of that name may be."""
    free = tuple(f"{section}." for section in (*BY_NAME, *free_sections()))
    return key == "experiment" or key in valid_keys() or key.startswith(free)


def nearest(key: str) -> str | None:
    """The valid dotted key that ``key`` most probably stands for, or None."""
    known = list(valid_keys())
    for section, kind in BY_NAME.items():
        if key.startswith(section + ".") and key.count(".") > section.count(".") + 1:
            name, _, option = key.removeprefix(section + ".").partition(".")
            near = closest(option, keys_of(kind))
            return f"{section}.{name}.{near}" if near else None
    key = key.lower()
    last = key.rpartition(".")[2]
    # The right word in the wrong section is likelier than a slip in every letter of another key.
    if same := [each for each in known if each.rpartition(".")[2] == last]:
        return closest(key, same, cutoff=0)
    # A section is not a useful suggestion for a key.
    same_depth = [each for each in known if "." in each or "." not in key]
    if near := closest(key, same_depth, cutoff=0.85 if "." in key else 0.7):
        return near
    words = {each.rpartition(".")[2]: each for each in reversed(known)}
    found = closest(last, words, cutoff=0.75)
    return words[found] if found else None


def how_to_clear(section: str) -> str:
    """What to write where a section of free entries is to be emptied, which Hydra does entry by entry."""
    return (
        f"{section} is cleared entry by entry: '~{section}.KEY' takes one out, '+{section}.KEY=VALUE' adds one "
        "(--cfg job shows them)"
    )


@cache
def free_sections() -> tuple[str, ...]:
    """The dotted keys of dictionaries with user-chosen entries, except those of `BY_NAME`."""
    hints: dict[str, Any] = {"": StageConfig}
    for key in valid_keys():
        section, _, name = key.rpartition(".")
        hints[key] = get_type_hints(hints[section])[name]
    return tuple(key for key, hint in hints.items() if get_origin(hint) is dict and key not in BY_NAME)


@cache
def valid_keys() -> tuple[str, ...]:
    """Every dotted key of a stage's configuration, without those of single data sources."""
    return tuple(keys_of(StageConfig))


def keys_of(kind: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a dataclass, sections and what is in them, each with ``prefix`` before it."""
    found = []
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.metadata.get("omegaconf_ignore"):
            continue
        name = prefix + field.name
        found.append(name)
        if is_dataclass(hints[field.name]):
            found += keys_of(hints[field.name], name + ".")
    return found
