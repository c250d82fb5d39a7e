"""AISHELL-1 and AISHELL-2: read Mandarin. Transcripts come in words; the spaces between them are removed."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, without_spaces


def _aishell1(request: Request) -> Found:
    tree = request.tree
    (listed, *_) = tree.need("transcript/aishell_transcript_v0.8.txt", what="AISHELL-1 transcript")
    texts = dict(tree.pairs(listed))
    names = [name for name in tree.audio_names() if f"/wav/{request.split}/" in f"/{name}"]
    if not names:
        raise ValueError(
            f"no wav/{request.split}/*/*.wav under {', '.join(tree.paths)}: unpack the speakers' archives, wav/*.tar.gz"
        )
    speakers = {PurePosixPath(name).parent.name for name in names}
    for name in names:
        path = PurePosixPath(name)
        if path.stem not in texts:
            # 141,925 recordings, 141,600 transcripts: the rest were judged wrong by the corpus's makers.
            yield Drop(path.stem, "no text")
            continue
        text = without_spaces(texts.pop(path.stem))
        record = {"text": text, "language": "zh", "speaker": f"aishell1-{path.parent.name}"}
        yield Item(path.stem, (tree.recording(name),), record)
    for name in texts:
        # BAC009S0002W0122: speaker S0002. The list does not say which split a recording belongs to, its speaker does.
        if name[6:11] in speakers:
            yield Drop(name, "missing audio", f"no wav/{request.split}/{name[6:11]}/{name}.wav")


# split -> folder of its trans.txt
_AISHELL2 = {
    "train": "iOS/data", "dev-ios": "iOS/dev", "test-ios": "iOS/test", "dev-android": "Android/dev",
    "test-android": "Android/test", "dev-mic": "Mic/dev", "test-mic": "Mic/test",
}  # fmt: skip


def _aishell2(request: Request) -> Found:
    tree = request.tree
    folder = _AISHELL2[request.split]
    for listed in tree.need(f"{folder}/trans.txt", what="AISHELL-2 transcript trans.txt"):
        home = str(PurePosixPath(listed).parent)
        for name, text in tree.pairs(listed):
            audio = next(iter(tree.all_by_stem(name, within=f"{home}/wav")), None)
            if audio is None:
                yield Drop(name, "missing audio", f"no {home}/wav/*/{name}.wav")
                continue
            speaker = PurePosixPath(audio).parent.name
            record = {"text": without_spaces(text), "language": "zh", "speaker": f"aishell2-{speaker}"}
            yield Item(name, (tree.recording(audio),), record)


CORPORA = (
    Corpus("aishell1", "AISHELL-1", "Apache-2.0 (unverified)", "https://www.openslr.org/33",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _aishell1, ("text", "language", "speaker"),
           tasks=("asr", "speaker")),
    Corpus("aishell2", "AISHELL-2", "research, by application (unverified)", "https://www.aishelltech.com/aishell_2",
           {split: TRAIN if split == "train" else DEV if split.startswith("dev") else TEST for split in _AISHELL2},
           _aishell2, ("text", "language", "speaker"), "Android and Mic sets come in a package of their own",
           tasks=("asr", "speaker")),
)  # fmt: skip
