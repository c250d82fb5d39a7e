"""The JSON member of a record: strict reading, and the fields that prompts and targets are built from.

Fields with a meaning (all optional; others are free and are kept):

- speech: ``text``, ``language`` (code), ``dialect``, ``translation`` {code: text},
  ``words`` [{word, start, end}], ``segments`` [{text, start, end}], ``turns`` [{speaker, start, end, text}],
  ``speaker``, ``num_speakers``, ``gender``, ``age``, ``emotion``, ``vocal_sound``, ``intent``, ``slots`` {name: value},
  ``entities`` [{type, value}], ``keywords`` [text]
- sound and music: ``caption``, ``label``, ``labels`` [text], ``events`` [{label, start, end}], ``scene``,
  ``question``, ``answer``, ``genre``, ``instrument``, ``note``, ``pitch``, ``velocity``, ``mood``, ``singer``
- chats: ``messages`` [{role, content}], ``audios`` [member], ``chosen``, ``rejected``

Times are seconds from the start of the clip.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any

LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "yue": "Cantonese",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ru": "Russian",
    "de": "German",
    "ja": "Japanese",
    "ko": "Korean",
    "cs": "Czech",
    "nl": "Dutch",
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "ca": "Catalan",
    "da": "Danish",
    "el": "Greek",
    "fa": "Persian",
    "fi": "Finnish",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mn": "Mongolian",
    "ms": "Malay",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "vi": "Vietnamese",
}
# Their English names in lower case, and other names of some of them.
LANGUAGE_CODES = {name.lower(): code for code, name in LANGUAGES.items()} | {"mandarin": "zh"}
_LOCALES = {"cmn": "zh", "zh-hk": "yue", "zh_hk": "yue", "nan-tw": "nan", "iw": "he", "nb": "no", "nn-no": "no"}
MAX_JSON_BYTES = 1 << 20
MAX_JSON_DEPTH = 16
MAX_TEXT_CHARACTERS = 200_000
_TEXT_FIELDS = (
    "text",
    "language",
    "dialect",
    "label",
    "caption",
    "split",
    "speaker",
    "source",
    "license",
    "task",
    "gender",
    "intent",
    "vocal_sound",
    "scene",
    "question",
    "answer",
)
# Names that are often numbers.
_NAMES = ("speaker", "label")
# One text, or several: a piece has more than one mood.
_TEXTS_FIELDS = ("genre", "instrument", "mood", "singer", "emotion", "note")
_NUMBER_FIELDS = ("age", "pitch", "velocity", "num_speakers")
# Lists of objects: the texts that each item must have, and whether it has a start and an end.
_LIST_FIELDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "words": (("word",), True),
    "turns": (("speaker",), True),
    "events": (("label",), True),
    "entities": (("type", "value"), False),
}
_NOTHING = type(None)
_ANY: tuple[tuple[type, ...], str] = ((), "")
# Types of fields that are one value, and how to call them.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(_TEXT_FIELDS, ((str, _NOTHING), "text")),
    **dict.fromkeys(("chosen", "rejected"), ((str,), "text")),
    **dict.fromkeys(_NUMBER_FIELDS, ((int, float, str, _NOTHING), "a number or text")),
    **dict.fromkeys(_TEXTS_FIELDS, ((str, list, _NOTHING), "text or a list of texts")),
}
# Fields that this library reads or writes: others are kept, and only read by user prompts.
KNOWN_FIELDS = frozenset(
    (*_TEXT_FIELDS, *_TEXTS_FIELDS, *_NUMBER_FIELDS, *_LIST_FIELDS, "labels", "keywords", "translation", "slots",
     "segments", "messages", "audios", "chosen", "rejected", "family", "subset", "answers", "choices", "id", "key")
)  # fmt: skip
_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# A clip with such a label may contain speech although it has no transcript, so it gets no question about speech. Better
# too many words than too few. Singing, screams and beatboxing are not speech.
_OF_SPEECH = re.compile(
    r"\b(?:speech|speak\w*|spoke\w*|talk\w*|says?|saying|said|narrat\w*|convers\w*|announc\w*|whisper\w*|murmur\w*|"
    r"mutter\w*|yell\w*|shout\w*|chat(?:s|ting|ter\w*)?|reads?|reading|recit\w*|preach\w*|pray\w*|lectur\w*|comment\w*|"
    r"interview\w*|dialog\w*|discuss\w*|debat\w*|argu(?:e|es|ed|ing|ments?)|tell(?:s|ing)?|told|ask(?:s|ed|ing)?|"
    r"repl(?:y|ies|ied|ying)|answer\w*|explain\w*|greet\w*|call(?:s|ed|ing)? out|rap(?:s|ping|pers?)?|chant\w*|radio|"
    r"television|tv|broadcast\w*|news|(?<!singing )voices?(?! that (?:beatbox|sing|hum|whistl)))\b"
    r"|[说话話语語讲講喊]|讨论|討論|对话|對話|朗读|朗讀|聊天",
    re.IGNORECASE,
)
# One character each: scripts written without spaces between words.
_UNSPACED = ("zh", "yue", "ja")


class BadRecord(ValueError):
    """A record that cannot be used; the message has the details, ``reason`` two words for the counts."""

    def __init__(self, message: str, reason: str = "bad record") -> None:
        super().__init__(message)
        self.reason = reason


def parse_record(raw: bytes) -> dict[str, Any]:
    """Read a record's JSON strictly: UTF-8, one object, no NaN, no repeated keys, known field types.

    A speaker or label that is a whole number becomes a text.
    """
    record = with_texts(parse_object(raw, MAX_JSON_BYTES))
    check_text(record)
    check_record(record)
    return record


def stored_record(meta: str) -> dict[str, Any]:
    """The record that an index holds, of which anybody may be the author: checked as those of shards are.

    Raises BadRecord.
    """
    try:
        record = _STORED.decode(meta)
    except BadRecord:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"expected a JSON object, found {type(record).__name__}")
    # A plan reads each record once an epoch, and most are short, shallow and without escapes of NUL or surrogates.
    plain = "\\u" not in meta and len(meta) <= MAX_TEXT_CHARACTERS
    if not plain or meta.count("{") + meta.count("[") > MAX_JSON_DEPTH:
        check_text(record)
    check_record(record)
    return record


def parse_object(raw: bytes, limit: int) -> dict[str, Any]:
    """One JSON object of at most ``limit`` bytes, before its fields are checked; BadRecord if it is not one."""
    record = parse_value(raw, limit)
    if not isinstance(record, dict):
        raise BadRecord(f"expected a JSON object, found {type(record).__name__}")
    return record


def parse_value(raw: bytes, limit: int) -> Any:
    """The value of at most ``limit`` bytes of JSON; BadRecord if they are not."""
    if len(raw) > limit:
        raise BadRecord(f"{len(raw)} bytes of JSON; at most {limit} are accepted")
    return parse_json(decode_text(raw, "the JSON"))


def parse_json(text: str) -> Any:
    """The value of a JSON text; BadRecord for what is not JSON, NaN, repeated keys and too many levels."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise BadRecord("JSON nested too deeply") from error
    except BadRecord:
        raise
    # Besides JSONDecodeError, a number of thousands of digits is a ValueError.
    except ValueError as error:
        raise BadRecord(f"not JSON: {error}") from error


def number_text(number: float) -> str:
    """A finite number as a text: whole numbers of a column in which some are missing come as floats."""
    return str(int(number) if number == int(number) else number)


def with_texts(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its speaker and label as texts, if they are numbers."""
    # Not isinstance: true and false are not numbers here.
    numbers = [name for name in _NAMES if type(record.get(name)) is int]
    return record | {name: str(record[name]) for name in numbers} if numbers else record


def decode_text(raw: bytes, what: str) -> str:
    """A text file of any common tool: UTF-8, or the encoding of its byte-order mark, without the mark and carriage
    returns. Raises BadRecord for other encodings.
    """
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(
            f"{what} is not UTF-8 at byte {error.start}: convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n")


def unquoted(cell: str) -> str:
    """A cell as it was before a writer of CSV enclosed it: ``"the ""inner"" one"`` becomes ``the "inner" one``.

    For tables that are split at their tabs, whose quotation marks are letters unless they are doubled like that:
    ``"a quotation"`` stays as it is.
    """
    inner = cell[1:-1]
    enclosed = cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if enclosed else cell


# Fields whose parts are looked at; most records have none, and a plan reads millions.
_STRUCTURED = frozenset(
    {"chosen", "rejected", "labels", "audios", "keywords", "translation", "slots", "messages", *_LIST_FIELDS}
)


def check_record(record: dict[str, Any]) -> None:
    """Check the types of the fields that this library reads; other fields are free."""
    for name in record:
        kinds, expected = _TYPES.get(name, _ANY)
        # Not isinstance: true is not a number.
        if kinds and type(record[name]) not in kinds:
            raise BadRecord(f"{name!r} must be {expected}, found {type(record[name]).__name__}")
        if name in _TEXTS_FIELDS and isinstance(record[name], list) and not _is_texts(record[name]):
            raise BadRecord(f"{name!r} must be text or a list of texts")
    if record.keys().isdisjoint(_STRUCTURED):
        return
    if ("chosen" in record) != ("rejected" in record):
        raise BadRecord("a preference pair needs both 'chosen' and 'rejected'")
    if same_answers(record):
        raise BadRecord("chosen and rejected are the same answer: no preference", "identical pair")
    for name in ("labels", "audios", "keywords"):
        if name in record and not _is_texts(record[name]) and not is_empty(record[name]):
            raise BadRecord(f"{name!r} must be a list of texts")
    for name, what in (("translation", "language codes to texts"), ("slots", "names to texts")):
        mapping = record.get(name)
        if not (isinstance(mapping, dict) and _is_texts(list(mapping.values()))) and not is_empty(mapping):
            raise BadRecord(f"{name!r} must map {what}")
    for name, (texts, timed) in _LIST_FIELDS.items():
        if name in record and not is_empty(record[name]):
            _check_items(name, record[name], texts, timed)
    _check_messages(record.get("messages"))


def language_code(name: str) -> str:
    """A locale, the name of a configuration or an English name as the short code of this library.

    "zh-CN", "cmn_hans_cn" -> "zh"; "zh-HK", "yue_hant_hk" -> "yue"; "pt_br" -> "pt"; "English" -> "en".
    """
    low = name.strip().lower()
    first = re.split(r"[-_]", low)[0]
    return _LOCALES.get(low) or LANGUAGE_CODES.get(low) or _LOCALES.get(first) or first


def same_answers(record: dict[str, Any]) -> bool:
    """Whether the record is a preference pair whose two answers are identical, except for surrounding spaces."""
    return "chosen" in record and str(record["chosen"]).strip() == str(record["rejected"]).strip()


def check_text(value: Any) -> None:
    """Refuse what JSON can spell but text cannot hold: deep nesting, lone surrogates, NUL, endless texts, infinity."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_JSON_DEPTH:
            raise BadRecord(f"JSON nested deeper than {MAX_JSON_DEPTH} levels")
        if isinstance(item, dict):
            stack += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            stack += [(part, depth + 1) for part in item]
        elif isinstance(item, float) and not math.isfinite(item):
            raise BadRecord("a number beyond the range of a double")
        elif isinstance(item, str):
            if len(item) > MAX_TEXT_CHARACTERS:
                raise BadRecord(f"a text of {len(item)} characters; at most {MAX_TEXT_CHARACTERS} are accepted")
            if "\0" in item or not (item.isascii() or _encodes(item)):
                raise BadRecord("a text holds NUL or half a surrogate pair: not Unicode text")


def fields(record: dict[str, Any]) -> dict[str, Any]:
    """The record plus derived fields, for format strings; without empty fields, and ``segments`` of another form.

    Adds ``language_name`` (English name of a known code), ``num_words``, ``first_word``,
    ``last_word``, ``has_speech`` ("Yes" with a transcript, "No" with only a label or caption that mentions no speech),
    ``labels_text`` (joined labels), ``num_speakers`` (of the turns), ``pitch_name`` (of a MIDI pitch; 60 is C4).
    """
    out = {name: value for name, value in record.items() if not is_empty(value)}
    language = out.get("language")
    if language in LANGUAGES:
        out["language_name"] = LANGUAGES[language]
    text = out.get("text")
    words = _WORD.findall(text) if text else []
    if words and language not in _UNSPACED:
        out |= {"num_words": str(len(words)), "first_word": words[0].lower(), "last_word": words[-1].lower()}
    if text:
        out["has_speech"] = "Yes"
    elif ("label" in out or "caption" in out) and not _OF_SPEECH.search(f"{out.get('label')}. {out.get('caption')}"):
        out["has_speech"] = "No"
    if "labels" in out:
        out["labels_text"] = ", ".join(out["labels"])
    if "segments" in out:
        try:
            _check_items("segments", out["segments"], ("text",), timed=True)
        except BadRecord:
            # A common name: records may hold something else by it, which is no fault.
            del out["segments"]
    if "turns" in out:
        out.setdefault("num_speakers", len({turn["speaker"] for turn in out["turns"]}))
    if str(out.get("pitch", "")).isdecimal():
        octave, step = divmod(int(out["pitch"]), len(_NOTES))
        out["pitch_name"] = f"{_NOTES[step]}{octave - 1}"
    return out


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing, whatever its type; 0 and false are something."""
    return value in (None, "", [], {})


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) for v in values)


def _check_items(name: str, items: Any, texts: tuple[str, ...], timed: bool) -> None:
    needed = [*texts, "start", "end"] if timed else list(texts)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadRecord(f"{name!r} must be a list of objects with {needed}")
    for number, item in enumerate(items):
        optional = item.get("text", "") if name == "turns" else ""
        if not all(isinstance(item.get(text), str) for text in texts) or not isinstance(optional, str | None):
            raise BadRecord(f"{name!r}, item {number}: expected texts {list(texts)}")
        if not timed:
            continue
        start, end = item.get("start"), item.get("end")
        if not all(isinstance(t, int | float) and not isinstance(t, bool) for t in (start, end)):
            raise BadRecord(f"{name!r}, item {number}: expected start and end in seconds")
        if not 0 <= start <= end:
            raise BadRecord(f"{name!r}, item {number}: from {start} s to {end} s; expected 0 <= start <= end")


def _check_messages(messages: Any) -> None:
    if messages is None:
        return
    if not isinstance(messages, list) or not messages:
        raise BadRecord("'messages' must be a list with at least one turn")
    for turn in messages:
        content = turn.get("content") if isinstance(turn, dict) else None
        parts = content if isinstance(content, list) else [content]
        if not all(isinstance(p, str) or (isinstance(p, dict) and "type" in p) for p in parts):
            raise BadRecord("each turn needs a 'role' and a 'content': text, or a list of typed parts")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise BadRecord(f"role {turn.get('role')!r}: use system, user or assistant")


def _no_constant(name: str) -> None:
    raise BadRecord(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRecord("a number beyond the range of a double")
    return value


_STORED = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRecord(f"repeated key {next(n for n in names if names.count(n) > 1)!r}")
    return out
