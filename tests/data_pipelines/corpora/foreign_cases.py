"""Generic formats: Hugging Face tables, CSV, JSONL, Kaldi, Lhotse."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.data_pipelines.corpora.made_up import SECONDS, Case, audio_cell, table_bytes, tone


def _lines(*lines: Any) -> str:
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"


def _question(index: int, turn: int) -> dict[str, Any]:
    return {
        "split_name": "identity",
        "index": index,
        "round": turn,
        "question": f"Question {index} {turn}?",
        "question_audio": audio_cell(f"q-{index}-{turn}.wav"),
        "answer": f"Answer {index} {turn}.",
        "answer_snac": ": 1 2",
    }


def _chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


VOICE_ASSISTANT = Case(
    "voice_assistant",
    "train",
    {"data/train-00000-of-00001.parquet": table_bytes([_question(0, 0), _question(1, 0), _question(1, 1)])},
    {
        "identity-0": (
            "q-0-0.wav",
            {
                "messages": _chat("<audio>", "Answer 0 0."),
                "question": "Question 0 0?",
                "answer": "Answer 0 0.",
                "subset": "identity",
            },
        ),
        "identity-1": (
            "q-1-0.wav",
            {"messages": _chat("<audio>", "Answer 1 0.", "<audio>", "Answer 1 1."), "subset": "identity"},
        ),
    },
    seconds={"identity-1": SECONDS},
)


def _preference(number: int, better: int) -> dict[str, Any]:
    return {
        "prompt": f"What is {number}?",
        "response_1": "one",
        "response_2": "two",
        "overall_response": better,
        # As the project's own template for this set reads it.
        "audio_path": audio_cell(f"p-{number}.flac"),
    }


ALIGN_ANYTHING = Case(
    "align_anything",
    "train",
    {
        "text-audio-to-text/train_30k.parquet": table_bytes(
            [*(_preference(i, better) for i, better in enumerate((2, 0, 1))), _preference(3, 1) | {"response_2": "one"}]
        )
    },
    {
        f"{number:08d}": (
            f"p-{number}.flac",
            {"messages": _chat(f"<audio>What is {number}?"), "chosen": chosen, "rejected": rejected, "family": "human"},
        )
        for number, chosen, rejected in ((0, "two", "one"), (2, "one", "two"))
    },
    {"no preference": 2},
)

HUGGINGFACE = Case(
    "huggingface",
    "train",
    {
        "data/train-00000-of-00002.parquet": table_bytes(
            [
                {"speech": audio_cell(f"h{i}.wav"), "sentence": f"word {i}", "locale": "en-US", "emotion": i}
                for i in range(3)
            ],
            {"info": {"features": {"emotion": {"names": ["happy", "sad"], "_type": "ClassLabel"}}}},
        ),
        "data/test-00000-of-00001.parquet": table_bytes([{"speech": audio_cell("t.wav"), "sentence": "held out"}]),
    },
    {
        "00000000": ("h0.wav", {"text": "word 0", "language": "en", "emotion": "happy"}),
        "00000001": ("h1.wav", {"text": "word 1", "language": "en", "emotion": "sad"}),
        "00000002": ("h2.wav", {"text": "word 2", "language": "en"}),
    },
    options={"columns": {"text": "sentence", "language": "locale"}},
)

TABLE = Case(
    "table",
    "train",
    {
        "metadata.csv": _lines(
            "file_name,sentence,labels,split,start,end",
            'a/x.ogg,"hello, you",dog;cat,train,,',
            "a/y.wav,cut,,train,0.25,0.75",
            "a/z.wav,other,,test,,",
            "a/y.wav,bad,,train,zero,1",
        ),
        "a/x.ogg": SECONDS,
        "a/y.wav": 1.0,
    },
    {
        "00000001-x": ("a/x.ogg", {"text": "hello, you", "labels": ["dog", "cat"]}),
        "00000002-y": ("a/y.wav", {"text": "cut"}),
    },
    {"bad cell": 1},
    options={"columns": {"text": "sentence"}},
    seconds={"00000002-y": 0.5},
)

JSONL = Case(
    "jsonl",
    "train",
    {
        "chats.jsonl": _lines(
            {"messages": _chat("<audio>What?", "A dog."), "audios": ["a.wav"]},
            {"messages": _chat("<audio><audio>Same?", "No."), "audios": ["a.wav", "b.wav"]},
            {"messages": _chat("<audio>What?", "A dog."), "rejected_response": "A cat.", "audio": "b.wav"},
            {
                "conversations": [{"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "Rain."}],
                "sound": "b.wav",
            },
            {"audio_filepath": "a.wav", "text": "hello", "duration": 0.4, "language": "en"},
            {"messages": _chat("<audio>", "Two marks are missing"), "audios": ["a.wav", "b.wav"]},
            "[1]",
        ),
        "a.wav": SECONDS,
        "b.wav": SECONDS,
    },
    {
        "chats-00000001": ("a.wav", {"messages": _chat("<audio>What?", "A dog.")}),
        "chats-00000002": ("a.wav", {"messages": _chat("<audio><audio>Same?", "No.")}),
        "chats-00000003": ("b.wav", {"messages": _chat("<audio>What?"), "chosen": "A dog.", "rejected": "A cat."}),
        "chats-00000004": ("b.wav", {"messages": _chat("<audio>What?", "Rain.")}),
        "chats-00000005": ("a.wav", {"text": "hello", "language": "en"}),
    },
    {"bad line": 2},
    {"error_budget": 0.3},
)


def _stereo(name: str) -> bytes:
    """A FLAC file with the tone of ``name`` on its second channel, and another's on the first."""
    left, right = (soundfile.read(io.BytesIO(tone(part)))[0] for part in ("other.wav", name))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], 1), 16_000, format="FLAC")
    return buffer.getvalue()


KALDI = Case(
    "kaldi",
    "train",
    {
        "wav.scp": _lines("rec1 audio/rec1.wav", "rec2 audio/rec2.flac"),
        "segments": _lines("utt1 rec1 0.5 1.0", "utt2 rec1 1.0 1.5", "utt3 rec2 0 -1", "utt4 rec2 0 0.2"),
        "text": _lines("utt1 hello there", "utt2\tsecond", "utt3 whole"),
        "utt2spk": _lines("utt1 anne", "utt2 bob", "utt3 anne"),
        "spk2gender": _lines("anne f", "bob m"),
        "utt2lang": _lines("utt1 en"),
        "audio/rec1.wav": 2.0,
        "audio/rec2.flac": SECONDS,
    },
    {
        "utt1": ("audio/rec1.wav", {"text": "hello there", "speaker": "anne", "gender": "female", "language": "en"}),
        "utt2": ("audio/rec1.wav", {"text": "second", "speaker": "bob", "gender": "male"}),
        "utt3": ("audio/rec2.flac", {"text": "whole", "speaker": "anne", "gender": "female"}),
    },
    {"no text": 1},
    seconds={"utt1": 0.5, "utt2": 0.5},
)

STM = Case(
    "stm",
    "dev",
    {
        "lists/dev.stm": _lines(
            ';; LABEL "Q5" "Audio Quality 5" "Audio Analytics"',
            "P10005 1 SI114J 0.00 0.50 <o,Q5,B2> IGNORE_TIME_SEGMENT_IN_SCORING",
            "P10005 1 SI114J 0.50 1.00 <o,Q5,B2> it's (%hesitation%) { a / { an / the } } nice pla- (pl-) place",
            "",
            "P10006 B CHRIS 0.00 0.40 <M> { mhm / @ } %HESITATION YES [r] { @ / um }",
            "P10006 A JON 0.00 0.40",
            "P10007 A JON 0.00 0.40 no label nor recording",
        ),
        "lists/train.stm": "P10005 1 SI114J 0.50 1.00 <o> of the other split\n",
        "audio/P10005.wav": 2.0,
        "audio/P10006.flac": _stereo("P10006.flac"),
    },
    {
        "P10005-00003": (
            "audio/P10005.wav",
            {"text": "it's a nice pla- place", "has_unknown": False, "speaker": "SI114J"},
        ),
        "P10006-00005": (
            "P10006.flac",
            {"text": "mhm YES", "has_unknown": False, "speaker": "CHRIS", "gender": "male"},
        ),
    },
    {"no speech": 2, "missing audio": 1},
    seconds={"P10005-00003": 0.5},
    purpose="eval",
)


def _zip_with(name: str) -> tuple[bytes, str]:
    """An uncompressed zip with a tone, and where in it that lies, as fairseq spells it: OFFSET:LENGTH."""
    buffer, raw = io.BytesIO(), tone(name)
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, raw)
    return buffer.getvalue(), f"{buffer.getvalue().index(raw)}:{len(raw)}"


_ZIP, _PLACE = _zip_with("c.flac")
FAIRSEQ = Case(
    "fairseq",
    "train",
    {
        "manifest/train.tsv": _lines("../audio", "1069/a.flac\t6400", "1069/b.wav\t6400", f"clips.zip:{_PLACE}\t6400"),
        "manifest/train.ltr": _lines("H E L L O | Y O U |", "", "I T ' S | 5 |"),
        "manifest/valid.tsv": _lines("../audio", "1069/b.wav\t6400"),
        "audio/1069/a.flac": SECONDS,
        "audio/1069/b.wav": SECONDS,
        "audio/clips.zip": _ZIP,
    },
    {
        "manifest/train-00000001": ("audio/1069/a.flac", {"text": "HELLO YOU"}),
        "manifest/train-00000003": ("c.flac", {"text": "IT'S 5"}),
    },
    {"no text": 1},
)


def cut(
    name: str, kind: str, place: str, *, start: float = 0.0, length: float = SECONDS, total: float = SECONDS
) -> dict[str, Any]:
    """A Lhotse MonoCut with one supervision, as its manifests hold it."""
    return {
        "id": name,
        "start": start,
        "duration": length,
        "channel": 0,
        "type": "MonoCut",
        "supervisions": [
            {
                "id": f"{name}-s",
                "recording_id": "r",
                "start": 0.0,
                "duration": length,
                "channel": 0,
                "text": f"text of {name}",
                "language": "English",
                "speaker": "anne",
                "gender": "F",
                "custom": {"emotion": "happy", "other": [1]},
                "alignment": {"word": [["text", 0.0, 0.1], ["of", 0.1, 0.1, 0.9]]},
            }
        ],
        "recording": {
            "id": "r",
            "sources": [{"type": kind, "channels": [0], "source": place}],
            "sampling_rate": 16000,
            "num_samples": int(total * 16000),
            "duration": total,
        },
    }


def cut_record(name: str) -> dict[str, Any]:
    """What the import makes of it."""
    words = [{"word": "text", "start": 0.0, "end": 0.1}, {"word": "of", "start": 0.1, "end": 0.2}]
    facts = {"language": "en", "speaker": "anne", "gender": "female", "emotion": "happy"}
    return {"text": f"text of {name}", "words": words, **facts}


def _gzipped(*cuts: dict[str, Any]) -> bytes:
    return gzip.compress(_lines(*cuts).encode())


def _shar_tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            for member, raw in ((f"{name}.flac", tone(f"{name}.flac")), (f"{name}.json", b"{}\n")):
                info = tarfile.TarInfo(member)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


LHOTSE_CUTS = Case(
    "lhotse",
    "train",
    {
        "cuts.jsonl.gz": _gzipped(
            cut("whole", "file", "audio/r.wav", length=2.0, total=2.0),
            cut("part", "file", "audio/r.wav", start=0.5, length=0.75, total=2.0),
            {"id": "mixed", "type": "MixedCut", "tracks": []},
            cut("far", "url", "https://example.org/r.wav"),
        ),
        "audio/r.wav": 2.0,
    },
    {"whole": ("audio/r.wav", cut_record("whole")), "part": ("audio/r.wav", cut_record("part"))},
    {"MixedCut without one recording": 1, "source of type url": 1},
    {"error_budget": 0.5},
    seconds={"whole": 2.0, "part": 0.75},
)

LHOTSE_SHAR = Case(
    "lhotse",
    "train",
    {
        "shar/cuts.000000.jsonl.gz": _gzipped(cut("a.1", "shar", ""), cut("b", "shar", "")),
        "shar/recording.000000.tar": _shar_tar("a.1", "b"),
        "shar/cuts.000001.jsonl.gz": _gzipped(cut("c", "shar", ""), cut("lost", "shar", "")),
        "shar/recording.000001.tar": _shar_tar("c"),
    },
    {
        "a_1": ("a.1.flac", cut_record("a.1")),
        "b": ("b.flac", cut_record("b")),
        "c": ("c.flac", cut_record("c")),
    },
    {"missing audio": 1},
    options={"path": ["shar"]},
)


def tar_bytes(members: dict[str, bytes]) -> bytes:
    """A tar of these members, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


# Each shard counts its keys from 0, as many do.
WEBDATASET = Case(
    "webdataset",
    "train",
    {
        "a-0.tar": tar_bytes(
            {
                "000.flac": tone("a.flac"),
                "000.json": json.dumps({"text": ["a bell", "ringing"], "tag": ["bell"]}).encode(),
                "000.cls": b"3\n",
                "000.metadata.json": json.dumps({"scene": "church", "place": {"of": "Rome"}}).encode(),
                "000.jpg": b"\xff\xd8\xff\xe0 no text",
                "001.mp3": tone("b.mp3"),
                "001.json": json.dumps({"text": ["one horn"]}).encode(),
                "001.cls": b"4",
                "001.metadata.json": json.dumps({"scene": "street"}).encode(),
            }
        ),
        "a-1.tar": tar_bytes(
            {
                "000.wav": tone("c.wav"),
                "000.json": json.dumps({"text": "rain"}).encode(),
                "000.cls": b"5",
                "000.metadata.json": b"{}",
                "001.wav": tone("d.wav"),
                "001.cls": b"5",
                "002.json": b"{}",
            }
        ),
    },
    {
        "a-0-000-1": ("a.flac", {"caption": "a bell", "label": "3", "scene": "church"}),
        "a-0-000-2": ("a.flac", {"caption": "ringing", "label": "3", "scene": "church"}),
        "a-0-001": ("b.mp3", {"caption": "one horn", "label": "4", "scene": "street"}),
        "a-1-000": ("c.wav", {"caption": "rain", "label": "5"}),
    },
    {"bad record": 2},
    options={
        "columns": {"caption": "text", "label": "cls", "scene": "metadata.scene"},
        "error_budget": 0.5,
    },
)

# Sets that the libraries of the formats wrote (sets/README.md).
SETS = Path(__file__).parent / "sets"


def files_of(name: str) -> dict[str, bytes]:
    """All files of a set by their names in it."""
    root = SETS / name
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


NEMO = Case(
    "nemo",
    "train",
    files_of("nemo"),
    {
        "manifest_0-00000001": ("n0.flac", {"text": "one bird", "language": "en"}),
        "manifest_1-00000001": ("n2.flac", {"text": "three small birds", "language": "en"}),
        "manifest_1-00000002": ("n3.flac", {"text": "no bird at all", "language": "en"}),
    },
    {"marked _skipme": 1},
)
ENERGON = Case(
    "energon",
    "train",
    files_of("energon"),
    {
        f"parts_data_{i // 2}-{i:03d}": (f"e{i}.flac", {"caption": f"bird number {i}", "label": str(i)})
        for i in range(4)
    },
)
_BIRDS = ("one bird", "two birds", "three small birds", "no bird at all", "five")
MOSAIC = Case(
    "mosaic",
    "train",
    files_of("mosaic"),
    {
        f"{i:08d}": (f"m{i}.flac", {"text": text, "speaker": str(i), "emotion": "happy"})
        for i, text in enumerate(_BIRDS)
    },
    options={"columns": {"emotion": "facts.emotion"}},
)

CASES = [
    VOICE_ASSISTANT, ALIGN_ANYTHING, HUGGINGFACE, TABLE, JSONL, KALDI, STM, FAIRSEQ, LHOTSE_CUTS, LHOTSE_SHAR,
    WEBDATASET, NEMO, ENERGON, MOSAIC,
]  # fmt: skip
