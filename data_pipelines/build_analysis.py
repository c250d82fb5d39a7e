"""`qa-train data analysis shards=... out=FOLDER`: annotated recordings become conversations about them.

For each recording, some tasks of the prompt bank that its record can answer are drawn; question after question makes
one chat of one to ``turns`` turns about the same clip. Recordings with labels are also asked for a sound that they
hold and for one that they do not, so that "yes" and "no" are equally often right. Answers come from the annotation
alone, so they can be checked; ``asked`` in the record names the task of each turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from data_pipelines.chat_shards import BuilderConfig, Chat, build
from data_pipelines.clips.picks import draw, pick
from data_pipelines.clips.read_shards import Place, places, shard_paths
from data_pipelines.importing.import_report import Report
from qa_train.data.shards.index import load_index
from qa_train.data.text.prompts import PromptBank, Unqualified
from qa_train.data.text.records import BadRecord
from qa_train.data.text.sample import Message, TextPart

_YES_NO = (
    "Can you hear {}?",
    "Do you hear {} in this recording?",
    "Is there {} in this clip?",
    "Does this audio contain {}?",
)
_YES = ("Yes, I hear {}.", "Yes, there is {}.", "Yes. This recording contains {}.")
_NO = ("No, I do not hear {}.", "No, there is no {}.", "No. There is no {} in this recording.")


@dataclass
class AnalysisConfig(BuilderConfig):
    """Options of `qa-train data analysis`."""

    # Indexed shards (a pattern, or [A,B]) whose records hold transcripts, captions, labels, emotions ...
    shards: Any = MISSING
    # Only records with this value, e.g. where.split=train.
    where: dict[str, Any] = field(default_factory=dict)
    # Tasks of the prompt bank to ask; empty: all that need no special tokens.
    tasks: list[str] = field(default_factory=list)
    # Prompt files (YAML) with further tasks.
    prompt_files: list[str] = field(default_factory=list)
    # Languages of the prompts' wordings.
    languages: list[str] = field(default_factory=lambda: ["en"])
    # Maximum questions about one recording.
    turns: int = 3
    # Share of the labelled recordings with a yes/no question ("do you hear ...?").
    yes_no: float = 0.5
    # Prefix of the shards.
    name: str = "analysis"
    # Licence, written into the report.
    license: str = ""


def main(options: AnalysisConfig) -> int:
    """Turn annotated recordings into conversations about them; answers come from the annotation alone."""
    print(build_analysis(options).text())
    return 0


def build_analysis(options: AnalysisConfig) -> Report:
    """Build one shard of chats for each shard of recordings that has any; ValueError for wrong options or shards."""
    if options.turns < 1 or not 0 <= options.yes_no <= 1:
        raise ValueError("data analysis: turns must be at least 1, and yes_no between 0 and 1")
    report = Report("audio analysis", "splits of the recordings", options.license or "that of the recordings")
    bank = PromptBank.load(options.prompt_files, options.languages)
    tasks = options.tasks or sorted(bank.tasks)
    for name in tasks:
        bank.task(name)
    found = {str(path): places(str(path), where=options.where) for path in shard_paths(options.shards)}
    labels = sorted({label for some in found.values() for place in some for label in labels_of(place.record)})
    settings = {
        "where": options.where, "tasks": tasks, "prompt_files": options.prompt_files, "languages": options.languages,
        "turns": options.turns, "yes_no": options.yes_no, "seed": options.seed, "name": options.name,
        "bank": [bank.digest(name) for name in tasks],
    }  # fmt: skip
    parts: list[tuple[tuple[Any, ...], int]] = []
    for path, some in found.items():
        able = {place.key: _able(bank, place, tasks, labels) for place in some}
        for key in (key for key, answers in able.items() if not answers):
            report.drop(key, "no task that the record can answer")
        keys = [key for key, answers in able.items() if answers]
        if keys:
            parts.append(((path, load_index(path).fingerprint, keys, labels, settings), len(keys)))
    return build(options.name, options.out, ask, parts, report, options.engine_with(options.workers))


def _able(bank: PromptBank, place: Place, tasks: list[str], labels: list[str]) -> bool:
    return bool(labels_of(place.record) and len(labels) > 1) or any(_turns(bank, place, name, 0) for name in tasks)


def labels_of(record: dict[str, Any]) -> list[str]:
    """What is heard in a recording by its label, labels, and events, each once."""
    events = [event["label"] for event in record.get("events") or []]
    single = [record["label"]] if record.get("label") else []
    return list(dict.fromkeys([*single, *(record.get("labels") or []), *events]))


def labels_not_heard(record: dict[str, Any], labels: list[str]) -> list[str]:
    """Those of ``labels`` that a recording with labels of its own does not hold."""
    # "dog" is no proof that there is no "dog bark".
    words = {word for label in labels_of(record) for word in label.lower().split()}
    return [label for label in labels if not words & set(label.lower().split())]


def ask(shard: str, digest: str, keys: list[str], labels: list[str], settings: dict[str, Any]) -> Iterator[Chat]:
    """The chats about the recordings ``keys`` of one shard; ``digest`` pins its content in the recipe."""
    bank = PromptBank.load(settings["prompt_files"], settings["languages"])
    wanted = set(keys)
    for place in places(shard, where=settings["where"]):
        if place.key in wanted:
            turns = _conversation(bank, place, labels, settings)
            messages, asked = _messages(turns)
            record = place.facts | {"messages": messages, "task": "chat", "asked": asked, "made_from": place.origin}
            yield Chat(f"{settings['name']}-{place.key}", record, (place.wave(),))


def _conversation(
    bank: PromptBank, place: Place, labels: list[str], settings: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """(task, question, answer) of each turn, in drawn order."""
    seed, key = settings["seed"], place.key
    found = [turn for name in settings["tasks"] if (turn := _turns(bank, place, name, seed))]
    # Two tasks may ask for the same thing: it is asked once in a conversation.
    answers: dict[str, tuple[str, str, str]] = {}
    for turn in sorted(found, key=lambda turn: draw(seed, key, turn[0], "task")):
        answers.setdefault(turn[2], turn)
    turns = list(answers.values())
    limit = 1 + int(draw(seed, key, "turns") * settings["turns"])
    yes_no = _yes_no(place, labels, seed)
    if yes_no and (not turns or draw(seed, key, "yes or no") < settings["yes_no"]):
        at = int(draw(seed, key, "place") * (min(len(turns), limit - 1) + 1))
        turns.insert(at, yes_no)
    return turns[:limit]


def _turns(bank: PromptBank, place: Place, task: str, seed: int) -> tuple[str, str, str] | None:
    """(task, question, answer) if the record can answer this task in plain words."""
    try:
        sample = bank.sample(place.record, task, "chat", place.key, seed, 0)
    except (Unqualified, BadRecord):
        return None
    question, answer = (_text(message) for message in (sample.messages[-2], sample.messages[-1]))
    return (task, question, answer) if question and answer else None


def _text(message: Message) -> str | None:
    """The text of a message; None when it holds special tokens, which the text of a chat cannot hold."""
    parts = [part for part in message.content if isinstance(part, TextPart)]
    if any(part.trusted and "<|" in part.text for part in parts):
        return None
    return "".join(part.text for part in parts).strip()


def _yes_no(place: Place, labels: list[str], seed: int) -> tuple[str, str, str] | None:
    mine, others = labels_of(place.record), labels_not_heard(place.record, labels)
    if not mine or not others:
        return None
    present = draw(seed, place.key, "present") < 0.5
    label = pick(mine if present else others, seed, place.key, "label")
    question, answer = (
        pick(_YES_NO, seed, place.key, "wording"),
        pick(_YES if present else _NO, seed, place.key, "reply"),
    )
    return ("present" if present else "absent", question.format(label.lower()), answer.format(label.lower()))


def _messages(turns: list[tuple[str, str, str]]) -> tuple[list[dict[str, str]], list[str]]:
    messages = []
    for number, (_, question, answer) in enumerate(turns):
        # The clip comes with the first question; the rest is talk about it.
        messages.append({"role": "user", "content": question if number else f"<audio>{question}"})
        messages.append({"role": "assistant", "content": answer})
    return messages, [task for task, _, _ in turns]
