"""The turns of chats as other tools write them: roles, contents, and the clips that a turn lists or marks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from qa_train.data.text.content import Heard, Source, content_parts, source_of, turn_loss
from qa_train.data.text.records import BadRecord, number_text, parse_json

_ROLES = {"human": "user", "input": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
          "model": "assistant", "output": "assistant", "developer": "system"}  # fmt: skip
# Where a row, or a turn, lists its clips.
CLIPS = ("audios", "audio", "sound", "speech", "ori_sound", "audio_path", "audio_filepath", "audio_url", "wav")
# A number (from 1 on) names a clip of the list, as in AF-Chat and Phi-4.
_NUMBERED_MARK = re.compile(r"<\|audio_(\d+)\|>")
# Marks of a clip in the turns of {from, value}; elsewhere they may be meant literally.
_SHAREGPT_MARK = re.compile(
    rf"<(?:sound|speech|audio(?![^<\n]+</audio>))>\n?|<sound-(\d+)>\n?|{_NUMBERED_MARK.pattern}"
)
# A clip with its path: Qwen-Audio's first chats (the template adds the number) and FunASR's.
_NAMED_MARK = re.compile(
    r"(?:Audio \d+: ?)?<audio>([^<\n]+)</audio>\n?|<\|startofspeech\|>!(?!!)([^<\n]+)<\|endofspeech\|>"
)
REFUSED_IN_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "videos")


def read_turns(listed: Any, clips: Sequence[Source] = ()) -> list[dict[str, Any]]:
    """Turns of any tool as {role, content, and other fields}; ``clips``: those that numbered marks mean."""
    if isinstance(listed, str) and listed.lstrip().startswith("["):
        # Tables of texts hold turns as JSON.
        try:
            listed = parse_json(listed)
        except BadRecord as error:
            raise BadRecord(f"the turns, a text of JSON: {error}") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(turn, dict) for turn in listed):
        raise BadRecord("the turns must be a list with at least one turn, {role, content} or {from, value} each")
    turns: list[dict[str, Any]] = []
    for turn in listed:
        if "role" not in turn and "from" not in turn:
            # A question and its answer in one object, as ms-swift and XTuner have them, perhaps with an empty "system".
            said = [(_ROLES.get(role, role), text) for role, text in turn.items()]
            turns += [{"role": role, "content": text} for role, text in said if text or role != "system"]
            continue
        for name in REFUSED_IN_TURNS:
            if turn.get(name):
                raise BadRecord(f"a turn has {name!r}, which is not part of the chat format: remove such rows")
        role = str(turn.get("role", turn.get("from"))).lower()
        made = {**turn, "role": _ROLES.get(role, role), "content": _content(turn, clips)}
        last = turns[-1] if turns else {}
        if _of_type(turn) and _of_type(last) and last["role"] == made["role"] and turn_loss(last) == turn_loss(made):
            # NeMo's turns hold one thing each: those of one speaker are one message. The template ends a clip's line.
            between = ["\n"] if isinstance(next(reversed(content_parts(last["content"])), None), str) else []
            last["content"] = [*last["content"], *between, *made["content"]]
        else:
            turns.append(made)
    if not turns:
        raise BadRecord("the turns are empty: expected {role, content} or {from, value} each")
    for turn in turns:
        if turn["role"] not in ("system", "user", "assistant"):
            raise BadRecord(f"a turn of {turn['role']!r}: use system, user or assistant (or human and gpt)")
    return turns


def _of_type(turn: dict[str, Any]) -> Any:
    """The declared type of a turn with a single content: text or audio."""
    return turn.get("type", turn.get("message_type"))


def _content(turn: dict[str, Any], clips: Sequence[Source]) -> Any:
    """The content of a turn, as ``content_parts`` reads it."""
    content = written(turn.get("content", turn.get("value")))
    kind = _of_type(turn)
    if kind is not None and not isinstance(content, list):
        return [{"type": kind, "value": content}]
    if kind not in (None, "text", "message"):
        raise BadRecord(f"a turn of type {kind!r} with a list: give its parts as {{type, text}} and {{type, audio}}")
    if content is None:
        raise BadRecord(f"a turn without a content (it has {', '.join(turn)}): expected {{role, content}}")
    if not isinstance(content, str):
        return content

    def heard(mark: re.Match[str]) -> dict[str, Any]:
        if mark.lastindex is None:
            return {"type": "audio"}
        number = int(mark[mark.lastindex])
        if not 0 < number <= len(clips):
            raise BadRecord(f"{mark[0].strip()} names no clip: the row lists {len(clips)}, numbered from 1 on")
        return {"type": "audio", "audio": clips[number - 1]}

    return _cut(content, _SHAREGPT_MARK if "value" in turn else _NUMBERED_MARK, heard)


def _cut(text: str, marks: re.Pattern[str], heard: Callable[[re.Match[str]], dict[str, Any]]) -> Any:
    """The text, in a list of parts with the clip of each mark if it has any."""
    parts: list[Any] = []
    start = 0
    for mark in marks.finditer(text):
        parts += [text[start : mark.start()], heard(mark)]
        start = mark.end()
    return [*parts, text[start:]] if parts else text


def written(content: Any) -> Any:
    """The number that answers "How many?" is often written as one."""
    # Not isinstance: true and false are not numbers here. A table has NaN for what is missing.
    return number_text(content) if type(content) in (int, float) and math.isfinite(content) else content


def texts_and_clips(turn: dict[str, Any]) -> list[str | Heard]:
    """Text and clips of a turn. A question may name its clips in the text."""
    content = turn["content"]
    if turn["role"] == "user" and isinstance(content, str):
        content = _cut(content, _NAMED_MARK, lambda mark: {"type": "audio", "audio": (mark[1] or mark[2]).strip()})
    return content_parts(content)


def answer_turns(answer: Any, name: str) -> list[dict[str, Any]]:
    """An answer as turns: a text, one turn, or several."""
    if answer is None:
        return []
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    turns = read_turns(answer if isinstance(answer, list) else [answer])
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRecord(f"{name!r} must end with an answer: a text, or a turn of the assistant")
    return turns


def listed_clips(values: dict[str, Any]) -> list[Source]:
    """The clips that a row, or a turn, lists next to its texts."""
    given: Any = next((values[name] for name in CLIPS if values.get(name) not in (None, [], "")), [])
    found = [source_of(each) for each in (given if isinstance(given, list) else [given])]
    if None in found:
        raise BadRecord("a clip of the list has neither path nor data")
    return [source for source in found if source is not None]


def has_clips(turn: dict[str, Any]) -> bool:
    """Whether a turn itself says where its clips come from."""
    heard = (part for part in texts_and_clips(turn) if isinstance(part, Heard))
    return bool(listed_clips(turn)) or any(part.source is not None for part in heard)
