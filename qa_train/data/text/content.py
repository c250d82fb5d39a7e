"""The content of one chat message: text and clips in order, in the forms that other tools write.

The only reader of contents: for shards, JSONL, evaluation files, the terminal chat and the server. A clip is a mark in
a text (``<audio>``; ``<|AUDIO|>``, alone or between ``<|audio_bos|>`` and ``<|audio_eos|>``, as Qwen's templates spell
it; Qwen3-Omni's spelling and Ultravox's), or a part of a list: ``audio`` (with ``audio``, ``audio_url``, ``url``,
``path`` or nothing else), ``audio_url``, ``input_audio``. Anything that is neither text nor sound is refused by name.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from qa_train.data.text.records import BadRecord
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart

PLACEHOLDER = "<audio>"
# Where a clip comes from: a path or an address, or the bytes of its file.
Source = str | bytes
# The reason of a BadRecord.
NOT_BASE64 = "not base64"
# Parts of a clip's mark, or of its sound as tokens, in the templates of audio models: no text of a data set has them.
_TOKENS = re.compile(
    r"<\|(?:AUDIO|audio|audio_(?:bos|eos|start|pad|end|\d+)|(?:startof|endof)speech|(?:begin|end)_of_audio)\|>"
    r"|<audio_(?:start|end)_baichuan>|<SpeechHere>|<audio_soft_token>"
)
# As the chat template spells a clip, with the number and the line end that it adds; as Qwen3-Omni's does; the bare
# tokens of Qwen2-Audio and Ultravox; the placeholder.
_MARKS = re.compile(
    r"(?:Audio \d+: )?<\|audio_bos\|>(?:<\|AUDIO\|>)+<\|audio_eos\|>\n?"
    r"|<\|audio_start\|>(?:<\|audio_pad\|>)+<\|audio_end\|>|<\|(?:AUDIO|audio)\|>|" + re.escape(PLACEHOLDER)
)
_TEXT_PARTS = ("text", "input_text", "output_text")
_AUDIO_PARTS = ("audio", "audio_url", "input_audio")
# Fields of an audio part that give its source, and fields of an object in that place.
_PLACES = ("audio", "audio_url", "input_audio", "url", "path", "data", "value", "base64", "bytes")
# The first bytes of the files that base64 without a name is recognised by.
_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"\0\0\0\x1cftyp",
          b"\0\0\0\x20ftyp", b"\0\0\0\x18ftyp")  # fmt: skip
# Fields of a turn by which other tools mark whether its answer is learned.
LOSS_FIELDS = ("loss", "weight", "loss_weight", "loss_scale", "train")


@dataclass(frozen=True)
class Heard:
    """A clip in a message: its ``source``, or None for the next one of the record's own list.

    ``mark`` is the text that marked it, empty for a part of a list.
    """

    source: Source | None = None
    mark: str = ""


def content_parts(content: Any) -> list[str | Heard]:
    """Text and clips of a content, in reading order; empty texts are skipped.

    Raises:
        BadRecord: a part that is neither text nor sound, half of a clip's mark, or bytes that are not base64.
    """
    parts: list[str | Heard] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            parts += _of_text(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind is None:
            # DashScope writes {"audio": URL} and {"text": TEXT}, Megrez both in one.
            kinds = [name for name in (*_AUDIO_PARTS, *_TEXT_PARTS) if part.get(name) is not None]
            parts += content_parts([{**part, "type": name} for name in kinds[:-1]])
            kind = kinds[-1] if kinds else None
        if kind in _TEXT_PARTS:
            text = part.get("text", part.get("value"))
            if not isinstance(text, str):
                raise BadRecord(f"a part of type {kind!r} holds {type(text).__name__}; expected a text")
            parts += _of_text(text)
        elif kind in _AUDIO_PARTS:
            parts.append(Heard(_source_in(part, kind)))
        else:
            what = f"a part of type {kind!r}" if isinstance(part, dict) else f"a content of {type(part).__name__}"
            raise BadRecord(f"{what}: expected text, or sound ({', '.join(_AUDIO_PARTS)})")
    return parts


def user_message(text: str, clips: int, *, trusted: bool = False, first: int = 0) -> Message:
    """A question of ``clips`` recordings (numbers from ``first`` on): at its marks, else before the text.

    ``trusted``: language tags in the text are control tokens. Raises BadRecord for marks of other clips; ``<audio>`` in
    a question without a recording is plain text.
    """
    parts = content_parts(text)
    marks = [part.mark for part in parts if isinstance(part, Heard)]
    if not clips and set(marks) == {PLACEHOLDER}:
        return Message("user", (TextPart(text, trusted=trusted),))
    if marks and len(marks) != clips:
        raise BadRecord(f"the text places {len(marks)} clips ({marks[0]}), there are {clips}: make them agree")
    heard = [AudioPart(first + i) for i in range(clips)]
    if not marks:
        return Message("user", (*heard, *(TextPart(str(part), trusted=trusted) for part in parts)))
    numbers = iter(heard)
    return Message("user", tuple(next(numbers) if isinstance(p, Heard) else TextPart(p, trusted) for p in parts))


def plain_messages(sample: Sample) -> list[dict[str, Any]]:
    """The turns of a sample as other tools write them: role, content with ``<audio>`` for a clip, any mark of loss."""
    return [
        {
            "role": message.role,
            "content": "".join(PLACEHOLDER if isinstance(part, AudioPart) else part.text for part in message.content),
        }
        | ({} if message.learned is None else {"loss": message.learned})
        for message in sample.messages
    ]


def source_of(value: Any) -> Source | None:
    """A clip as listed: a path, an address, a data URL, base64, or an object with one of these.

    Raises BadRecord for anything else, such as decoded samples; None if absent.
    """
    if isinstance(value, dict):
        given = {name: value[name] for name in _PLACES if value.get(name) not in (None, "")}
        if not given and "array" in value:
            raise BadRecord("a clip as an array of samples: write it as a file and give the path")
        coded = next((given[name] for name in ("bytes", "data", "base64") if name in given), None)
        if isinstance(coded, str) and not coded.startswith("data:") and "://" not in coded:
            return _decoded(coded)
        return source_of(coded if coded is not None else next(iter(given.values()), None))
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadRecord(f"a clip given as {type(value).__name__}: expected a path, an address, a data URL or base64")
    if value.startswith("data:"):
        head, comma, coded = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadRecord(f"a data URL that begins {value[:40]!r}: expected data:audio/wav;base64,...")
        return _decoded(coded)
    return _decoded(value) if _is_base64(value) else value


def shown(source: Source) -> str:
    """A source as a person would name it, for messages."""
    return source if isinstance(source, str) else f"a clip of {len(source)} bytes"


def turn_loss(turn: dict[str, Any]) -> bool | None:
    """Whether a turn is marked as learned (``loss: true``, ``weight: 1``) or not; None if unmarked.

    Raises BadRecord for a weight between, a question that is to be learned, and an answer of which a part is not.
    """
    content = turn.get("content")
    marked = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    partly = turn.get("train_detail") or any(part.get(name) in (0, False) for part in marked for name in LOSS_FIELDS)
    if partly and turn.get("role") == "assistant":
        raise BadRecord("a part of an answer is marked as not learned (train: false): only whole turns are")
    said = {name: turn[name] for name in LOSS_FIELDS if turn.get(name) is not None}
    for name, value in said.items():
        if value not in (0, 1):
            raise BadRecord(f"a turn with {name}: {value!r}: a turn is learned (true or 1) or not (false or 0)")
    values = {bool(value) for value in said.values()}
    if len(values) > 1:
        raise BadRecord(f"a turn is marked both as learned and as not learned: {said}")
    found = values.pop() if values else None
    if found and turn.get("role") != "assistant":
        raise BadRecord(f"{next(iter(said))}: true on a turn of {turn.get('role')!r}: only answers are learned")
    return found


def is_answer(text: str) -> bool:
    """Whether a record may hold the text as an answer. A model may also generate a zero byte, or the mark of a clip."""
    return "\0" not in text and PLACEHOLDER not in text and not _TOKENS.search(text)


def _of_text(text: str) -> list[str | Heard]:
    parts: list[str | Heard] = []
    start = 0
    for found in _MARKS.finditer(text):
        parts += [text[start : found.start()], Heard(mark=found[0])]
        start = found.end()
    parts.append(text[start:])
    for part in parts:
        if isinstance(part, str) and (left := _TOKENS.search(part)):
            raise BadRecord(
                f"a text holds {left[0]}, a part of a clip marker: write {PLACEHOLDER} at the position of the clip"
            )
    return [part for part in parts if part != ""]


def _source_in(part: dict[str, Any], kind: str) -> Source | None:
    if cut := next((name for name in ("offset", "start", "end") if part.get(name)), None):
        raise BadRecord(
            f"a clip with {cut!r}: parts of recordings are cut by qa-train data import; make it a separate file"
        )
    named = next((part[name] for name in (kind, *_PLACES) if part.get(name) not in (None, "")), None)
    # What an input_audio holds is data, whatever it looks like; a path there is an address.
    if kind == "input_audio" and isinstance(named, str):
        named = {"data": named}
    return source_of(named)


def _is_base64(text: str) -> bool:
    """Whether a text without any name is a file: paths do not decode to the beginning of one."""
    if len(text) < 64 or "." in text[:64]:
        return False
    try:
        return base64.b64decode(text[:32], validate=True).startswith(_MAGIC)
    except (binascii.Error, ValueError):
        return False


def _decoded(coded: str) -> bytes:
    try:
        return base64.b64decode("".join(coded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord(f"the data of a clip is not base64 ({error})", NOT_BASE64) from error
