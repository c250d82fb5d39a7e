"""Tables that carry their audio: Hugging Face datasets, VoiceAssistant-400K, align-anything's preferences.

Parquet and Arrow files are read where they lie, without decoding and without any code of the dataset: a
dataset that needs a script of its own cannot be imported.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, pairwise, repeat
from pathlib import Path
from typing import Any

import pyarrow

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, present
from data_pipelines.corpora.formats.fields import AUDIO_COLUMNS, mapping, note_untaken, record_of, untaken
from data_pipelines.corpora.recordings import Recording
from data_pipelines.corpora.table_file import TableFile, class_names
from qa_train.data.stores import storage
from qa_train.data.stores.remote import remote_names
from qa_train.data.text.chat_rows import chat_record, is_chat, unknown_fields
from qa_train.data.text.records import BadRecord
from qa_train.data.tools.interchange import said_of
from qa_train.utils.masking import masked, name_of, without_query

_NUMBERED = re.compile(r"(.*[a-z])[-_.](\d+)")
_SPLIT_WORDS = {"train", "validation", "valid", "val", "dev", "test", "eval"}


def table_files(request: Request) -> list[str]:
    """The Parquet or Arrow files of the split, sorted; a hub id is downloaded by `datasets`.

    Raises ValueError when there is none.
    """
    found: list[str] = []
    for given in request.paths:
        path = Path(given)
        if "://" in given:
            found += _of_address(given, request)
        elif path.is_dir():
            found += _of_folder(path, request)
        elif path.suffix in (".parquet", ".arrow"):
            request.without_split(path.name)
            found.append(str(path))
        elif not path.exists() and re.fullmatch(r"[\w.\-]+/[\w.\-]+", str(path)):
            found += _of_hub(str(path), request)
        else:
            raise ValueError(f"{path}: neither a folder, a .parquet or .arrow file, nor a hub id such as org/name")
    if not found:
        raise ValueError(
            f"no table of split {request.split!r} in {', '.join(request.paths)}: expected .parquet or .arrow files "
            "with the split in their name, or a folder of save_to_disk"
        )
    return found


def _of_address(url: str, request: Request) -> list[str]:
    """Parquet files at an address, whose braces, and globs where the store can be listed, stand for several."""
    if masked(url) != url:
        # A listing names the table of every record, and is kept.
        raise ValueError(
            f"{masked(url)}: its signature would be stored with the shards: download the table, or hand keys over as "
            "storage.options"
        )
    names = []
    for each in storage.unbraced(url):
        listed = any(mark in each for mark in "*[")
        names += remote_names(each, request.storage, ".parquet") if listed else [each]
    if other := [name for name in names if not without_query(name).endswith(".parquet")]:
        raise ValueError(
            f"{masked(other[0])}: expected .parquet files, such as hf://datasets/OWNER/NAME/data/*.parquet"
        )
    for name in names:
        request.without_split(name_of(name))
    return names


def _of_folder(folder: Path, request: Request) -> list[str]:
    """Files of a folder that `save_to_disk` made, or that lies on the hub as Parquet."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        if request.published_split not in splits:
            raise ValueError(f"{folder} has the splits {splits}, not {request.published_split!r}")
        folder = folder / request.published_split
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(folder / Path(part["filename"]).name) for part in state["_data_files"]]
    split, files = request.published_split, sorted(folder.rglob("*.parquet"))
    if request.config:
        files = [file for file in files if request.config in file.relative_to(folder).parts]
    names = _split_names(folder, files, request.config)
    exact = [file for file in files if split.lower() in names[file]]
    if exact:
        return list(map(str, exact))
    # A split in parts, as train.100 and train.360 or train_sft and train_gen: the user selects one.
    near = {name for found in names.values() for name in found if split.lower() in re.split(r"[\W_]+", name)}
    if len(near) > 1:
        raise ValueError(
            f"{folder}: split {split!r} is {', '.join(sorted(near))} here: name one, or several as "
            f"split=[{','.join(sorted(near))}]"
        )
    wanted = [file for file in files if near & names[file]]
    if not wanted and split == TRAIN and not any(_SPLIT_WORDS & _words(names[file]) for file in files):
        wanted = files  # files without any split's name are the training split, as on the hub
    return list(map(str, wanted))


def _split_names(folder: Path, files: Sequence[Path], config: str) -> dict[Path, set[str]]:
    """File -> names that may be its split's: of its folders but the configuration's, and its own without its number.

    A number at the end counts files (train-00000-of-00002, train_0, train_1) if it has the total, begins with a zero
    or belongs to a whole series; else it is part of the name (train.100, train.360).
    """
    stems = {file: re.sub(r"[-_.]\d+-of-\d+$", "", file.stem.lower()) for file in files}
    series: dict[str, set[int]] = {}
    for stem in stems.values():
        if found := _NUMBERED.fullmatch(stem):
            series.setdefault(found[1], set()).add(int(found[2]))
    names: dict[Path, set[str]] = {}
    for file, stem in stems.items():
        found = _NUMBERED.fullmatch(stem)
        if found and (found[2].startswith("0") or series[found[1]] == set(range(1, len(series[found[1]]) + 1))):
            stem = found[1]
        parts = [part.lower() for part in file.relative_to(folder).parts[:-1] if part != config]
        names[file] = {*parts, stem}
    return names


def _words(names: Iterable[str]) -> set[str]:
    return {word for name in names for word in re.split(r"[\W_]+", name)}


def _of_hub(identity: str, request: Request) -> list[str]:
    import datasets

    try:
        dataset = datasets.load_dataset(identity, request.config or None, split=request.published_split)
    except Exception as error:  # every kind of network and format error ends the import in the same way
        raise ValueError(f"{identity}: `datasets` could not load split {request.published_split!r}: {error}") from error
    return [file["filename"] for file in dataset.cache_files]


def audio_column(schema: pyarrow.Schema, wanted: str | None = None) -> str:
    """The column of encoded audio: the wanted one, a struct of bytes and path or a list of such, or one so named.

    Raises ValueError for a column of decoded samples, and where there is none.
    """
    found = _audio_column(schema, wanted)
    kind = schema.field(found).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("array") >= 0 > kind.get_field_index("bytes"):
        raise ValueError(
            f"column {found!r} contains decoded samples ('array'), expected encoded files: "
            f"dataset.cast_column({found!r}, datasets.Audio()) before it is saved"
        )
    return found


def _audio_column(schema: pyarrow.Schema, wanted: str | None) -> str:
    names = list(schema.names)
    if wanted is not None:
        if wanted not in names:
            nested = "; columns within another are not read: dataset.flatten() first" if "." in wanted else ""
            raise ValueError(f"there is no audio column {wanted!r}; the table has {names}{nested}")
        return wanted
    kinds = {f.name: f.type.value_type if _is_list(f.type) else f.type for f in schema}
    structs = [n for n, kind in kinds.items() if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    if len(structs) > 1:
        raise ValueError(f"several columns contain audio ({structs}): say which, e.g. columns.audio={structs[0]}")
    named = structs or [name for name in AUDIO_COLUMNS if name in names]
    if not named:
        raise ValueError(
            f"no column of {names} contains audio (bytes, or bytes and path): set it, columns.audio=COLUMN; columns "
            "within another are not read: dataset.flatten() first"
        )
    return named[0]


def _audio_of(table: TableFile, request: Request) -> str:
    try:
        return audio_column(table.schema, request.columns.get("audio"))
    except ValueError as error:
        raise ValueError(f"{table.path}: {error}") from error


def _is_list(kind: pyarrow.DataType) -> bool:
    return bool(pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))


def _rows(table: TableFile, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, cells of ``columns``); the audio column is not read."""
    for start, stop in pairwise(table.starts):
        yield from enumerate(table.rows(start, tuple(columns), stop), start)


def _huggingface(request: Request) -> Found:
    """The rows of all files, each by the columns and class names of its own file: configurations have their own.

    Raises ValueError, with the file, for columns that cannot be read.
    """
    names = map("{:08d}".format, count())
    left, kept = Counter[str](), Counter[str]()
    known: dict[str, list[str]] = {}
    for path in table_files(request):
        table = TableFile(path, request.storage)
        audio = _audio_of(table, request)
        others = [name for name in table.schema.names if name != audio]
        if not request.field_columns and is_chat(dict.fromkeys(others, "")):
            yield from _chats(table, audio, others, names, kept)
            continue
        if _is_list(table.schema.field(audio).type):
            raise ValueError(f"column {audio!r} contains lists of clips: only chats and pairs are read with several")
        try:
            columns = mapping(request.field_columns, others)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        columns.pop("audio", None)
        # pandas and pyarrow write numbers without the names; those of the files before hold, if they are equal.
        own = class_names(table.schema)
        for column in {*columns.values()} & {*known} - {*own}:
            if not known[column] and pyarrow.types.is_integer(table.schema.field(column).type):
                raise ValueError(
                    f"{path}: column {column!r} has numbers without class names, and those of the files before differ: "
                    "import files that agree by themselves, or write the names as text"
                )
        classes = known | own
        known = {column: names if known.get(column, names) == names else [] for column, names in classes.items()}
        for number, row in _rows(table, sorted({column.split(".")[0] for column in columns.values()})):
            position = next(names)
            name = str(row[columns["key"]]) if "key" in columns else position
            try:
                record = record_of(row, columns, classes)
            except (ValueError, TypeError) as error:
                yield Drop(name, "bad cell", str(error))
                continue
            yield Item(name, (Recording(path, row=number, column=audio),), record)
        left.update(dict.fromkeys(untaken(columns, others), table.starts[-1]))
    note_untaken(request, left)
    if kept:
        request.notes.append(said_of(kept))


def _chats(table: TableFile, audio: str, others: Sequence[str], names: Iterator[str], kept: Counter[str]) -> Found:
    """Rows that are chats or pairs, as other tools write them, about the clip, or the list of clips, in ``audio``.

    ``kept`` counts the fields that are not of chats.
    """
    path = table.path
    for (number, row), cells in zip(_rows(table, others), _cells(table, audio), strict=True):
        name = next(names)
        try:
            record, clips = chat_record({**row, "audios": [*cells]})
            if more := [clip for clip in clips if clip not in cells]:
                raise BadRecord(f"it has {len(more)} clips in addition to those in column {audio!r}")
        except BadRecord as error:
            reason = "bad row" if error.reason == "bad record" else error.reason
            yield Drop(name, reason, f"{path}[{number}]: {error}", filter=reason == "no preference")
            continue
        kept.update(unknown_fields(record))
        found = tuple(Recording(path, row=number, column=audio, clip=cells[str(clip)]) for clip in clips)
        yield Item(name, found, record)


def _cells(table: TableFile, column: str) -> Iterator[dict[str, int | None]]:
    """{a name of the clip: its number in a list, or None} of each row."""
    if not _is_list(table.schema.field(column).type):
        yield from repeat({column: None}, table.starts[-1])
        return
    for length in table.lengths(column):
        yield {f"{column}[{i}]": i for i in range(length)}


def _voice_assistant(request: Request) -> Found:
    """split_name, index, round, question, question_audio, answer (answer_snac is not read): one chat per index."""
    read = ("split_name", "index", "round", "question", "answer")
    tables = (TableFile(path, request.storage) for path in table_files(request))
    found = ((table.path, number, row) for table in tables for number, row in _rows(table, read))
    for (source, index), group in groupby(found, key=lambda entry: (entry[2]["split_name"], entry[2]["index"])):
        turns = sorted(group, key=lambda entry: int(entry[2]["round"] or 0))
        name = f"{source}-{index}"
        if not all(str(row["answer"] or "").strip() for _, _, row in turns):
            yield Drop(name, "no answer")
            continue
        messages = [
            message
            for _, _, row in turns
            for message in (
                {"role": "user", "content": "<audio>"},
                {"role": "assistant", "content": str(row["answer"]).strip()},
            )
        ]
        first = turns[0][2]
        record: dict[str, Any] = {"messages": messages, "subset": str(source)}
        if len(turns) == 1:
            record |= present(question=first["question"], answer=first["answer"])
        audio = tuple(Recording(path, row=number, column="question_audio") for path, number, _ in turns)
        yield Item(name, audio, record)


def _align_anything(request: Request) -> Found:
    """prompt, response_1, response_2, overall_response (the better one: 1 or 2; of others neither), audio."""
    names, kept = map("{:08d}".format, count()), Counter[str]()
    for path in table_files(request):
        table = TableFile(path, request.storage)
        audio = _audio_of(table, request)
        yield from _chats(table, audio, ("prompt", "response_1", "response_2", "overall_response"), names, kept)
    if kept:
        request.notes.append(said_of(kept))


CORPORA = (
    Corpus("voice_assistant", "VoiceAssistant-400K", "Apache-2.0",
           "https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K", {"train": TRAIN}, _voice_assistant,
           ("messages", "question", "answer"), "synthetic questions only: add real speech",
           tasks=("chat",)),
    Corpus("align_anything", "align-anything, text-audio-to-text", "CC-BY-NC-4.0",
           "https://huggingface.co/datasets/PKU-Alignment/align-anything", {"train": TRAIN, "val": DEV},
           _align_anything, ("messages", "chosen", "rejected"), "path= the folder text-audio-to-text",
           tasks=("chat",)),
    Corpus("huggingface", "any Hugging Face dataset: a folder, Parquet or Arrow files, or a hub id",
           "not stated: set fields.license=", "https://huggingface.co/docs/datasets", 
           {"train": TRAIN, "validation": DEV, "test": TEST}, _huggingface, ("as mapped by columns.FIELD=COLUMN",),
           "columns named like record fields are taken as they are", generic=True),
)  # fmt: skip
