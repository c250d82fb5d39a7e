"""VoxPopuli: speeches of the European Parliament, as its own `get_asr_data` cuts and lists them.

``{language}/asr_{split}.tsv`` (id, raw_text, normalized_text, ...) next to ``{year}/{id}.ogg``; on the hub the clips
are WAV files in other folders. Some rows lack one of the two texts.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, gender_of, present
from qa_train.data.text.records import language_code

_NEEDS = ("id", "raw_text", "normalized_text", "speaker_id", "split", "gender")
# Python's word for a cell without a value, as the script writes it.
_NOTHING = ("", "None")


def _read(request: Request) -> Found:
    tree = request.tree
    listed = tree.need(f"asr_{request.split}.tsv", what=f"VoxPopuli list asr_{request.split}.tsv")
    for table in listed:
        folder = str(PurePosixPath(table).parent)
        for number, row in enumerate(tree.table(table, _NEEDS, delimiter="\t", quoted=False), 2):
            name = row["id"]
            if row["split"] != request.split:
                yield Drop(name, "row that does not fit", f"{table}, row {number}: split {row['split']!r}")
                continue
            text, raw = row["normalized_text"].strip(), row["raw_text"].strip()
            if not text and not raw:
                yield Drop(name, "no text")
                continue
            # 20131007-0900-PLENARY-19-en_20131007-21:26:04_3: the session, the language, the place in it.
            language = re.match(r"[^_]+-([a-z]+)(?:_|$)", name)
            if language is None:
                yield Drop(
                    name, "row that does not fit", f"{table}, row {number}: expected an id SESSION-LANGUAGE_PLACE"
                )
                continue
            audio = next(iter(tree.all_by_stem(name, within=folder)), None)
            if audio is None:
                yield Drop(name, "missing audio", f"no {tree.beside(table, name[:4], name)}.ogg")
                continue
            speaker, accent = row["speaker_id"], row.get("accent")
            record = present(
                text=text or raw,
                text_raw=raw,
                language=language_code(language[1]),
                speaker=None if speaker in _NOTHING else f"voxpopuli-{speaker}",
                gender=gender_of(row["gender"]),
                accent=None if accent in _NOTHING else accent,
                is_gold_transcript=row.get("is_gold_transcript") == "True",
            )
            yield Item(name, (tree.recording(audio),), record)


CORPORA = (
    Corpus("voxpopuli", "VoxPopuli", "CC0-1.0, see also the European Parliament's legal notice",
           "https://github.com/facebookresearch/voxpopuli", {"train": TRAIN, "dev": DEV, "test": TEST}, _read,
           ("text", "language", "speaker", "gender"),
           "normalized texts; where.is_gold_transcript=true takes those that people checked",
           tasks=("asr", "lid", "speaker", "gender")),
)  # fmt: skip
