"""Common Voice (``{corpus}/{lang}/{split}.tsv`` + ``clips/*.mp3``) and CoVoST 2, its translations.

CoVoST 2 adds ``covost_v2.{src}_{tgt}.tsv`` (path, translation, split) to Common Voice version 4.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    gender_of,
    present,
    stem,
)  # fmt: skip
from data_pipelines.corpora.tree import Tree
from qa_train.data.text.records import language_code, unquoted


def _held_out(tree: Tree, table: str, *, union: bool) -> set[str]:
    """Clips of the test and dev lists next to ``table``; a ``union`` of splits contains them, so both are needed."""
    names = [tree.beside(table, f"{split}.tsv") for split in ("test", "dev")]
    absent = [name for name in names if name not in tree.names]
    if absent and union:
        raise ValueError(
            f"{table} holds the clips of the test and dev lists, and {', '.join(absent)} to identify them is missing: "
            "copy the release's test.tsv and dev.tsv next to it, or import split=train"
        )
    return {row["path"] for name in set(names) - set(absent) for row in tree.table(name, delimiter="\t", quoted=False)}


def _common_voice(request: Request) -> Found:
    tree = request.tree
    for table in tree.need(f"{request.split}.tsv", what=f"Common Voice list {request.split}.tsv"):
        locale = PurePosixPath(table).parent.name
        union = request.split in ("validated", "other")
        held_out = _held_out(tree, table, union=union) if union or request.split == TRAIN else set()
        for row in tree.table(table, ("path", "sentence"), delimiter="\t", quoted=False):
            name = f"{stem(row['path'])}"
            if row["path"] in held_out:
                yield Drop(name, "evaluation clip", "also listed in test.tsv or dev.tsv", filter=True)
                continue
            # Some releases (6.1) enclose what has quotation marks, others (17) do not.
            text = unquoted(row["sentence"]).strip()
            if not text:
                yield Drop(name, "no text")
                continue
            spoken_in = row.get("locale") or locale
            record = present(
                text=text,
                language=language_code(spoken_in),
                locale=spoken_in,
                speaker=row.get("client_id", "")[:16],
                age=row.get("age"),
                gender=gender_of(row.get("gender")),
                dialect=unquoted(row.get("accents") or row.get("accent") or "").strip(),
            )
            path = row["path"] if PurePosixPath(row["path"]).suffix else f"{row['path']}.mp3"
            audio = tree.recording(tree.beside(table, "clips", path))
            yield Item(name, (audio,), record, (f"commonvoice:{name}",))


def _sentences(tree: Tree, source: str) -> dict[str, dict[str, str]]:
    """Clip -> its row in Common Voice's own list (sentence and speaker)."""
    tables = tree.glob(f"{source}/validated.tsv", "validated.tsv")
    if not tables:
        raise ValueError(f"CoVoST 2 needs Common Voice 4 next to it: no {source}/validated.tsv under {tree.paths}")
    # With the escapes that get_covost_splits.py takes out of Common Voice's own list as well.
    rows = tree.table(tables[0], ("path", "sentence"), delimiter="\t", quoted=False, escape="\\")
    return {
        stem(row["path"]): {"sentence": row["sentence"], "client_id": row.get("client_id", ""), "table": tables[0]}
        for row in rows
    }


def _covost_lists(tree: Tree, split: str) -> list[str]:
    """Of each pair of languages the published list, else the file of the split that get_covost_splits.py made of it."""
    names = tree.need("covost_v2.*.tsv", what="CoVoST 2 list covost_v2.SRC_TGT.tsv")
    found: dict[str, str] = {}
    for wanted in ([], [split]):
        for name in names:
            _, pair, *of_split = PurePosixPath(name).name.removesuffix(".tsv").split(".")
            if of_split == wanted:
                found.setdefault(pair, name)
    if not found:
        raise ValueError(f"no covost_v2.SRC_TGT.tsv nor covost_v2.SRC_TGT.{split}.tsv among {', '.join(names)}")
    return sorted(found.values())


def _covost(request: Request) -> Found:
    tree = request.tree
    # The official scripts train on "train_covost" too: clips that are not in Common Voice's own training list.
    wanted = ("train", "train_covost") if request.split == TRAIN else (request.split,)
    for table in _covost_lists(tree, request.split):
        source, target = PurePosixPath(table).name.split(".")[1].rsplit("_", 1)
        known = _sentences(tree, source)
        for row in tree.table(table, ("path", "translation"), delimiter="\t", quoted=False, escape="\\"):
            clip = stem(row["path"])
            if row.get("split", request.split) not in wanted:
                continue
            found = known.get(clip)
            if found is None or not row["translation"].strip():
                yield Drop(f"{clip}-{target}", "no source sentence" if found is None else "no translation")
                continue
            record = present(
                text=found["sentence"],
                language=language_code(source),
                translation={language_code(target): row["translation"].strip()},
                speaker=found["client_id"][:16],
            )
            audio = tree.recording(tree.beside(found["table"], "clips", f"{clip}.mp3"))
            yield Item(f"{clip}-{target}", (audio,), record, (f"commonvoice:{clip}",))


CORPORA = (
    Corpus("common_voice", "Common Voice", "CC0-1.0 (unverified)", "https://commonvoice.mozilla.org/datasets",
           {"train": TRAIN, "validated": TRAIN, "other": TRAIN, "dev": DEV, "test": TEST}, _common_voice,
           ("text", "language", "speaker", "age", "gender", "dialect"),
           "validated and other: clips of this release's test and dev lists are dropped; releases re-split, so give "
           "the lists of the releases you test on as block=",
           tasks=("asr", "lid", "dialect", "speaker", "gender", "age")),
    Corpus("covost2", "CoVoST 2", "labels CC0-1.0, code CC-BY-NC-4.0",
           "https://github.com/facebookresearch/covost", {"train": TRAIN, "dev": DEV, "test": TEST}, _covost,
           ("text", "language", "translation", "speaker"), "put the covost_v2 lists next to Common Voice 4",
           tasks=("translate_@code", "asr", "lid")),
)  # fmt: skip
