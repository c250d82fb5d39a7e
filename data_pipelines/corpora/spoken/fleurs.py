"""FLEURS: read sentences in 102 languages; ``data/{config}/{split}.tsv`` + ``audio/{split}/*.wav``. Evaluation only."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Found,
    Item,
    Request,
    gender_of,
    present,
)
from qa_train.data.text.records import language_code

_COLUMNS = ("id", "file", "raw_transcription", "transcription", "chars", "num_samples", "gender")


def _read(request: Request) -> Found:
    tree = request.tree
    for listed in tree.need(f"{request.split}.tsv", what=f"FLEURS list {request.split}.tsv"):
        config = PurePosixPath(listed).parent.name
        for row in tree.table(listed, header=_COLUMNS, delimiter="\t", quoted=False):
            record = present(
                text=row["transcription"].strip(),
                text_raw=row["raw_transcription"].strip(),
                language=language_code(config),
                locale=config,
                gender=gender_of(row["gender"]),
            )
            audio = tree.recording(tree.beside(listed, "audio", request.split, row["file"]))
            yield Item(f"{config}-{PurePosixPath(row['file']).stem}", (audio,), record)


CORPORA = (
    Corpus("fleurs", "FLEURS", "CC-BY-4.0", "https://huggingface.co/datasets/google/fleurs",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _read, ("text", "language", "gender"),
           "zero-shot in the Qwen2-Audio evaluation: not for training",
           tasks=("asr", "lid", "gender")),
)  # fmt: skip
