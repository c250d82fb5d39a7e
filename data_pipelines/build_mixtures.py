"""`qa-train data mixtures speech=... sounds=... out=FOLDER`: several things to hear in one clip.

- ``over``: speech over a sound, at a drawn signal-to-noise ratio; asked for the words, or for the sound behind them.
- ``two``: two speakers one after another; asked for all words, for the first, or for the second.
- ``command``: a spoken command and a sound in one clip, with no text at all; the answer does what was said. This is
  the case that a model can only get right by telling on its own what is a request and what is to be analysed.

``parts`` in the record lists what was mixed, with times and levels. Draws depend on (seed, kind, number).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from omegaconf import MISSING

from data_pipelines.build_analysis import labels_of
from data_pipelines.chat_shards import Chat, SpokenConfig, build, in_parts
from data_pipelines.clips.picks import between, draw, pick
from data_pipelines.clips.read_shards import Place, places
from data_pipelines.importing.import_report import Report
from data_pipelines.synthetic.acoustics import at_snr, level, unclipped
from data_pipelines.synthetic.speakers import Speaker, SpeakerOptions, open_speaker
from qa_train.data.audio.waveform import SAMPLE_RATE

KINDS = ("over", "two", "command")
_WORDS = ("What does the speaker say?", "What are the words in this recording?", "Please write down what is said.")
_BEHIND = (
    "What sound is in the background?",
    "What can be heard behind the speaker?",
    "Which sound is there besides the voice?",
)
_BOTH = ("Two people speak. What do they say?", "Write down what each speaker says.")
_FIRST = ("What does the first speaker say?", "Two people speak. What does the first one say?")
_SECOND = ("What does the second speaker say?", "Two people speak. What does the second one say?")
COMMANDS = (
    "What sound is this?", "Tell me what you hear in the background.", "Which sound comes with my voice?",
    "Listen, what is making this noise?", "Please tell me what this sound is.", "What else do you hear?",
)  # fmt: skip
_PAUSE_S = (0.3, 0.8)


@dataclass
class MixtureConfig(SpokenConfig):
    """Options of `qa-train data mixtures`."""

    # Indexed shards of records with text.
    speech: Any = MISSING
    # Indexed shards of records with a label or caption and no text.
    sounds: Any = MISSING
    # Only records with this value, e.g. where.split=train.
    where: dict[str, Any] = field(default_factory=dict)
    # Number of clips with speech over a sound.
    over: int = 100
    # Number of clips with two speakers.
    two: int = 100
    # Number of clips with a spoken command about a sound.
    command: int = 100
    # Signal-to-noise ratio, in decibels, of the speech over the sound behind it.
    snr_db: list[float] = field(default_factory=lambda: [0.0, 20.0])
    # Maximum length of a part of a mixture, in seconds.
    max_duration_s: float = 15.0
    # Prefix of shards and keys.
    name: str = "mixtures"


def main(options: MixtureConfig) -> int:
    """Make clips with several sounds or speakers, and chats about them.

    - over: speech over a sound; asked for the words or for the sound
    - two: two speakers in turn; asked for both, the first or the second
    - command: a spoken request and a sound; the answer does what was asked
    """
    print(build_mixtures(options).text())
    return 0


def build_mixtures(options: MixtureConfig) -> Report:
    """Build the shards; ValueError for wrong options, or shards without clips of the kinds that are needed."""
    if options.split not in ("train", "test") or len(options.snr_db) != 2 or options.samples_per_shard < 1:
        raise ValueError(
            "data mixtures: split is train or test, snr_db has two numbers, samples_per_shard is at least 1"
        )
    speech = _found(options.speech, options, lambda record: len(str(record.get("text", "")).split()) >= 2)
    sounds = _found(options.sounds, options, lambda record: "text" not in record and bool(name_of(record)))
    if len(speech) < 2 or not sounds:
        raise ValueError(
            f"data mixtures: {len(speech)} clips with text in speech=, {len(sounds)} with a label or caption and no "
            "text in sounds=; at least two and one are needed (is max_duration_s or where too narrow?)"
        )
    report = Report("mixtures", options.split, "that of the parts")
    specs = [_spec(kind, number, speech, sounds, options) for kind in KINDS for number in range(getattr(options, kind))]
    settings = {
        name: getattr(options, name) for name in ("tts", "voices", "tts_model", "key_env", "split", "seed", "name")
    }
    parts = [((part, settings), len(part)) for part in in_parts(specs, options.samples_per_shard)]
    return build(options.name, options.out, mix, parts, report, options.engine_with(options.workers))


def name_of(record: dict[str, Any]) -> str:
    """What a sound is called: its labels, or its caption."""
    return ", ".join(labels_of(record)) or str(record.get("caption", ""))


def _found(paths: Any, options: MixtureConfig, keep: Any) -> list[Place]:
    return [place for place in places(paths, keep, options.where) if place.duration_s <= options.max_duration_s]


def _spec(kind: str, number: int, speech: list[Place], sounds: list[Place], options: MixtureConfig) -> dict[str, Any]:
    """What one mixture is made of, as JSON."""
    names = (options.seed, kind, number)
    one = pick(speech, *names, "one")
    others = [each for each in speech if each.record["text"] != one.record["text"]]
    if kind == "two" and not others:
        raise ValueError("data mixtures: two speakers need two different texts")
    strangers = [each for each in others if each.record.get("speaker") != one.record.get("speaker")] or others
    parts = {
        "over": lambda: [one, pick(sounds, *names, "sound")],
        "two": lambda: [one, pick(strangers, *names, "other")],
        "command": lambda: [pick(sounds, *names, "sound")],
    }[kind]()
    return {
        "key": f"{options.name}-{options.split}-{kind}-{number:06d}",
        "kind": kind,
        "snr_db": round(between(options.snr_db, *names, "snr"), 1),
        "parts": [asdict(place) for place in parts],
    }


def mix(specs: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Chat]:
    """The mixtures of one shard."""
    speaker: Speaker | None = None
    for spec in specs:
        if spec["kind"] == "command" and speaker is None:
            speaker = open_speaker(SpeakerOptions.of(settings))
        found = [Place(**part) for part in spec["parts"]]
        wave, parts, question, answer = {"over": _over, "two": _two, "command": _command}[spec["kind"]](
            spec, found, settings, speaker
        )
        record = {
            "messages": [
                {"role": "user", "content": f"<audio>{question}"},
                {"role": "assistant", "content": answer},
            ],
            "answer": answer, "task": "chat", "family": f"mixture {spec['kind']}", "split": settings["split"],
            "source": settings["name"], "parts": parts,
        }  # fmt: skip
        licences = sorted({str(place.record["license"]) for place in found if place.record.get("license")})
        if licences:
            record["license"] = " and ".join(licences)
        yield Chat(spec["key"], record, (wave,))


Mixed = tuple[np.ndarray, list[dict[str, Any]], str, str]


def _over(spec: dict[str, Any], found: list[Place], settings: dict[str, Any], speaker: Any) -> Mixed:
    """Speech over a sound that goes on behind it."""
    speech, sound = found
    wave = speech.wave()
    parts = [_part(speech, 0, len(wave)), _part(sound, 0, len(wave)) | {"snr_db": spec["snr_db"]}]
    names = (settings["seed"], spec["key"])
    words = draw(*names, "asked") < 0.5
    question = pick(_WORDS if words else _BEHIND, *names, "wording")
    answer = str(speech.record["text"]) if words else name_of(sound.record)
    return at_snr(wave, sound.wave(), spec["snr_db"]), parts, question, answer


def _two(spec: dict[str, Any], found: list[Place], settings: dict[str, Any], speaker: Any) -> Mixed:
    """Two speakers one after another, equally loud."""
    names = (settings["seed"], spec["key"])
    first, second = (place.wave() for place in found)
    if level(first) and level(second):
        second = second * (level(first) / level(second))
    pause = int(SAMPLE_RATE * between(_PAUSE_S, *names, "pause"))
    wave = unclipped(np.concatenate([first, np.zeros(pause, np.float32), second]))
    parts = [_part(found[0], 0, len(first)), _part(found[1], len(first) + pause, len(wave))]
    one, other = (str(place.record["text"]) for place in found)
    asked = int(draw(*names, "asked") * 3)
    question = pick((_BOTH, _FIRST, _SECOND)[asked], *names, "wording")
    answer = (f"The first speaker says: {one}\nThe second speaker says: {other}", one, other)[asked]
    return wave, parts, question, answer


def _command(spec: dict[str, Any], found: list[Place], settings: dict[str, Any], speaker: Any) -> Mixed:
    """A spoken command before or after a sound, or over it; there is no text to say which is which."""
    names = (settings["seed"], spec["key"])
    (sound,) = found
    text = pick(COMMANDS, *names, "command")
    speech = speaker(text, int(draw(*names, "voice") * 2**31), settings["split"] == "test")
    voice = {"text": text, "voice": speech.voice, "speed": speech.speed}
    order = ("before", "after", "over")[int(draw(*names, "order") * 3)]
    other = sound.wave()
    if order == "over":
        wave = at_snr(speech.wave, other, spec["snr_db"])
        return (
            wave,
            [voice | _span(0, len(wave)), _part(sound, 0, len(wave)) | {"snr_db": spec["snr_db"]}],
            "",
            name_of(sound.record),
        )
    if level(speech.wave) and level(other):
        other = other * (level(speech.wave) / level(other))
    pause = np.zeros(int(SAMPLE_RATE * _PAUSE_S[0]), np.float32)
    pieces = [speech.wave, pause, other] if order == "before" else [other, pause, speech.wave]
    starts = np.cumsum([0, *map(len, pieces)]).tolist()
    spans = [_span(starts[0], starts[1]), _span(starts[2], starts[3])]
    said, heard = spans if order == "before" else spans[::-1]
    parts = [voice | said, {**_part(sound, 0, 0), **heard}]
    return unclipped(np.concatenate(pieces)), parts, "", name_of(sound.record)


def _part(place: Place, start: int, end: int) -> dict[str, Any]:
    return {**place.origin, **_span(start, end)}


def _span(start: int, end: int) -> dict[str, float]:
    return {"start_s": round(start / SAMPLE_RATE, 3), "end_s": round(end / SAMPLE_RATE, 3)}
