"""`qa-train data rewrite shards=... out=FOLDER url=... model=NAME`: chats in the words of a language model.

Chats that templates made all sound alike. A model at any OpenAI-compatible endpoint is asked to say every question
and answer, turn by turn, and its text is kept only if it passes the filters: it must hold every fact of the
checked answer (its names, numbers and contents), add no number, keep yes and no, not give the answer away in the
question, not speak of annotations, and stay near the length. A turn that fails keeps its old words; why is counted.

Every reply is kept in ``OUT/rewrite.jsonl``: a run that was stopped asks only for what is missing, and a run without
``url`` makes the same shards again. The record keeps its old messages, and lists which turns were rewritten, by what
and how. Audio is copied byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from qa_train.config import StorageConfig
from qa_train.data.shards.catalog import shard_paths
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.storage import open_binary
from qa_train.llm.client import Endpoint
from qa_train.llm.judge import Judge, Verdict
from qa_train.utils import draws

PROMPT = """You improve training data for an assistant that listens to recordings. Below are a question about a
recording and the correct answer. Say both anew, as a person would ask and a helpful assistant that has heard the
recording would answer. Keep the language, and keep every fact of the answer: names, numbers, quoted words and yes or
no. Add no fact that the answer does not hold. The question must not give the answer away. Do not speak of annotations,
captions or labels.
Variation {variation}: choose a wording of your own.

Question: {question}
Answer: {answer}

Reply with JSON alone: {{"question": "...", "answer": "..."}}"""
_VARIATIONS = 8
_EXAMPLES = 10
# Words that carry no fact of their own.
_PLAIN = frozenset(
    "a an the of in on at to and or is are was were be there this that it its i you he she they who what which with by "
    "for from as has have had do does can could one some any hear hears heard sound sounds recording audio clip "
    "speaker person says said saying yes no not".split()
)
_GIVEN_AWAY = re.compile(
    r"\b(annotat\w+|captions?|metadata|transcripts? (?:says|shows)|as an ai|language model|labels?)\b"
)


@dataclass
class RewriteConfig:
    """Options of `qa-train data rewrite`."""

    # Indexed shards of chats (data analysis makes some).
    shards: Any = MISSING
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
    # The folder for the new shards.
    out: str = MISSING
    # An OpenAI-compatible endpoint, up to and without /chat/completions; null: replay OUT/rewrite.jsonl.
    url: str | None = None
    # Name of the model at the endpoint.
    model: str = ""
    # Environment variable that holds the key.
    key_env: str = "OPENAI_API_KEY"
    # Share of the turns to paraphrase; the others are copied.
    share: float = 1.0
    # Maximum length of a paraphrase, relative to the original.
    max_ratio: float = 3.0
    # Maximum tokens of one answer.
    max_tokens: int = 256
    # Concurrent requests.
    workers: int = 8
    # Chats of one shard.
    samples_per_shard: int = 5000


@dataclass
class Outcome:
    """What was made of the turns of all chats."""

    chats: int = 0
    turns: int = 0
    rewritten: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def report(self, options: RewriteConfig) -> dict[str, Any]:
        """For the JSON file next to the shards."""
        return {
            "model": options.model, "prompt_sha256": _PROMPT_DIGEST, "chats": self.chats, "turns": self.turns,
            "rewritten": self.rewritten, "kept_as_they_were": dict(self.kept.most_common()), "examples": self.examples,
        }  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A question and its answer inside a chat: their places in ``messages``, and their words without ``<audio>``."""

    user: int
    question: str
    answer: str


def main(options: RewriteConfig) -> int:
    """Paraphrase chats with a language model; a turn whose paraphrase fails a check stays unchanged."""
    return rewrite(options)


def rewrite(options: RewriteConfig) -> int:
    """Make ``out/rewritten-NNNNN.tar`` and ``out/rewrite.report.json``.

    Raises:
        ValueError: wrong options, shards without chats, no reply in the cache and no endpoint, or an endpoint that
            refuses the request itself.
    """
    if not options.model or options.max_ratio < 1:
        raise ValueError("data rewrite: needs model=NAME, and max_ratio=1 or more")
    out = Path(options.out)
    if left := sorted(out.glob("rewritten-*.tar")):
        raise ValueError(f"data rewrite: {out} holds {left[0].name} already: delete it, or choose another out=")
    endpoint = Endpoint(options.url, options.model, options.key_env) if options.url else None
    # The client of judges is what is needed here: many prompts at temperature 0, cached, retried, replayed offline.
    writer = Judge(
        options.model, out / "rewrite.jsonl", endpoint, max_tokens=options.max_tokens, workers=options.workers
    )
    outcome = Outcome()
    shards = options.shards if isinstance(options.shards, list) else [options.shards]
    with ShardWriter(out / "rewritten-%05d.tar", max_samples=options.samples_per_shard) as shard:
        for path in shard_paths(shards, options.storage):
            _rewrite_shard(path, options, writer, shard, outcome)
    if not outcome.turns:
        raise ValueError(f"data rewrite: no chat in {shards}: its records need messages that end with an answer")
    report = outcome.report(options)
    (out / "rewrite.report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "examples"}, indent=2))
    print(f"chats, and rewritten turns to read: {out}")
    return 0


def _rewrite_shard(path: str, options: RewriteConfig, writer: Judge, shard: ShardWriter, outcome: Outcome) -> None:
    rows = [(row, json.loads(row["meta"])) for row in load_index(path, options.storage).table.to_pylist()]
    asked = {
        (row["key"], turn.user): _prompt(turn, row["key"])
        for row, record in rows
        for turn in _turns(record)
        if draws.share([row["key"], turn.user]) < options.share
    }
    verdicts = dict(zip(asked, writer.ask(list(asked.values())), strict=True))
    with open_binary(path, options.storage) as file:
        for row, record in rows:
            made = _rewritten(row["key"], record, verdicts, options, outcome)
            clips = list(_clips(file, row))
            key = shard.free_key(row["key"])
            shard.write(key, made, [raw for _, raw in clips], extension=[kind for kind, _ in clips])


def _clips(file: Any, row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name, offset, size in zip(row["names"], row["offsets"], row["sizes"], strict=True):
        file.seek(offset)
        yield name.rpartition(".")[2], file.read(size)


def _turns(record: dict[str, Any]) -> list[Turn]:
    """The turns of a chat that are text questions with text answers; none for other records."""
    messages = record.get("messages") or []
    found = []
    for i, (asked, given) in enumerate(pairwise(messages)):
        if asked["role"] != "user" or given["role"] != "assistant":
            continue
        if not isinstance(asked["content"], str) or not isinstance(given["content"], str):
            continue
        question = asked["content"].replace("<audio>", "").strip()
        # A spoken question has no text here that could be paraphrased.
        if question and given["content"].strip():
            found.append(Turn(i, question, given["content"].strip()))
    return found


def _rewritten(
    key: str, record: dict[str, Any], verdicts: dict[tuple[str, int], Verdict], options: RewriteConfig, outcome: Outcome
) -> dict[str, Any]:
    """The record with the turns that passed."""
    messages = [dict(message) for message in record.get("messages") or []]
    turns = _turns(record)
    outcome.chats += bool(turns)
    done = []
    for turn in turns:
        outcome.turns += 1
        verdict = verdicts.get((key, turn.user))
        if verdict is None:
            outcome.kept["not drawn (share)"] += 1
            continue
        found = judge_reply(turn.question, turn.answer, verdict, options.max_ratio)
        if isinstance(found, str):
            outcome.kept[found] += 1
            continue
        question, answer = found
        old = messages[turn.user]["content"]
        # The clips stay where they were: before the words, or after them.
        messages[turn.user]["content"] = old.replace(old.replace("<audio>", "").strip(), question)
        messages[turn.user + 1]["content"] = answer
        done.append(turn.user)
        if len(outcome.examples) < _EXAMPLES:
            outcome.examples.append(
                {
                    "key": key,
                    "question": turn.question,
                    "answer": turn.answer,
                    "new_question": question,
                    "new_answer": answer,
                }
            )
    outcome.rewritten += len(done)
    if not done:
        return record
    facts = {"model": options.model, "prompt_sha256": _PROMPT_DIGEST, "turns": done, "messages": record["messages"]}
    return record | {"messages": messages, "rewritten": facts}


def judge_reply(question: str, answer: str, verdict: Verdict, max_ratio: float) -> tuple[str, str] | str:
    """(new question, new answer) if they pass every filter, else the reason why the old ones stay."""
    if verdict.error is not None:
        return "no reply"
    found = _parsed(verdict.text)
    if verdict.refused or found is None:
        return "not the JSON asked for"
    asked, told = found
    if "<audio>" in asked + told or "<|" in asked + told:
        return "special text"
    if _GIVEN_AWAY.search(f"{asked} {told}".lower()) and not _GIVEN_AWAY.search(f"{question} {answer}".lower()):
        return "speaks of annotations"
    if any(len(new) > max_ratio * len(old) + 40 for old, new in ((question, asked), (answer, told))):
        return "too long"
    facts = _facts(answer)
    if not facts <= _words(told):
        return "a fact of the answer is missing"
    if {w for w in _words(told) if w.isdigit()} - _words(answer) - _words(question):
        return "a number that was not there"
    if _polarity(answer) != _polarity(told):
        return "yes and no are not kept"
    if facts & _words(asked) - _words(question):
        return "the question gives the answer away"
    return asked, told


def _parsed(text: str) -> tuple[str, str] | None:
    """Question and answer of a reply; models like to put JSON into a fence."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        reply = json.loads(found.group(0)) if found else None
    except ValueError:
        return None
    if not isinstance(reply, dict):
        return None
    pair = [reply.get(name) for name in ("question", "answer")]
    if not all(isinstance(part, str) and part.strip() for part in pair):
        return None
    return pair[0].strip(), pair[1].strip()  # type: ignore[union-attr]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def _facts(answer: str) -> set[str]:
    """The words of an answer that must stay: all but the plainest, and all of an answer of plain words alone."""
    words = _words(answer)
    return words - _PLAIN or words


def _polarity(text: str) -> str | None:
    """yes or no, if a text begins with one."""
    first = next(iter(re.findall(r"[^\W_]+", text.lower())), None)
    return first if first in ("yes", "no") else None


def _prompt(turn: Turn, key: str) -> str:
    variation = int(draws.share([key, turn.user, "variation"]) * _VARIATIONS) + 1
    return PROMPT.format(question=turn.question, answer=turn.answer, variation=variation)


_PROMPT_DIGEST = hashlib.sha256(PROMPT.encode()).hexdigest()
