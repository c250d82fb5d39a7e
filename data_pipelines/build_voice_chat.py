"""`qa-train data voice-chat path=FILE.jsonl out=FOLDER`: text instruction data, spoken.

1. Dialogues are read from JSONL (messages, ShareGPT conversations, instruction/output or prompt/response).
2. Those that cannot be spoken (code, addresses, tables, long texts ...) are skipped and counted.
3. Every user turn is spoken (voice and speed drawn from the text), put into a room, and given noise. The answers
   stay text: a chat in which the user speaks every turn.

Draws depend on (seed, text) and (seed, key) alone. A shard is made by one process, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from data_pipelines.chat_shards import Chat, SpokenConfig, build, in_parts
from data_pipelines.clips.picks import between, draw, pick
from data_pipelines.clips.read_shards import Place, places
from data_pipelines.importing.import_report import Report
from data_pipelines.synthetic.acoustics import at_snr, coloured_noise, in_room, unclipped
from data_pipelines.synthetic.speakable import one_line, unspeakable
from data_pipelines.synthetic.speakers import Speaker, SpeakerOptions, open_speaker
from qa_train.data.text.chat_rows import chat_record
from qa_train.data.text.json_rows import read_rows
from qa_train.data.text.records import BadRecord
from qa_train.jobs.executor import EngineOptions

_RT60_S = (0.15, 0.6)
_DIRECT_DB = (0.0, 12.0)
Turns = list[tuple[str, str]]


@dataclass
class VoiceChatConfig(SpokenConfig):
    """Options of `qa-train data voice-chat`."""

    # JSONL, several as [A,B]: messages, conversations (ShareGPT), instruction/input/output, or prompt/response.
    path: Any = MISSING
    # Share of the utterances with the reverberation of a room (RT60 of 0.15 to 0.6 s).
    rooms: float = 0.3
    # Share of the utterances with noise.
    noise_share: float = 0.5
    # Range of its signal-to-noise ratio, in decibels.
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    # Shards whose clips without speech serve as noise; empty: coloured noise.
    noise: list[str] = field(default_factory=list)
    # Dialogues with a question of more words are skipped.
    max_words: int = 60
    # Dialogues with an answer of more words are skipped.
    max_answer_words: int = 200
    # Maximum number of turns; further ones are dropped.
    max_turns: int = 3
    # Language of the text, written into the records.
    language: str = "en"
    # Licence of the text, written into the records.
    license: str = ""
    # Prefix of shards and keys.
    name: str = "voice-chat"
    # Maximum number of chats; null: all.
    max_samples: int | None = None


def main(options: VoiceChatConfig) -> int:
    """Speak the user's turns of written chats; the answers stay text.

    Dialogues that cannot be spoken (code, addresses, tables, long texts) are skipped and counted.
    """
    print(build_voice_chat(options).text())
    return 0


def build_voice_chat(options: VoiceChatConfig) -> Report:
    """Build the shards; ValueError for wrong options, files that cannot be read, or a synthesiser that fails."""
    if options.split not in ("train", "test") or len(options.noise_snr_db) != 2:
        raise ValueError("data voice-chat: split is train or test, and noise_snr_db has two numbers [LOW,HIGH]")
    if min(options.samples_per_shard, options.max_turns, options.max_words, options.max_answer_words) < 1:
        raise ValueError("data voice-chat: samples_per_shard, max_turns, max_words, max_answer_words: at least 1")
    report = Report("voice chat", options.split, options.license or "not given")
    files = options.path if isinstance(options.path, list) else [options.path]
    items: list[dict[str, Any]] = []
    for path in map(Path, files):
        for name, turns in read_dialogues(path):
            reason = _skip_reason(turns, options)
            if reason is not None:
                report.drop(name, reason, turns[0][1][:80] if isinstance(turns, list) and turns else "")
                continue
            assert isinstance(turns, list)
            kept = _shortened(turns, options.max_turns)
            if len(kept) < len(turns):
                report.drop(name, f"turns after the first {options.max_turns} (the dialogue is kept)")
            items.append({"key": f"{options.name}-{options.split}-{name}", "turns": kept})
            if len(items) == options.max_samples:
                break
    elsewhere = {"path", "out", "workers", *(each.name for each in fields(EngineOptions))}
    settings = {name: value for name, value in asdict(options).items() if name not in elsewhere}
    noises = [asdict(place) for place in places(options.noise, lambda record: "text" not in record)]
    prefix = f"{options.name}-{options.split}"
    parts = [((part, settings, noises), len(part)) for part in in_parts(items, options.samples_per_shard)]
    return build(prefix, options.out, speak, parts, report, options.engine_with(options.workers))


def read_dialogues(path: Path) -> Iterator[tuple[str, Turns | str]]:
    """(name, turns) of each line of a JSONL file; in place of turns, two words about why there are none."""
    if not path.is_file():
        raise ValueError(f"data voice-chat: no file {path}")
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem)
    for number, _, row in read_rows(path):
        yield f"{stem}-{number - 1:07d}", "not JSON" if isinstance(row, BadRecord) else _turns(row)


def _turns(row: dict[str, Any]) -> Turns | str:
    try:
        record, clips = chat_record(row)
    except BadRecord:
        return "unknown fields"
    if clips or "chosen" in record:
        return "it has recordings" if clips else "a preference pair"
    found = [(str(turn["role"]), str(turn["content"])) for turn in record["messages"]]
    first = 1 if found[0][0] == "system" else 0
    spoken = [role for role, _ in found[first:]]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        return "turns do not alternate"
    return found


def _skip_reason(turns: Turns | str, options: VoiceChatConfig) -> str | None:
    if isinstance(turns, str):
        return turns
    for role, text in _shortened(turns, options.max_turns):
        if role == "user" and (reason := unspeakable(text, max_words=options.max_words, latin=options.tts == "espeak")):
            return f"question: {reason}"
        # What is said in a voice chat could be said aloud.
        if role == "assistant" and (reason := unspeakable(text, max_words=options.max_answer_words, latin=False)):
            return f"answer: {reason}"
    return None


def _shortened(turns: Turns, max_turns: int) -> Turns:
    first = 1 if turns[0][0] == "system" else 0
    return turns[: first + 2 * max_turns]


def speak(items: list[dict[str, Any]], settings: dict[str, Any], noises: list[dict[str, Any]]) -> Iterator[Chat]:
    """The chats of one shard; every user turn becomes a clip."""
    speaker = open_speaker(SpeakerOptions.of(settings))
    found = [Place(**noise) for noise in noises]
    for item in items:
        waves: list[np.ndarray] = []
        made: list[dict[str, Any]] = []
        messages = []
        for role, text in item["turns"]:
            if role != "user":
                messages.append({"role": role, "content": text})
                continue
            wave, how = _utterance(speaker, one_line(text), settings, found, item["key"], len(waves))
            waves.append(wave)
            made.append(how)
            messages.append({"role": "user", "content": "<audio>"})
        record = {
            "messages": messages, "language": settings["language"], "task": "chat", "split": settings["split"],
            "source": settings["name"], "spoken": made, "synthetic": settings["tts"].partition(":")[0],
        }  # fmt: skip
        if settings["license"]:
            record["license"] = settings["license"]
        if len(waves) == 1:
            # The transcript of the only clip: the record can be a sample of speech recognition too.
            record["text"] = made[0]["text"]
        yield Chat(item["key"], record, tuple(waves))


def _utterance(
    speaker: Speaker, text: str, settings: dict[str, Any], noises: list[Place], key: str, turn: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """One spoken text as the microphone hears it, and how that came about."""
    names = (settings["seed"], key, turn)
    speech = speaker(text, settings["seed"], settings["split"] == "test")
    how: dict[str, Any] = {"text": text, "voice": speech.voice, "speed": speech.speed}
    wave = unclipped(speech.wave)
    if draw(*names, "in a room") < settings["rooms"]:
        rt60 = round(between(_RT60_S, *names, "rt60"), 3)
        direct = round(between(_DIRECT_DB, *names, "direct"), 1)
        wave = in_room(wave, rt60, direct, *names)
        how |= {"rt60_s": rt60, "direct_db": direct}
    if draw(*names, "noisy") < settings["noise_share"]:
        how["snr_db"] = round(between(settings["noise_snr_db"], *names, "snr"), 1)
        if noises:
            place = pick(noises, *names, "which")
            other, how["noise"] = place.wave(), place.origin
        else:
            other, how["noise"] = coloured_noise(len(wave), *names), "coloured"
        wave = at_snr(wave, other, how["snr_db"])
    return wave, how
