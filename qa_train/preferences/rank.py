"""Preference pairs from a model's own answers, ranked by a metric that can be checked or by a judge.

For every clip, k answers are sampled; the best becomes ``chosen`` and the worst ``rejected`` when
they are far enough apart: by word error rate against the transcript (`ByWordErrors`), by whether it contains the right
label (`ByLabel`; neither uses another model), by any metric, one's own too (`ByMetric`), or by a language model that
sees a description of the recording (`ByJudge`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, permutations
from typing import Any, Protocol

import numpy as np

from qa_train.data.text.content import is_answer
from qa_train.eval.answers import Outcome
from qa_train.eval.questions import Question, part_text
from qa_train.eval.scores.labels import label_contained
from qa_train.eval.scores.normalise import transcript_words
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import item_statistics, lower_is_better, word_edits
from qa_train.llm.judge import Judge, Verdict

# Number of questions ranked together.
_RANKED = 256


@dataclass(frozen=True)
class Pair:
    """One preference pair: what was asked about which clip, and the two answers."""

    key: str
    prompt: str
    load: Callable[[], np.ndarray]
    chosen: str
    rejected: str
    language: str | None

    @property
    def wave(self) -> np.ndarray:
        """The clip, float32 [n] at 16 kHz; read when it is asked for, so that many pairs can be held at once."""
        return self.load()

    def record(self, split: str) -> dict[str, Any]:
        """The JSON member of the pair's shard record."""
        return {
            "messages": [{"role": "user", "content": f"<audio>{self.prompt}"}],
            "chosen": self.chosen,
            "rejected": self.rejected,
            "language": self.language,
            "split": split,
            "source": "sampled",
        }


class Ranker(Protocol):
    """Finds the best and the worst of several answers."""

    def rank(self, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[tuple[str, str] | None]:
        """(best, worst) for each question; None where they are too near one another."""
        ...


@dataclass(frozen=True)
class ByWordErrors:
    """By word error rate against the transcript, which must differ by ``margin`` (edits / reference words).

    ``transcript``: the transcript itself is one of the answers, hence the best. An SFT term of the loss then teaches
    what was said; a model's best answer can still hold errors.
    """

    margin: float = 0.15
    transcript: bool = False

    def rank(self, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[tuple[str, str] | None]:
        """See `Ranker`."""
        return [self._best_and_worst(q, texts) for q, texts in zip(questions, answers, strict=True)]

    def _best_and_worst(self, question: Question, drawn: list[str]) -> tuple[str, str] | None:
        reference = transcript_words(question.references[0], question.language)
        texts = [question.references[0], *drawn] if self.transcript else drawn
        if not reference or len(set(texts)) < 2:
            return None
        answers = [transcript_words(text, question.language) for text in texts]
        edits = word_edits([reference] * len(answers), answers)[:, 0] / len(reference)
        best, worst = int(edits.argmin()), int(edits.argmax())
        if edits[worst] - edits[best] < self.margin or not texts[best] or not texts[worst]:
            return None
        return texts[best], texts[worst]


@dataclass(frozen=True)
class ByLabel:
    """By whether an answer contains the record's label (and no other of its ``choices``): a right one against a wrong
    one.

    Of several, the two whose numbers of words are nearest, so that length teaches nothing.
    """

    def rank(self, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[tuple[str, str] | None]:
        """See `Ranker`."""
        return [self._right_and_wrong(q, [t for t in texts if t]) for q, texts in zip(questions, answers, strict=True)]

    def _right_and_wrong(self, question: Question, texts: list[str]) -> tuple[str, str] | None:
        right = [text for text in texts if label_contained(_prediction(question, text))]
        wrong = [text for text in texts if text not in right]
        pairs = [(a, b) for a in right for b in wrong]
        return min(pairs, key=lambda pair: abs(_words(pair[0]) - _words(pair[1])), default=None)


@dataclass(frozen=True)
class ByMetric:
    """By the points that a metric gives each answer, which must differ by ``margin`` points.

    An answer that is empty is never chosen or rejected: it would teach when to be silent.
    """

    metric: str
    margin: float

    def rank(self, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[tuple[str, str] | None]:
        """See `Ranker`."""
        asked = [(q, text) for q, texts in zip(questions, answers, strict=True) for text in texts]
        if not asked:
            return [None] * len(questions)
        rows, value = item_statistics(self.metric, [_prediction(*each) for each in asked])
        points = iter((value(rows) * (-1 if lower_is_better(self.metric) else 1)).tolist())
        return [self._best_and_worst([(next(points), text) for text in texts]) for texts in answers]

    def _best_and_worst(self, scored: list[tuple[float, str]]) -> tuple[str, str] | None:
        said = [each for each in scored if each[1]]
        if len(said) < 2:
            return None
        best, worst = max(said, key=lambda each: each[0]), min(said, key=lambda each: each[0])
        return (best[1], worst[1]) if best[0] > worst[0] and best[0] - worst[0] >= self.margin else None


def _prediction(question: Question, text: str) -> Prediction:
    return Prediction(text, question.references, language=question.language, choices=question.choices)


def _words(text: str) -> int:
    return len(text.split())


def balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """As many pairs whose chosen answer has more words as pairs whose rejected one has, and all of equal length.

    Those farthest apart in length are dropped. A set in which the better answers are all the longer ones has only
    pairs of equal length left: it cannot teach anything but length.
    """
    gaps = [_words(pair.chosen) - _words(pair.rejected) for pair in pairs]
    longer, shorter = ([i for i, gap in enumerate(gaps) if gap * sign > 0] for sign in (1, -1))
    count = min(len(longer), len(shorter))
    kept = {i for i, gap in enumerate(gaps) if not gap}
    for side in (longer, shorter):
        kept.update(sorted(side, key=lambda i: (abs(gaps[i]), i))[:count])
    return [pair for i, pair in enumerate(pairs) if i in kept]


JUDGE_PROMPT = """You compare two answers to a question about an audio recording that you cannot hear.

What the recording holds, or the right answer: {facts}
The question: {question}

Answer A: {a}
Answer B: {b}

Which answer is more correct and more helpful? An answer that claims what the recording does not hold is worse than one
that says less. Length is no merit. Reply with one word: A, B or TIE."""


@dataclass
class ByJudge:
    """By a language model that sees the reference: every two answers are compared in both orders. An answer wins a
    comparison only if both orders agree. The best has the most wins and must have beaten the worst. ``unclear`` counts
    comparisons whose orders disagree, ``failed`` those without a usable verdict.
    """

    judge: Judge
    counts: dict[str, int] = field(default_factory=lambda: {"comparisons": 0, "unclear": 0, "failed": 0})

    def rank(self, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[tuple[str, str] | None]:
        """See `Ranker`; all comparisons are asked together."""
        distinct = [[text for text in dict.fromkeys(texts) if text] for texts in answers]
        prompts = {
            (number, a, b): self._prompt(questions[number], texts[a], texts[b])
            for number, texts in enumerate(distinct)
            for a, b in permutations(range(len(texts)), 2)
        }
        verdicts = dict(zip(prompts, self.judge.ask(list(prompts.values())), strict=True))
        return [self._best_and_worst(number, texts, verdicts) for number, texts in enumerate(distinct)]

    def _prompt(self, question: Question, a: str, b: str) -> str:
        asked = part_text(question.sample.messages[-1]) or "(spoken in the recording)"
        return JUDGE_PROMPT.format(facts=" / ".join(question.references), question=asked, a=a, b=b)

    def _best_and_worst(
        self, number: int, texts: list[str], verdicts: dict[tuple[int, int, int], Verdict]
    ) -> tuple[str, str] | None:
        beaten: dict[int, set[int]] = {i: set() for i in range(len(texts))}
        for a, b in combinations(range(len(texts)), 2):
            first, second = (_choice(verdicts[number, *order]) for order in ((a, b), (b, a)))
            self.counts["comparisons"] += 1
            if first is None or second is None:
                self.counts["failed"] += 1
            elif first == "A" and second == "B":
                beaten[a].add(b)
            elif first == "B" and second == "A":
                beaten[b].add(a)
            else:
                self.counts["unclear"] += first != "TIE" or second != "TIE"
        if len(texts) < 2:
            return None
        best = max(beaten, key=lambda i: (len(beaten[i]), -i))
        lost = {i: sum(i in others for others in beaten.values()) for i in beaten}
        worst = max(beaten[best], key=lambda i: (lost[i], -len(beaten[i]), -i), default=None)
        return None if worst is None else (texts[best], texts[worst])


def _choice(verdict: Verdict) -> str | None:
    """A, B or TIE; None for anything else."""
    word = "" if verdict.error or verdict.refused else verdict.text.strip().strip(".*\"'").upper()
    return word if word in ("A", "B", "TIE") else None


def ranked(
    questions: Sequence[Question],
    drawn: Sequence[Outcome],
    samples: int,
    ranker: Ranker,
    skipped: Counter[str],
) -> Iterator[Pair]:
    """The pairs among ``samples`` answers to each question, in the order of `qa_train.eval.answers.answer`.

    Unreadable clips are counted in ``skipped``.
    """
    for start in range(0, len(questions), _RANKED):
        asked, answers = [], []
        for i in range(start, min(start + _RANKED, len(questions))):
            outcomes = drawn[i * samples : (i + 1) * samples]
            if outcomes[0].error is not None:
                skipped["unreadable clip"] += 1
                continue
            asked.append(questions[i])
            answers.append([o.text.strip() for o in outcomes if not o.truncated and is_answer(o.text)])
        for question, pair in zip(asked, ranker.rank(asked, answers), strict=True):
            if pair is not None:
                prompt = part_text(question.sample.messages[-1])
                yield Pair(question.sample.key, prompt, partial(_first_clip, question), *pair, question.language)


def _first_clip(question: Question) -> np.ndarray:
    return question.load()[0]
