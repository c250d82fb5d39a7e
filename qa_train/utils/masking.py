"""What must not be written down or shown: keys, the queries of signed URLs, passwords in URLs.

Everything that leaves a process in words (logs, errors, files of a run, W&B, pages, cards) goes through `masked`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

MASK = "***"
# A URL up to its query or fragment, and those. Marks of a sentence at the end belong to the sentence.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)([^\s'\"<>?#]*)((?:[?#][^\s'\"<>]*[^\s'\"<>,;:.)\]}])?)")
_SECRET = (
    r"(?:[\w\-]*[_\-])?(?:secret|password|passwd|passphrase|credential|credentials|signature|authorization|"
    r"api[_\-]?key|(?:secret[_\-]|private[_\-])?access[_\-]?key(?:[_\-]id)?|account[_\-]?key|private[_\-]?key|"
    r"(?:auth|access|session|security|refresh|sas|hf|id|api)[_\-]?token|connection[_\-]?string)"
)
_NAMED = re.compile(rf"(?i)\b({_SECRET}[\"']?\s*[=:]\s*(?:bearer\s+|basic\s+)?)([\"']?)[^\s\"',;&}}\]]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w\-.~+/]{8,}=*")
# Keys that are known by their shape: Hugging Face, OpenAI and kin, GitHub, AWS, Google.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w\-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w\-]{30,})"
)
_SECRET_WORDS = set("KEY TOKEN SECRET PASSWORD PASSWD PASSPHRASE CREDENTIAL CREDENTIALS SIGNATURE SAS PAT".split())
_format_warning = warnings.formatwarning
# Shorter values are common words.
_SHORTEST = 8
# Also what changes the direction of a script. Colours are left.
_CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Names inside data.storage.options (those of s3fs, gcsfs, adlfs ...) whose values are shown.
_OPEN = re.compile(r"(?i)^(anon|.*url|region.*|.*region|project|.*host|.*port|use_.*|.*version|requester_pays|.*size)$")
_OPTIONS = re.compile(r"^[+~]*(?:data\.)?storage(?:\.options(?:\..*)?)?$|^[+~]*data$")


def masked(text: object) -> str:
    """The text with every query, user info and key in it replaced by ``***``.

    Keys are recognized by name (``api_key=``, ``Authorization:``), by shape, and as values of environment variables
    with key, token, secret or password in their names.
    """
    found = str(text)
    for value in _secret_values():
        found = found.replace(value, MASK)
    found = _URL.sub(_masked_url, found)
    found = _NAMED.sub(rf"\1\2{MASK}", found)
    found = _BEARER.sub(rf"\1{MASK}", found)
    return _SHAPES.sub(MASK, found)


def shown(text: object) -> str:
    """The text masked, for a terminal or a log, and its control characters but colours, tabs and line ends spelt out: a
    name or a server's answer could erase with them what stands above.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), masked(text))


def masked_values(value: Any) -> Any:
    """A copy of dictionaries and lists with every text in them masked."""
    if isinstance(value, Mapping):
        return {name: masked_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(entry) for entry in value]
    return masked(value) if isinstance(value, str) else value


def masked_words(words: Sequence[str]) -> list[str]:
    """A command line with each word masked, and its data.storage.options."""
    return [_masked_word(word) for word in words]


def masked_options(value: Any) -> Any:
    """A copy of data.storage.options: texts only if they are not keys (addresses, regions ...), or references."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: masked_options(entry)
        if isinstance(entry, Mapping) or not isinstance(entry, str) or _OPEN.match(str(name)) or "${" in entry
        else MASK
        for name, entry in value.items()
    }


def without_query(path: str) -> str:
    """A URL up to its query (a signature, as a rule); a local path is returned unchanged."""
    return path.partition("?")[0] if "://" in path else path


def name_of(path: str) -> str:
    """The file's name, without folders and query."""
    return without_query(path).rpartition("/")[2]


def mask_errors() -> None:
    """From now on warnings, and uncaught errors, are printed masked."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
    warnings.formatwarning = lambda *about, **more: shown(_format_warning(*about, **more))


class MaskingFormatter(logging.Formatter):
    """Formats a record, trace included, and masks the outcome."""

    def format(self, record: logging.LogRecord) -> str:
        """The line to show."""
        return shown(super().format(record))


def _masked_url(match: re.Match[str]) -> str:
    scheme, place, query = match.groups()
    authority, slash, path = place.partition("/")
    _, at, host = authority.rpartition("@")
    return f"{scheme}{MASK + '@' if at else ''}{host}{slash}{path}{query[:1] + MASK if query else ''}"


def _masked_word(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals or not _OPTIONS.match(name) or "${" in value or _plain(value):
        return masked(word)
    # A whole section in braces, or one option of a file system.
    given = "options" in name or "options" in value
    return f"{name}={MASK}" if given and not _OPEN.match(name.rpartition(".")[2]) else masked(word)


def _plain(value: str) -> bool:
    return value.lower() in ("true", "false", "null") or value.replace(".", "").isdigit()


def _secret_values() -> list[str]:
    """The longest first: one may begin another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and set(name.upper().split("_")) & _SECRET_WORDS and not _is_place(name, value)
    }
    return sorted(found, key=len, reverse=True)


def _is_place(name: str, value: str) -> bool:
    """Whether a variable names the file that holds a secret, and not the secret."""
    return name.upper().endswith(("_PATH", "_FILE", "_DIR")) or (value.startswith("/") and Path(value).exists())
