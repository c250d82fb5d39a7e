"""Token counts of records, apart from their audio: with them a row's length is a sum, whatever wording is drawn.

Only the wording changes from epoch to epoch, and it is encoded apart from the answer. So each record has the tokens of
its answer, and of every wording that it may be asked in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qa_train.data.text.prompts import CHAT, PromptBank, Question, Unqualified
from qa_train.data.text.records import same_answers
from qa_train.data.text.sample import Message, Sample, TextPart
from qa_train.data.text.template import Outline, measure, outline_answers, outline_documents, outline_prompt

Ints = NDArray[np.int64]

# Why a record is no sample of a source, apart from its length; the number is stored. 0: it is one.
UNQUALIFIED = "not usable for the task"
REASONS = ("", "filtered by where", "no preference pair", "chosen and rejected are identical", UNQUALIFIED)
# Raised when the same record gives other counts.
_VERSION = 2
# Records whose texts are counted by one call of the tokenizer.
_BLOCK = 2048


@dataclass(frozen=True)
class Use:
    """What a source makes of its records."""

    bank: PromptBank
    tokenizer: Any
    task: str
    template: str
    where: Mapping[str, Any]
    pairs: bool
    last_turn_only: bool

    @property
    def digest(self) -> str:
        """Equal where the counts are."""
        parts = [_VERSION, self.task, self.template, sorted(self.where.items()), self.pairs, self.last_turn_only]
        parts += [self.bank.digest(self.task), tokenizer_digest(self.tokenizer)]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    @property
    def documents(self) -> int:
        """Texts of a sample: a pair has two."""
        return 2 if self.pairs else 1

    def unfit(self, record: dict[str, Any]) -> str:
        """Why a record is not used, before its task is asked; empty if it may be."""
        for name, wanted in self.where.items():
            if record.get(name) not in (wanted if isinstance(wanted, list) else [wanted]):
                return REASONS[1]
        if self.pairs and "chosen" not in record:
            return REASONS[2]
        # Of shards that were indexed before such pairs were refused.
        return REASONS[3] if self.pairs and same_answers(record) else ""


@dataclass(frozen=True)
class TokenCounts:
    """Counts of N records of ``documents`` texts each; 0 for those with a reason.

    A record of kind ``k`` may be asked in ``(wordings[k] >= 0).sum()`` wordings, of so many tokens each.
    """

    reason: NDArray[np.int8]
    # Whether the record has no audio.
    silent: NDArray[np.bool_]
    # Tokens of each text without the wording and without audio tokens [N, documents], and how many are learned [N].
    text: NDArray[np.int32]
    scored: NDArray[np.int32]
    kind: NDArray[np.int32]
    wordings: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.reason)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in vars(self).values())


def count_tokens(records: Iterable[dict[str, Any]], use: Use) -> TokenCounts:
    """Count the texts of records for one use of them."""
    records = iter(records)
    # The tokens of the wordings by all that these depend on, and their numbers by those tokens.
    known: dict[Any, tuple[int, ...]] = {}
    kinds: dict[tuple[int, ...], int] = {}
    blocks = []
    while block := list(islice(records, _BLOCK)):
        blocks.append(list(zip(*_block(block, use, known, kinds), strict=True)))
    reason, silent, text, scored, kind = ([value for block in blocks for value in block[column]] for column in range(5))
    widest = max(map(len, kinds), default=1)
    wordings = [each + (-1,) * (widest - len(each)) for each in kinds]
    return TokenCounts(
        np.asarray(reason, dtype=np.int8),
        np.asarray(silent, dtype=bool),
        np.asarray(text, dtype=np.int32).reshape(-1, use.documents),
        np.asarray(scored, dtype=np.int32),
        np.asarray(kind, dtype=np.int32),
        np.asarray(wordings, dtype=np.int32).reshape(-1, widest),
    )


def _block(
    records: list[dict[str, Any]], use: Use, known: dict[Any, tuple[int, ...]], kinds: dict[tuple[int, ...], int]
) -> Iterator[tuple[int, bool, tuple[int, ...], int, int]]:
    """(reason, silent, tokens of the texts, scored, kind) of each record."""
    reasons, texts, asked = [], [], []
    new: dict[Any, list[Outline]] = {}
    for record in records:
        reason, answers, asks = use.unfit(record), list[Outline](), None
        try:
            if not reason:
                answers, asks = _outlines(record, use, known, new)
        except Unqualified:
            reason = UNQUALIFIED
        reasons.append(REASONS.index(reason))
        texts.append(answers)
        asked.append(asks)
    outlines = [made for each in (*texts, *new.values()) for made in each]
    counted = iter(measure(outlines, use.tokenizer).tolist())
    numbers = [[next(counted) for _ in each] for each in texts]
    known |= {asks: tuple(next(counted)[0] for _ in each) for asks, each in new.items()}
    nothing = [(0, 0)] * use.documents
    for record, code, texts_of, asks in zip(records, reasons, numbers, asked, strict=True):
        wordings = (0,) if asks is None else known[asks]
        if not wordings:
            code, texts_of, wordings = REASONS.index(UNQUALIFIED), [], (0,)
        tokens, learned = zip(*(texts_of or nothing), strict=True)
        yield code, record.get("audios") == [], tokens, sum(learned), kinds.setdefault(wordings, len(kinds))


def _outlines(
    record: dict[str, Any], use: Use, known: Mapping[Any, Any], new: dict[Any, list[Outline]]
) -> tuple[list[Outline], Any]:
    """The texts of a record without its wording, and what its wordings depend on; wordings not yet known are added to
    ``new``."""
    if use.task == CHAT:
        sample = use.bank.sample(record, CHAT, use.template, "", 0, 0, pair=use.pairs)
        silence = [0] * sample.num_clips
        made = outline_documents(sample, use.tokenizer, silence, pair=use.pairs, last_turn_only=use.last_turn_only)
        return made, None
    question = use.bank.question(record, use.task, pair=use.pairs)
    asks = question.asks()
    if asks not in known and asks not in new:
        new[asks] = [
            outline_prompt(_sample(use, question, (question.user(wording),)), use.tokenizer, [0] * question.clips)
            for wording in question.options()
        ]
    if use.pairs:
        chosen, rejected = (TextPart(record["chosen"]),), (TextPart(record["rejected"]),)
        sample = Sample("", (), 0, use.task, None, use.template, chosen, rejected)
    else:
        assert question.target is not None
        sample = Sample("", (Message("assistant", question.target),), 0, use.task, None, use.template)
    return outline_answers(sample, use.tokenizer), asks


def _sample(use: Use, question: Question, messages: tuple[Message, ...]) -> Sample:
    return Sample("", messages, question.clips, use.task, None, use.template)


@lru_cache(maxsize=4)
def tokenizer_digest(tokenizer: Any) -> str:
    """Of all that decides how a text is cut into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    parts.append(sorted(getattr(tokenizer, "all_special_tokens", [])))
    parts.append(backend.to_str() if backend is not None else "")
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
