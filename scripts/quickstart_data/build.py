"""Makes the synthetic data of the quickstart on the spot: ``python -m scripts.quickstart_data.build --out DIR``.

| shards          | content                                                                             |
|-----------------|-------------------------------------------------------------------------------------|
| asr-train-*     | English sentences in many synthetic voices                                          |
| asr-test        | held-out sentences in held-out synthetic voices                                     |
| domain-train-*  | the recorded English training texts again, and new ones made of their words         |
|                 | (`recombine`), in synthetic voices                                                  |
| joined-train    | real English training prompts joined end to end                                     |
| speed-train     | the real English training prompts, slower and faster                                |
| chat-train-*    | spoken questions with written answers                                               |
| facts-train     | the questions that ask for a fact as text, without a clip                           |
| chat-test       | held-out questions in held-out synthetic voices                                     |
| notes-train, notes-test | notes of General MIDI instruments; unseen pairs of program and pitch in the test |
| denial-train    | sounds without speech, asked for their words                                        |
| dpo-facts       | spoken questions with the right reply and a wrong one                               |
| dpo-train, dpo-test | preference pairs made by rule (`preferences`)                                   |

Shards are FLAC. Made in parallel, a shard at a time; run again, only what is missing is made.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import soxr

from data_pipelines.chat_shards import in_parts
from data_pipelines.clips.make_shards import Job, make
from data_pipelines.clips.picks import draw, pick
from data_pipelines.synthetic.synth import Espeak, draw_voice
from qa_train.data.shards.index import load_index
from qa_train.jobs.executor import Engine
from qa_train.utils.digests import sha256_of_file
from scripts.quickstart_data import notes, preferences, recombine, voice_chat
from scripts.quickstart_data.clip import NO_SOUND, SAMPLE_RATE, Clip, ClipJob, read_shard
from scripts.quickstart_data.spoken_text import TextIndex

CLIPS_PER_SHARD = 1000
SPEEDS = (0.89, 1.11)
# How many synthetic voices repeat each recorded English training text.
DOMAIN_VOICES = 2


def speak_sentences(sentences: list[str], split: str, seed: int, first: int) -> Iterator[Clip]:
    """Sentences as speech recognition clips; the voices are held-out ones for any split but "train"."""
    engine = Espeak()
    for i, text in enumerate(sentences, start=first):
        # A text that comes again gets another voice.
        voice = draw_voice(f"{text} {i}", seed=seed, held_out=split != "train")
        record = {
            "text": text,
            "language": "en",
            "split": split,
            "speaker": f"espeak-{voice.name}",
            "source": "espeak-wordnet",
            "license": "WordNet-3.0",
        }
        yield Clip(f"espeak-asr-{split}-{i:05d}", engine.speak(text, voice), record)


def speak_questions(questions: list[dict[str, str]], split: str, seed: int, first: int) -> Iterator[Clip]:
    """Questions as voice-chat clips; the voices are held-out ones for any split but "train"."""
    engine = Espeak()
    for i, asked in enumerate(questions, start=first):
        question = voice_chat.Question(**asked)
        # A question that comes again gets another voice.
        voice = draw_voice(f"{question.spoken} {i}", seed=seed, held_out=split != "train")
        record = voice_chat.record(question, split=split, speaker=f"espeak-{voice.name}", source="espeak-chat")
        yield Clip(f"espeak-chat-{split}-{i:05d}", engine.speak(f"{question.spoken}?", voice), record)


def type_questions(questions: list[dict[str, str]]) -> Iterator[Clip]:
    """Questions as text-only chats, in the words of a transcript: a fact takes fewer tokens read than heard."""
    for i, asked in enumerate(questions):
        question = voice_chat.Question(**asked)
        messages = [{"role": "user", "content": question.spoken}, {"role": "assistant", "content": question.reply}]
        record = {"messages": messages, "family": question.family, "source": "facts", "license": "CC0-1.0"}
        yield Clip(f"typed-chat-{i:05d}", NO_SOUND, {**record, "audios": [], "task": "chat", "split": "train"})


def speak_pairs(questions: list[dict[str, str]], seed: int) -> Iterator[Clip]:
    """Spoken questions as preference pairs: the right reply, and the reply with another answer of its family."""
    engine = Espeak()
    families = voice_chat.by_family(voice_chat.all_questions(), f"pairs-{seed}")
    for i, asked in enumerate(questions):
        question = voice_chat.Question(**asked)
        answers = [other for other in families[question.family] if other.answer.lower() != question.answer.lower()]
        other = pick(answers, seed, question.spoken, "other")
        wrong = question.reply.replace(question.answer, other.answer)
        voice = draw_voice(f"{question.spoken} pair", seed=seed)
        record = voice_chat.record(question, split="train", speaker=f"espeak-{voice.name}", source="espeak-chat")
        record["messages"] = record["messages"][:1]  # type: ignore[index]
        record |= {"chosen": question.reply, "rejected": wrong if wrong != question.reply else other.reply}
        yield Clip(f"wrong-answer-{i:04d}", engine.speak(f"{question.spoken}?", voice), record)


def deny_speech(shard: str, digest: str, seed: int) -> Iterator[Clip]:
    """Chats about the sounds of a shard that hold no speech."""
    return preferences.denials(list(read_shard(Path(shard))), seed=seed)


def render_notes(items: list[dict[str, Any]], split: str, seed: int) -> Iterator[Clip]:
    """Notes as instrument clips."""
    return notes.render([notes.Note(**item) for item in items], split=split, seed=seed)


def change_speed(shard: str, digest: str, speeds: list[float]) -> Iterator[Clip]:
    """Copies of the English clips of a shard at other speeds (pitch changes with it, as on a tape)."""
    for clip in read_shard(Path(shard), keep=lambda record: record.get("language") == "en"):
        for speed in speeds:
            wave = soxr.resample(clip.wave, SAMPLE_RATE * speed, SAMPLE_RATE)
            yield Clip(f"{clip.key}-speed-{round(100 * speed):03d}", wave, {**clip.record, "speed": speed})


def join_recordings(shard: str, digest: str, num: int, held_out: list[str], seed: int) -> Iterator[Clip]:
    """English clips of a shard joined end to end into ``num`` new ones; their texts keep off ``held_out``."""
    clips = list(read_shard(Path(shard), keep=lambda record: record.get("language") == "en"))
    return recombine.join(clips, num, seed=seed, forbidden=TextIndex(held_out))


@dataclass(frozen=True)
class Sizes:
    """How much is made of what the starter data do not fix, and the seed of the draws."""

    num_sentences: int = 8000
    # New sentences from the words of the recordings.
    num_domain: int = 2400
    num_questions: int = 2000
    num_notes: int = 1000
    seed: int = 0


def jobs(starter: Path, out: Path, sizes: Sizes) -> list[Job]:
    """Every shard to make. Texts come from the starter data, where no training text is a held-out one."""
    seed, sounds = sizes.seed, str(starter / "sound-train.tar")
    train_notes, test_notes = ([asdict(note) for note in side] for side in notes.split())
    train_notes = train_notes[: sizes.num_notes]
    pairs = []
    for split in ("train", "test"):
        shards = [str(starter / f"{kind}-{split}.tar") for kind in ("speech", "sound")]
        digests = [sha256_of_file(Path(shard)) for shard in shards]
        pairs.append(ClipJob(out / f"dpo-{split}.tar", preferences.pairs, (shards, digests, split, seed), 500))
    return [
        *pairs,
        *_sentence_jobs(starter, out, sizes),
        *_recorded_jobs(starter, out, sizes),
        *_question_jobs(out, sizes),
        ClipJob(out / "denial-train.tar", deny_speech, (sounds, sha256_of_file(Path(sounds)), seed), 200),
        ClipJob(out / "notes-train.tar", render_notes, (train_notes, "train", seed), len(train_notes)),
        ClipJob(out / "notes-test.tar", render_notes, (test_notes, "test", seed), len(test_notes)),
    ]


def _sentence_jobs(starter: Path, out: Path, sizes: Sizes) -> list[Job]:
    """Speech of sentences that nobody recorded."""
    seed, sentences = sizes.seed, _lines(starter, "train")
    if sizes.num_sentences > len(sentences):
        raise ValueError(f"{sizes.num_sentences} sentences wanted, {starter / 'texts/train.txt'} has {len(sentences)}")
    # Spread over the sorted list, so that a small number still covers all the words.
    sentences = sorted(sentences, key=lambda text: draw(seed, text))[: sizes.num_sentences]
    test = _lines(starter, "synthetic-test")
    return [
        *_in_shards(out, "asr", speak_sentences, sentences, seed),
        ClipJob(out / "asr-test.tar", speak_sentences, (test, "test", seed, 0), len(test)),
    ]


def _recorded_jobs(starter: Path, out: Path, sizes: Sizes) -> list[Job]:
    """The English recordings at other speeds and joined, and their words in synthetic voices."""
    real, unsaid, seed = starter / "speech-train.tar", _lines(starter, "held-out"), sizes.seed
    records = map(json.loads, load_index(str(real)).table["meta"].to_pylist())
    recorded = sorted(record["text"] for record in records if record["language"] == "en")
    domain = [text for text in recorded if len(text.split()) >= 2] * DOMAIN_VOICES
    domain += recombine.walk(recorded, sizes.num_domain, seed=seed, forbidden=TextIndex(unsaid))
    num_joined, source = sizes.num_domain // 2, (str(real), sha256_of_file(real))
    return [
        *_in_shards(out, "domain", speak_sentences, domain, seed),
        ClipJob(out / "joined-train.tar", join_recordings, (*source, num_joined, unsaid, seed), num_joined),
        ClipJob(out / "speed-train.tar", change_speed, (*source, list(SPEEDS)), 1000),
    ]


def _question_jobs(out: Path, sizes: Sizes) -> list[Job]:
    """Questions: spoken, typed, and as preference pairs."""
    seed, (train, held_out) = sizes.seed, voice_chat.split(voice_chat.NUM_HELD_OUT_QUESTIONS)
    questions = [asdict(question) for question in voice_chat.choose(train, sizes.num_questions, seed=seed)]
    test = [asdict(question) for question in held_out[voice_chat.NUM_UNSEEN_VOICE :]]
    pairs = questions[: sizes.num_questions // 5]
    # What is typed is what is trained: the same held-out texts stay out.
    facts = [asdict(question) for question in train if question.family not in voice_chat.COMMANDS]
    return [
        *_in_shards(out, "chat", speak_questions, questions, seed),
        ClipJob(out / "chat-test.tar", speak_questions, (test, "test", seed, 0), len(test)),
        ClipJob(out / "dpo-facts.tar", speak_pairs, (pairs, seed), len(pairs)),
        ClipJob(out / "facts-train.tar", type_questions, (facts,), len(facts)),
    ]


def _in_shards(out: Path, name: str, maker: Callable[..., Any], items: list[Any], seed: int) -> list[Job]:
    return [
        ClipJob(out / f"{name}-train-{i:05d}.tar", maker, (part, "train", seed, i * CLIPS_PER_SHARD), len(part))
        for i, part in enumerate(in_parts(items, CLIPS_PER_SHARD))
    ]


def _lines(starter: Path, name: str) -> list[str]:
    return (starter / f"texts/{name}.txt").read_text(encoding="utf-8").splitlines()


def build(starter: Path, out: Path, sizes: Sizes, num_workers: int | None = None) -> None:
    """Makes all shards in ``out`` with a progress bar, and prints the time it took."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    todo = jobs(starter, out, sizes)
    workers = num_workers or len(os.sched_getaffinity(0))
    made = make(todo, engine=Engine(workers), what="synthetic data")
    size = sum(job.path.stat().st_size for job in todo) / 1e6
    print(f"{len(todo)} shards, {size:.0f} MB in {out}: {made} clips made in {time.monotonic() - started:.0f} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.quickstart_data.build", description=__doc__.split("\n")[0])
    parser.add_argument("--starter", type=Path, default=Path("data/starter"))
    parser.add_argument("--out", type=Path, required=True)
    helps = {"num_domain": "new sentences from the words of the recordings"}
    for each in fields(Sizes):
        name = each.name
        parser.add_argument(
            f"--{name.removeprefix('num_')}", type=int, default=each.default, dest=name, help=helps.get(name)
        )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    given = vars(parser.parse_args())
    build(given.pop("starter"), given.pop("out"), num_workers=given.pop("workers"), sizes=Sizes(**given))


if __name__ == "__main__":
    main()
