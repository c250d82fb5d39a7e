"""MELD (clips of a TV series) and IEMOCAP (acted dialogues): speech with its emotion."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, present
from data_pipelines.corpora.recordings import OTHER_AUDIO
from data_pipelines.corpora.tree import AUDIO

# No sound can be had from these: one video is cut off in the published archive, the other is not in it.
_MELD_BROKEN = {"train-dia125_utt3", "dev-dia110_utt7"}
# The lists hold punctuation of Windows-1252 ("\x92" for an apostrophe) as control characters.
_WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
_MELD_SPLITS = {"train": TRAIN, "dev": DEV, "test": TEST}


def _meld(request: Request) -> Found:
    """``{split}_sent_emo.csv``, and ``dia{D}_utt{U}`` in a folder whose name holds the split."""
    tree = request.tree
    (listed, *_) = tree.need(f"{request.split}_sent_emo.csv", what="MELD list")
    audio: dict[str, str] = {}
    for name in tree.names:
        path = PurePosixPath(name)
        kind = path.suffix.lower()
        # A readable file replaces the video of the same clip, whichever comes first.
        wanted = kind in AUDIO or (kind in OTHER_AUDIO and path.stem not in audio)
        if wanted and request.split in str(path.parent):
            audio[path.stem] = name
    for row in tree.table(listed, ("Utterance", "Emotion", "Dialogue_ID", "Utterance_ID")):
        clip = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        if f"{request.split}-{clip}" in _MELD_BROKEN:
            yield Drop(f"{request.split}-{clip}", "known to be damaged", filter=True)
            continue
        if clip not in audio:
            yield Drop(
                f"{request.split}-{clip}", "missing audio", f"no file {clip} in a folder named like {request.split}"
            )
            continue
        record = present(
            text=row["Utterance"].translate(_WINDOWS).strip(),
            language="en",
            emotion=row["Emotion"].strip().lower(),
            sentiment=row.get("Sentiment", "").strip().lower(),
            speaker=row.get("Speaker", "").strip(),
        )
        yield Item(f"{request.split}-{clip}", (tree.recording(audio[clip]),), record)


_LABEL = re.compile(r"\[[\d. ]+-[\d. ]+\]\s+(\S+)\s+(\w{3})\s")
_SPOKEN = re.compile(r"(\S+) \[[\d. -]+\]: ?(.*)")
_EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
# No official split; holding out session 5 is what most publications do.
_SESSIONS = {"train": (1, 2, 3, 4), "session5": (5,)}


def _iemocap(request: Request) -> Found:
    """``Session{N}/dialog/EmoEvaluation/*.txt`` with ``Session{N}/sentences/wav/{dialog}/{utterance}.wav``."""
    tree = request.tree
    for session in _SESSIONS[request.split]:
        root = f"Session{session}/dialog"
        for listed in tree.glob(f"{root}/EmoEvaluation/Ses*.txt"):
            if "/EmoEvaluation/Ses" not in listed:
                continue  # subfolders hold the single annotators' opinions
            dialog = PurePosixPath(listed).stem
            spoken = tree.beside(listed, "..", "transcriptions", f"{dialog}.txt")
            lines = tree.lines(spoken) if spoken in tree.names else ()
            texts = {found[1]: found[2].strip() for line in lines if (found := _SPOKEN.match(line))}
            for line in tree.lines(listed):
                found = _LABEL.match(line + " ")
                if found is None:
                    continue
                name, label = found[1], found[2]
                if label not in _EMOTIONS:
                    yield Drop(name, f"emotion {label} is not used", filter=True)
                    continue
                voice = name.rsplit("_", 1)[1][0]
                record = present(
                    text=texts.get(name),
                    language="en",
                    emotion=_EMOTIONS[label],
                    gender={"F": "female", "M": "male"}.get(voice),
                    speaker=f"iemocap-{session}{voice}",
                )
                audio = tree.beside(listed, "..", "..", "sentences", "wav", dialog, f"{name}.wav")
                yield Item(name, (tree.recording(audio),), record)


CORPORA = (
    Corpus("meld", "MELD", "GPL-3.0 (Hugging Face card)", "https://github.com/declare-lab/MELD", _MELD_SPLITS, _meld,
           ("text", "language", "emotion", "speaker"),
           "clips are MP4: extract the sound to .wav next to them; seven emotions; "
           "dia125_utt3 (train) and dia110_utt7 (dev) are damaged",
           tasks=("emotion", "asr")),
    Corpus("iemocap", "IEMOCAP", "on request", "https://sail.usc.edu/iemocap/",
           {"train": TRAIN, "session5": TEST}, _iemocap, ("text", "language", "emotion", "gender", "speaker"),
           "no official split: session 5 is held out; neutral, happy (with excited), angry, sad",
           tasks=("emotion", "gender", "asr")),
)  # fmt: skip
