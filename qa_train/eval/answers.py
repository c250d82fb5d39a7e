"""Answering questions: planned, distributed over processes, kept in a journal, collected.

1. Batches are planned over all questions, longest first, whatever the number of processes: rank r of W answers the
   batches r, r + W, ... So the arithmetic of an answer depends neither on their number nor on when one was killed.
   Who answers each item alone (`Answerer`) gets them in their order. A batch that is longer than planned, because the
   length of a clip was not known, is asked in parts.
2. Each rank appends its answers to its own journal, on disk after every batch, with the digest of the clips and of
   all that an answer depends on, its batch or itself: a later start keeps an answer only while both are the same.
3. Every rank gets all answers, in the order of the questions.

Evaluation, held-out sets during training, preference pairs, the probe and the quickstart call `answer`.
"""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from qa_train.data.audio.table_clip import clip_source
from qa_train.data.audio.waveform import BadAudio, audio_tokens
from qa_train.eval.questions import Question
from qa_train.eval.ranks import Ranks
from qa_train.eval.scores.task_metrics import Prediction
from qa_train.infer.generate import Answer, Decoding, Generator, Item, plan_batches, prompt_tokens
from qa_train.model import load_answering_model
from qa_train.model.stored.weights import weights_digest
from qa_train.utils.atomic import append_json_lines, read_appended, write_json_lines
from qa_train.utils.digests import sha256_of, sha256_of_open

# Lengths of prompts -> their places by batch, see `plan_batches`.
Bounded = Callable[[Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one question: an answer, or the reason why it is missing."""

    text: str = ""
    truncated: bool = False
    error: str | None = None
    # Digests of the clips, and of what the answer depends on: all of its batch, or itself; empty without a journal.
    clips: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Limits:
    """What bounds a batch: most rows, and most prompt + new tokens."""

    batch_size: int = 32
    token_budget: int = 16384

    def __post_init__(self) -> None:
        if wrong := [f"{name}={value}" for name, value in asdict(self).items() if value < 1]:
            raise ValueError(f"{', '.join(wrong)}: use 1 or more")


class Answerer(Protocol):
    """Whatever answers items in order: a ``Generator``, or an endpoint.

    With an attribute ``alone`` that is true, an answer does not depend on the items asked in the same call. Only what
    is asked for several samples needs ``sample``, see `qa_train.infer.generate.Generator.sample`.
    """

    def generate(self, items: Sequence[Item], decoding: Decoding | None = None) -> list[Answer]:
        """Answers in the order of the items."""
        ...


def load_answerer(
    checkpoint: str, device: str, *, verify: bool, allow_missing: Sequence[str]
) -> tuple[Generator, dict[str, Any]]:
    """A checkpoint that answers, and what names its answers.

    Raises:
        ValueError: a checkpoint that cannot be read.
    """
    model, processor = load_answering_model(checkpoint, device=device, verify=verify, allow_missing=allow_missing)
    return Generator(model, processor), {"weights": weights_digest(model)}


class Journal:
    """Answers on disk, one JSON line each: ``folder/NAME-RANK.jsonl``, under the identity of model, data and decoding.

    ``known`` holds {(number of the answer, digest of its batch): outcome} of that identity, by whichever ranks gave
    them; a file of another identity is replaced. Failures are not kept: a clip that could not be read is tried again.
    ``on_change`` is called before every new answer. Making one is a meeting point of the ranks.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        identity: Mapping[str, Any],
        ranks: Ranks | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        ranks = ranks or Ranks()
        self.path, self._on_change = folder / f"{name}-{ranks.rank}.jsonl", on_change
        self.known: dict[tuple[int, str], Outcome] = {}
        own: dict[int, Outcome] = {}
        for path in self.files(folder, name):
            kept = {i: outcome for i, outcome in read_journal(path, identity).items() if outcome.error is None}
            self.known |= {(i, outcome.batch): outcome for i, outcome in kept.items()}
            own = kept if path == self.path else own
        # All have read before one writes.
        ranks.meet()
        folder.mkdir(parents=True, exist_ok=True)
        write_json_lines(self.path, [dict(identity), *_lines(own)])

    @staticmethod
    def files(folder: Path, name: str) -> list[Path]:
        """Those of all ranks."""
        return sorted(folder.glob(f"{glob.escape(name)}-*.jsonl"))

    def add(self, outcomes: Mapping[int, Outcome]) -> None:
        """Append answers, those that no journal has, and have them on disk before returning."""
        new = {i: o for i, o in outcomes.items() if o.error is None and self.known.get((i, o.batch)) != o}
        if not new:
            return
        self._on_change()
        self.known |= {(i, outcome.batch): outcome for i, outcome in new.items()}
        append_json_lines(self.path, _lines(new))


def _lines(outcomes: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    return [{"index": number, **asdict(outcome)} for number, outcome in outcomes.items()]


def read_journal(path: Path, identity: Mapping[str, Any]) -> dict[int, Outcome]:
    """The outcomes of a journal of this identity; {} for another one or none."""
    if not path.is_file():
        return {}
    rows = read_appended(path)
    if next(rows, None) != json.loads(json.dumps(dict(identity))):
        return {}
    found: dict[int, Outcome] = {}
    for row in filter(None, rows):
        # What is damaged is asked again.
        with suppress(KeyError, TypeError):
            index = row.pop("index")
            found[index] = Outcome(**row)
    return found


def answer(
    questions: Sequence[Question],
    answerer: Answerer,
    decoding: Decoding | None = None,
    *,
    samples: int = 1,
    limits: Limits | None = None,
    ranks: Ranks | None = None,
    journal: Journal | None = None,
    in_step: bool = False,
    all_may_fail: bool = False,
    on_progress: Callable[[int], None] = lambda n: None,
) -> list[Outcome]:
    """All outcomes, on every rank: answer j of ``samples`` to question i has the number ``i * samples + j``.

    ``in_step``: all ranks answer every batch together and rank 0's answers count, because no rank has the whole model
    (ZeRO-3); not with a journal. ``all_may_fail``: also a first batch that is refused as a whole is an outcome.
    ``on_progress`` gets the number of questions done since its last call, by all ranks.
    A clip that cannot be read and a question that an endpoint refuses give outcomes with ``error``.

    Raises:
        ValueError: the first batch of a new journal is refused as a whole: the fault is not in the questions (unless
            ``all_may_fail``). Or several samples with greedy decoding.
    """
    decoding, limits, ranks = decoding or Decoding(), limits or Limits(), ranks or Ranks()
    alone, rows = getattr(answerer, "alone", False), max(1, limits.batch_size // samples)
    in_order: list[Sequence[int]] = [range(len(questions))[i : i + rows] for i in range(0, len(questions), rows)]
    bounded = partial(
        plan_batches, rows=rows, tokens=limits.token_budget // samples, new_tokens=decoding.max_new_tokens
    )
    plan = in_order if alone else bounded([question.tokens for question in questions])
    found: dict[int, Outcome] = {}
    stride = 1 if in_step else ranks.world
    for number, batch in enumerate(plan):
        if not in_step and number % ranks.world != ranks.rank:
            continue
        asked = _Batch(questions, batch, samples, journal, alone=alone)
        asked.load()
        if in_step:
            asked.without(ranks.gather(asked.failed))
        # Every batch, and every part of one, draws its own random numbers.
        seeds = count(decoding.seed + number, len(plan))
        found |= asked.answers(answerer, decoding, bounded, seeds, all_may_fail)
        on_progress(sum(map(len, plan[number : number + stride])))
    for part in reversed(ranks.gather(found)):
        found |= part
    return [found[number] for number in range(len(questions) * samples)]


class _Batch:
    """Questions that are asked together: all of them or none, so that the arithmetic is the same in every try. Of those
    that are answered ``alone``, only what is missing.
    """

    def __init__(
        self, questions: Sequence[Question], batch: Sequence[int], samples: int, journal: Journal | None, *, alone: bool
    ) -> None:
        self.questions, self.journal, self.alone = questions, journal, alone
        self.places = {i: range(i * samples, (i + 1) * samples) for i in batch}
        self.clips = {i: clips_digest(questions[i].clips) if journal else "" for i in batch}
        parts = [[i] for i in batch] if alone else [batch]
        self.names = {
            i: sha256_of([[each, self.clips[each]] for each in part]) if journal else "" for part in parts for i in part
        }
        known = journal.known if journal else {}
        named = [(place, self.names[i]) for i, of_one in self.places.items() for place in of_one]
        self.known = {place: known[place, name] for place, name in named if (place, name) in known}
        self.items: dict[int, Item] = {}
        self.failed: dict[int, Outcome] = {}

    def load(self) -> None:
        """Read what has to be asked: nothing of a batch that is known."""
        missing = [i for i, places in self.places.items() if not self.known.keys() >= set(places)]
        others = [] if self.alone or not missing else [i for i in self.places if i not in missing]
        # Clips that failed before come first: while they still fail, nothing is asked again.
        for i in [*missing, *others]:
            if i not in missing and not self.items:
                break
            try:
                self.items[i] = Item(self.questions[i].sample, self.questions[i].load())
            except BadAudio as error:
                outcome = Outcome(error=str(error), clips=self.clips[i], batch=self.names[i])
                self.failed |= dict.fromkeys(self.places[i], outcome)

    def without(self, failed: Sequence[Mapping[int, Outcome]]) -> None:
        """Skip what any rank could not read: all must ask the same."""
        for others in failed:
            self.failed = {**others, **self.failed}
        self.items = {i: item for i, item in self.items.items() if self.places[i][0] not in self.failed}

    def answers(
        self, answerer: Any, decoding: Decoding, bounded: Bounded, seeds: Iterator[int], all_may_fail: bool
    ) -> dict[int, Outcome]:
        """The outcomes of the batch, new ones added to the journal; its parts draw by one of ``seeds`` each."""
        samples, said = len(next(iter(self.places.values()))), dict[int, list[Answer]]()
        for part, seed in zip(self._parts(bounded), seeds, strict=False):
            items, drawing = [self.items[i] for i in part], replace(decoding, seed=seed)
            if samples > 1:
                answers = answerer.sample(items, samples, drawing)
            else:
                answers = [[one] for one in answerer.generate(items, drawing)]
            said |= zip(part, answers, strict=True)
        refusals = [one.error for each in said.values() for one in each]
        first = self.journal is not None and not self.journal.known and len(said) > 1
        if first and all(refusals) and not all_may_fail:
            raise ValueError(f"all of the first {len(said)} questions were refused: {refusals[0]}")
        new: dict[int, Outcome] = {}
        for i, each in said.items():
            for place, one in zip(self.places[i], each, strict=True):
                new[place] = Outcome(one.text, one.truncated, one.error, self.clips[i], self.names[i])
        found = self.failed | self.known | new
        if self.journal is not None:
            self.journal.add(found)
        return found

    def _parts(self, bounded: Bounded) -> list[list[int]]:
        """The questions to ask in one call each, by the lengths of the clips as they were read."""
        order = [i for i in self.places if i in self.items]
        if self.alone:
            return [order] if order else []
        items = [self.items[i] for i in order]
        lengths = [prompt_tokens(item.sample, sum(audio_tokens(len(wave)) for wave in item.waves)) for item in items]
        return [[order[place] for place in part] for part in bounded(lengths)]


def clips_digest(paths: Sequence[Path]) -> str:
    """Of the bytes of an item's clips; a file that cannot be opened counts as such."""
    found = []
    for path in paths:
        try:
            source = clip_source(path)
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                found.append(sha256_of_open(file))
        except (OSError, BadAudio) as error:
            found.append(type(error).__name__)
    return sha256_of(found)


def predictions(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> list[Prediction]:
    """Questions and outcomes as input of the scores."""
    return [
        Prediction(o.text, q.references, q.language, q.choices, o.truncated, o.error)
        for q, o in zip(questions, outcomes, strict=True)
    ]
