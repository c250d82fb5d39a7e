"""A model's own answers to questions about recordings, drawn so that the same command goes on after a kill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from qa_train.data.audio.waveform import BadAudio
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Outcome
from qa_train.eval.eval_sets import EvalSet, record_questions
from qa_train.eval.questions import Question
from qa_train.eval.ranks import Ranks
from qa_train.infer.generate import Decoding, Generator, Item
from qa_train.preferences.rank import ByWordErrors, Pair, Ranker, ranked

# Questions are drawn in chunks of so many batches, sorted by length within: their waveforms are held in memory, and an
# interrupted try repeats at most one chunk of each rank.
_CHUNK_BATCHES = 4


def sampled_pairs(
    generator: Generator,
    clips: EvalSet,
    bank: PromptBank,
    *,
    samples: int = 4,
    temperature: float = 0.9,
    margin: float = 0.15,
    max_new_tokens: int = 64,
    seed: int = 0,
    ranker: Ranker | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Pair]:
    """Pairs for the questions about ``clips`` (training data, never held-out data), in one go.

    ``ranker``: by default word error rate with ``margin``, for transcription questions. The chosen answer is the best
    sample, so that the model learns from what it can say. ``left_out`` counts, by reason, the questions that make no
    pair because they cannot be asked.
    """
    left_out = Counter() if left_out is None else left_out
    questions = askable(record_questions(clips, bank), left_out)
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    drawn = draw_answers(generator, questions, samples, decoding)
    yield from ranked(questions, drawn, samples, ranker or ByWordErrors(margin), left_out)


def askable(questions: Sequence[Question], left_out: Counter[str]) -> list[Question]:
    """The questions that a pair can hold: one user message about one clip."""
    kept = []
    for question in questions:
        if len(question.sample.messages) > 1:
            left_out["several turns or a system prompt"] += 1
        elif question.sample.num_clips != 1:
            left_out["not exactly one clip"] += 1
        else:
            kept.append(question)
    return kept


def draw_answers(
    generator: Generator,
    questions: Sequence[Question],
    samples: int,
    decoding: Decoding,
    *,
    known: Mapping[int, Outcome] | None = None,
    ranks: Ranks | None = None,
    keep: Callable[[dict[int, Outcome]], None] = lambda new: None,
) -> dict[int, Outcome]:
    """Sample ``samples`` answers to each question; answer j to question i has the number ``i * samples + j``.

    Chunks of questions are asked as a whole, and rank r of W takes the chunks r, r + W, ...: the answers depend neither
    on the number of ranks nor on where an earlier try ended. ``known`` holds that try's answers, ``keep`` receives the
    new ones chunk by chunk. A clip that cannot be read has outcomes with ``error``, and is tried again next time.
    """
    drawn, ranks = dict(known or {}), ranks or Ranks()
    size = _CHUNK_BATCHES * max(1, generator.batch_size // samples)
    for number, start in enumerate(range(0, len(questions), size)):
        if number % ranks.world == ranks.rank:
            chunk = range(start, min(start + size, len(questions)))
            new = _draw_chunk(generator, questions, chunk, samples, decoding, drawn)
            drawn |= new
            keep(new)
    return drawn


def _draw_chunk(
    generator: Generator,
    questions: Sequence[Question],
    chunk: range,
    samples: int,
    decoding: Decoding,
    known: Mapping[int, Outcome],
) -> dict[int, Outcome]:
    """Outcomes of a chunk that is not answered in full yet."""
    places = {i: range(i * samples, (i + 1) * samples) for i in chunk}
    if all(place in known for i in chunk for place in places[i]):
        return {}
    new: dict[int, Outcome] = {}
    items: dict[int, Item] = {}
    for i in chunk:
        try:
            items[i] = Item(questions[i].sample, questions[i].load())
        except BadAudio as error:
            new |= dict.fromkeys(places[i], Outcome(error=str(error)))
    # All that can be read or nothing, so that the batches and their random numbers are the same in every try.
    if any(place not in known for i in items for place in places[i]):
        answers = generator.sample(list(items.values()), samples, decoding)
        for i, of_one in zip(items, answers, strict=True):
            new |= {place: Outcome(a.text, a.truncated) for place, a in zip(places[i], of_one, strict=True)}
    return new
