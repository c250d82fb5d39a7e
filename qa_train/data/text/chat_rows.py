"""One row of a fine-tuning data set, as other tools write it: a chat or a preference pair, and its clips.

Supported are messages and audios (ms-swift, LLaMA-Factory, OpenAI), conversations of {from, value} (ShareGPT,
LLaMA-Factory, Audio Flamingo 3) and turns of a type (NeMo), query and response with a history (ms-swift), instruction,
input and output (Alpaca), prompt with completion or with chosen and rejected (TRL), and the answers that people
compared (align-anything). Unsupported fields of such a row are refused by name: nothing is lost silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from qa_train.data.text.chat_turns import (
    CLIPS,
    REFUSED_IN_TURNS,
    answer_turns,
    has_clips,
    listed_clips,
    read_turns,
    texts_and_clips,
    written,
)
from qa_train.data.text.content import LOSS_FIELDS, PLACEHOLDER, Heard, Source, content_parts, shown, turn_loss
from qa_train.data.text.prompts import chat_messages
from qa_train.data.text.records import (
    KNOWN_FIELDS,
    BadRecord,
    check_record,
    check_text,
    with_texts,
)

TURNS = ("messages", "conversations", "conversation", "context_messages")
_ASKED = ("query", "instruction", "prompt")
# They ask where none of those does. Next to one of these a question is a fact about the clip, of a record or an item
# of a test, unless it marks or lists its clips.
_ELSE_ASKED, _FACTS = ("question", "input"), {"answer", "gt"}
_ANSWERED = ("response", "output", "completion")
# Other names of chosen and rejected.
_PAIRS = (
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
)
# These improve on the answer next to them, which is not to be learned; next to turns both are facts.
_IMPROVED = (("refinement", "response"), ("corrected", "output"))
# Name the file of the clip of a row that has no other (MusicQA, OpenAQA); else they are facts.
CLIP_NAMES = ("audio_name", "audio_id")
_AUDIO_FILE = re.compile(r"\S.*\.(?:wav|flac|mp3|ogg|opus|m4a|aac|webm)", re.IGNORECASE)
# Fields that would change training, and the remedy for each.
_REFUSED = {
    "images": "the model takes audio, no images or videos: remove such rows",
    "videos": "the model takes audio, no images or videos: remove such rows",
    "image": "the model takes audio, no images or videos: remove such rows",
    "video": "the model takes audio, no images or videos: remove such rows",
    "tools": "tools are not part of the chat format: remove such rows",
    "functions": "tools are not part of the chat format: remove such rows",
    "objects": "grounding is not supported: remove such rows",
    "kto_tag": "answers judged one by one are KTO's: dpo needs pairs; pair them by question, or keep the good for sft",
    "completions": "stepwise supervision is not supported: give one completion",
}
# Fields that are read here and are not part of the record.
_TAKEN = (*TURNS, *CLIPS, *_REFUSED, "system", "system_prompt", "history", "rejected_response", "rejected_messages",
          "rejected_audios", "duration", "offset", "response_1", "response_2", "overall_response")  # fmt: skip
_TURN_TAKEN = (*LOSS_FIELDS, *CLIPS, *REFUSED_IN_TURNS, "role", "content", "from", "value", "type", "message_type",
               "duration", "offset")  # fmt: skip


def parts_of(row: dict[str, Any], num_clips: int) -> list[tuple[float, float | None]]:
    """(offset, duration or None) in seconds of each clip of a row: the part of its file that is meant, as NeMo does.

    They are in the turn of a clip, or in the row if that has one clip; the default is the whole file.

    Raises:
        BadRecord: an offset without a single clip, or values that are not numbers.
    """
    turns = [turn for name in TURNS for turn in (row.get(name) or []) if isinstance(turn, dict)]
    said = [turn for turn in turns if {"offset", "duration"} & turn.keys()]
    if not said and num_clips == 1:
        said = [row]
    if len(said) != num_clips:
        if any(each.get("offset") for each in (*said, row)):
            raise BadRecord("it has an 'offset', and several clips: cut the files, or give each clip its own turn")
        return [(0.0, None)] * num_clips
    try:
        parts = [
            (float(s.get("offset") or 0), None if s.get("duration") is None else float(s["duration"])) for s in said
        ]
    except (TypeError, ValueError) as error:
        raise BadRecord(f"its 'offset' or 'duration' is not a number of seconds ({error})") from error
    if any(start < 0 or (length is not None and not length > 0) for start, length in parts):
        raise BadRecord("its 'offset' must be 0 or more, and its 'duration' above 0")
    return parts


def is_chat(row: dict[str, Any]) -> bool:
    """Whether a row is a chat or a pair, not a record of facts about a clip such as {audio, text}."""
    row = _plain_names(row)
    said = {*row}
    # One with choices is an item of a test.
    placed = "question" in said and "choices" not in said
    placed = placed and ("audios" in said or PLACEHOLDER in str(row["question"]))
    asked = said & {*_ASKED} or (said & {*_ELSE_ASKED} and (placed or not said & _FACTS))
    answered = said & {*_ANSWERED, "chosen", "overall_response"} or (placed and "answer" in said)
    return bool(said & {*TURNS} or (asked and answered) or {"chosen", "rejected"} <= said)


def chat_record(row: dict[str, Any], *, cuts: bool = False) -> tuple[dict[str, Any], list[Source]]:
    """The record (``messages`` with ``<audio>`` at the position of a clip, perhaps ``chosen`` and ``rejected``), its
    clips.

    Fields without a meaning here are kept in the record (see ``unknown_fields``). ``cuts``: the caller cuts the parts
    given by ``parts_of``; otherwise a row with a later part of a file is refused.

    Raises:
        BadRecord: the row is not a chat, is not supported by this model, or its clips and marks do not match.
    """
    row = _plain_names(row)
    for name, remedy in _REFUSED.items():
        if row.get(name):
            raise BadRecord(f"it has {name!r}: {remedy}")
    if not is_chat(row):
        rows = "; rows such as {audio, text} are read by: qa-train data import jsonl" if "messages" not in row else ""
        raise BadRecord(f"no 'messages', it has {', '.join(list(row)[:8]) or 'nothing'}{rows}")
    if isinstance(row.get("label"), bool):
        raise BadRecord(f"it has a 'label' of {str(row['label']).lower()}: {_REFUSED['kto_tag']}")
    turns, pair = _answers(row, _asked(row))
    turns = _with_system(turns, row.get("system") or row.get("system_prompt"))
    listed = listed_clips(row)
    named = next((name for name in CLIP_NAMES if _names_audio(row.get(name))), None)
    if named and not listed and not any(map(has_clips, turns)):
        listed = listed_clips({"audios": row.pop(named)})
    messages, clips = _placed(turns, listed)
    if any(start for start, _ in parts_of(row, len(clips))) and not cuts:
        raise BadRecord(
            "a clip with 'offset': qa-train data import cuts parts of recordings; else make it a separate file"
        )
    taken = {*_TAKEN, *(() if any(name in row for name in TURNS) else (_asking(row), *_ANSWERED, "input"))}
    record = with_texts({name: value for name, value in row.items() if name not in taken} | pair)
    record["messages"] = messages
    if not clips and (lost := _audio_field(record)):
        raise BadRecord(f"{lost} names an audio file, and no clip is listed: call it 'audio' to be heard, or remove it")
    check_text(record)
    check_record(record)
    chat_messages({**record, "audios": [""] * len(clips)})
    return record, clips


def unknown_fields(record: dict[str, Any]) -> list[str]:
    """Fields of a record, and of its turns, that nothing here reads: kept, and reported once."""
    turns = {name for turn in record.get("messages") or [] for name in turn}
    return [name for name in record if name not in KNOWN_FIELDS] + [
        f"messages.{name}" for name in sorted(turns - {"role", "content", "loss"})
    ]


def _plain_names(row: dict[str, Any]) -> dict[str, Any]:
    """The row without what is null (as tables write what a row does not have), a pair in the names that are read."""
    row = {name: value for name, value in row.items() if value is not None}
    if isinstance(row.get("input"), dict) and "messages" in row["input"] and "messages" not in row:
        # OpenAI's preferences: {messages, tools}.
        row = row.pop("input") | row
    for names in (*_PAIRS, *(() if row.keys() & {*TURNS} else _IMPROVED)):
        if "chosen" not in row and all(row.get(name) and isinstance(row[name], str | list | dict) for name in names):
            row |= dict(zip(("chosen", "rejected"), [row.pop(name) for name in names], strict=True))
    return row


def _with_system(turns: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """The turns with the row's own system prompt, which the turns may repeat."""
    if not system:
        return turns
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    own, repeated = (
        [part.strip() if isinstance(part, str) else part for part in content_parts(content)]
        for content in (system, turns[0]["content"])
    )
    if own != repeated:
        raise BadRecord("it has a system prompt of its own, and another in its turns: keep one")
    return turns


def _audio_field(record: dict[str, Any]) -> str | None:
    """The field of a record, or of one of its turns, that no task reads and that names an audio file.

    The ``name`` of a turn is its speaker's.
    """
    of_turn = KNOWN_FIELDS | {"content", "name"}
    for where, known in ((record, KNOWN_FIELDS), *((turn, of_turn) for turn in record["messages"])):
        for name, value in where.items():
            if name not in known and _names_audio(value.get("path") if isinstance(value, dict) else value):
                return repr(name)
    return None


def _names_audio(value: Any) -> bool:
    return isinstance(value, str) and _AUDIO_FILE.fullmatch(value) is not None


def _asking(row: dict[str, Any]) -> str:
    """The field by which a row asks, perhaps together with "input"."""
    given = [name for name in _ASKED if row.get(name)]
    if len({str(row[name]) for name in given}) > 1:
        raise BadRecord(f"it asks twice, in {' and '.join(map(repr, given))}: remove one, or join them")
    return next(iter(given), next((name for name in _ELSE_ASKED if row.get(name)), _ASKED[-1]))


def _asked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns as the row has them, {role, content} each; of a single exchange with its answer, if there is one."""
    if any(name in row for name in TURNS):
        return read_turns(next((row[name] for name in TURNS if row.get(name)), None), listed_clips(row))
    answered = [name for name in _ANSWERED if row.get(name) is not None]
    if len({str(row[name]) for name in answered}) > 1:
        raise BadRecord(f"it answers twice, in {' and '.join(map(repr, answered))}: remove one")
    asking = _asking(row)
    if not answered and asking == "question" and "chosen" not in row:
        answered = ["answer"]
    answer = row.get(answered[0]) if answered else None
    if isinstance(row.get(asking), list):
        if lost := next((name for name in ("history", "input") if name != asking and row.get(name)), None):
            raise BadRecord(f"{asking!r} is a list of turns, and {lost!r} stands next to it: give one list")
        return read_turns(row[asking] + answer_turns(answer, "the answer"), listed_clips(row))
    turns: list[dict[str, Any]] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(said, list) and len(said) == 2 for said in history):
        raise BadRecord("'history' must be a list of [question, answer]")
    for exchange in history:
        turns += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
    asked = [row.get(name) for name in dict.fromkeys((asking, "input"))]
    if not all(isinstance(text, str | None) for text in asked):
        raise BadRecord(f"{asking!r} must be a text, as 'input' next to it")
    # Alpaca's instruction and its input are one question; TRL's chosen and rejected may hold the question themselves.
    question = "\n".join(text for text in asked if text)
    # As Anthropic's HH has it.
    if question.strip().lower().startswith(("human:", "user:")) and question.strip().lower().endswith("assistant:"):
        raise BadRecord(f"{asking!r} is a dialogue in one text: give its turns as messages")
    if question or not isinstance(row.get("chosen"), list):
        if not question and not listed_clips(row):
            raise BadRecord(
                f"no question: neither a clip nor any of {', '.join((*_ASKED, *_ELSE_ASKED))}; take dialogues in one "
                "text apart"
            )
        turns.append({"role": "user", "content": question})
    return turns if answer is None else [*turns, {"role": "assistant", "content": written(answer)}]


def _answers(row: dict[str, Any], turns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The turns of the question, and ``chosen`` and ``rejected`` as texts, where the row is a preference pair."""
    if "overall_response" in row:
        return _compared(row)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        chosen, rejected = (answer_turns(row[name], name) for name in ("chosen", "rejected"))
    elif any(row.get(name) is not None for name in ("rejected_response", "rejected_messages")):
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRecord("a rejected answer needs the better one as the last message")
        name = "rejected_messages" if row.get("rejected_messages") is not None else "rejected_response"
        rejected = answer_turns(row[name], name)
        asked = turns[:-1] if len(rejected) > 1 else []
        turns, chosen = turns[: len(turns) - 1 - len(asked)], [*asked, turns[-1]]
    elif row.get("rejected_audios") is not None:
        raise BadRecord("it has 'rejected_audios' without another answer: pairs about two recordings are not supported")
    else:
        return turns, {}
    if row.get("rejected_audios") not in (None, [], row.get("audios", row.get("audio"))):
        raise BadRecord("'rejected_audios' are not the 'audios': the answers of a pair are about the same clips")
    if chosen[:-1] != rejected[:-1]:
        raise BadRecord("the two answers of the pair follow different turns: only the last one may differ")
    if chosen[:-1]:
        # The question, repeated in the answers: with several turns a row often repeats only the last one.
        if turns not in ([], chosen[:-1], chosen, [chosen[-2]]):
            raise BadRecord("the turns before the chosen answer are not those of the row: give them once")
        turns = chosen[:-1]
    texts = [_answer_text(answer[-1], name) for answer, name in ((chosen, "chosen"), (rejected, "rejected"))]
    return turns, {"chosen": texts[0], "rejected": texts[1]}


def _answer_text(turn: dict[str, Any], name: str) -> str:
    parts = content_parts(turn["content"])
    if turn_loss(turn) is False:
        raise BadRecord(f"the {name} answer is marked as not learned (loss: false)")
    return "".join(part if isinstance(part, str) else PLACEHOLDER for part in parts)


def _compared(row: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Two answers of which people preferred one, as align-anything has them: the question, chosen and rejected."""
    answers = [row.get("response_1"), row.get("response_2")]
    better = next((i for i in (1, 2) if row["overall_response"] in (i, str(i))), None)
    if better is None or answers[0] == answers[1]:
        # As the project itself leaves such rows out.
        raise BadRecord("'overall_response' is not 1 or 2, or the answers are the same", "no preference")
    if not row.get("prompt") or not all(isinstance(text, str) for text in (row["prompt"], *answers)):
        raise BadRecord("'prompt', 'response_1' and 'response_2' must be texts, and 'prompt' not empty")
    chosen, rejected = answers if better == 1 else answers[::-1]
    question = [{"role": "user", "content": row["prompt"]}]
    return question, {"chosen": str(chosen), "rejected": str(rejected), "family": "human"}


def _placed(turns: list[dict[str, Any]], listed: list[Source]) -> tuple[list[dict[str, Any]], list[Source]]:
    """Messages with a mark for each clip, and the clips in their order."""
    waiting = list(listed)
    clips: list[Source] = []
    messages = []
    named = False
    for turn in turns:
        own = listed_clips(turn)
        parts = texts_and_clips(turn)
        # Clips of a turn that its text does not place open it.
        unplaced = len(own) - sum(isinstance(part, Heard) for part in parts)
        parts = [*(Heard() for _ in range(unplaced)), *parts]
        if turn["role"] == "assistant" and parts and all(isinstance(part, Heard) or not part.strip() for part in parts):
            raise BadRecord("an answer that is only a recording: this model answers in text")
        for part in parts:
            if isinstance(part, Heard):
                named = named or part.source is not None
                source = part.source or next(iter((own or waiting)[:1]), None)
                if source is None:
                    raise BadRecord(_mismatch(turns, listed))
                if part.source is None:
                    (own or waiting).pop(0)
                clips.append(source)
        text = "".join(part if isinstance(part, str) else PLACEHOLDER for part in parts)
        made = {name: value for name, value in turn.items() if name not in _TURN_TAKEN and value is not None}
        learned = turn_loss(turn)
        loss = {} if learned is None or turn["role"] != "assistant" else {"loss": learned}
        messages.append({"role": turn["role"], "content": text} | made | loss)
    if waiting and named and all(source in clips for source in waiting):
        # Given twice: in the parts and in a separate list.
        waiting = []
    if waiting and (clips or len(waiting) > 1):
        raise BadRecord(_mismatch(turns, listed))
    if waiting:
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
        messages[first]["content"] = PLACEHOLDER + messages[first]["content"]
    return messages, clips + waiting


def _mismatch(turns: Iterable[dict[str, Any]], listed: list[Source]) -> str:
    heard = [part for turn in turns for part in texts_and_clips(turn) if isinstance(part, Heard)]
    named = next((part.source for part in heard if part.source is not None), None)
    if listed and named is not None:
        return (
            f"clips are named in the messages ({shown(named)}), and 'audios' lists {len(listed)}: keep one of the two, "
            "or make them agree"
        )
    return f"the messages place {len(heard)} clips, 'audios' lists {len(listed)}: make them agree"
