"""What a corpus reader is made of: a description, and an iterator of items that name their audio lazily.

A reader only looks at the corpus's lists and tables. An `Item` has the known facts about a
recording and where its bytes are; nothing is decoded before the shard is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.corpora.recordings import Recording
from data_pipelines.corpora.tree import Tree
from qa_train.config import StorageConfig
from qa_train.data.text.records import BadRecord, is_empty

TRAIN, DEV, TEST = "train", "dev", "test"
# The reason of a `Drop` where a list is published without its audio: videos vanish, and few have all source corpora.
NOT_OBTAINED = "audio not obtained"


@dataclass(frozen=True)
class Item:
    """One record to be: ``record`` has the field names of `qa_train.data.text.records`.

    ``ids`` name the underlying recording across corpora ("youtube:ID", "freesound:ID", "clotho:file.wav"): the
    blocklist is checked against them, against ``file:STEM``, and against ``CORPUS:name``. ``joined``: the parts of
    ``audio`` are one clip, one after the other.
    """

    name: str
    audio: tuple[Recording, ...]
    record: dict[str, Any]
    ids: tuple[str, ...] = ()
    joined: bool = False

    def by_caption(self) -> Iterator[Item]:
        """One item for each of the record's ``captions``, named NAME-1 and so on; itself where it has none."""
        captions = self.record.get("captions") or []
        if not captions:
            yield self
        rest = {name: value for name, value in self.record.items() if name != "captions"}
        for number, caption in enumerate(captions, 1):
            yield replace(self, name=f"{self.name}-{number}", record=rest | {"caption": caption})


@dataclass(frozen=True)
class Drop:
    """Something of the corpus that does not become a record, and why.

    Damage counts against ``error_budget``. A ``filter`` (held out, not part of the task) is as it should be and counts
    against nothing; ``NOT_OBTAINED``, audio that the corpus does not ship, has a budget of its own.
    """

    name: str
    reason: str
    detail: str = ""
    filter: bool = False


def obtained(
    tree: Tree, name: str, file: str | None, record: dict[str, Any], ids: tuple[str, ...], detail: str
) -> Item | Drop:
    """The item of a clip of a list that is published without its audio; a drop where there is no ``file`` of it."""
    return Drop(name, NOT_OBTAINED, detail) if file is None else Item(name, (tree.recording(file),), record, ids)


Found = Iterator[Item | Drop]


@dataclass(frozen=True)
class TableForm:
    """How a foreign table is written, where it does not show; "", () and None mean: as the file itself tells."""

    delimiter: str = ""
    # Names of the columns of a file without a line of them.
    header: tuple[str, ...] = ()
    encoding: str = ""
    # Whether quotation marks hold cells together, or are letters.
    quoted: bool | None = None
    # Of audio files that are listed without it: wav.
    extension: str = ""


@dataclass(frozen=True)
class Request:
    """What a reader is asked for: a split of the corpus that lies at ``paths``."""

    paths: tuple[str, ...]
    split: str
    # generic readers: record field -> column of the table
    columns: dict[str, str] = field(default_factory=dict)
    # Hugging Face: the dataset's configuration
    config: str = ""
    table: TableForm = TableForm()
    # Lists that were made on another machine: the beginning of their paths there, and here.
    prefix: tuple[str, str] | None = None
    # Files that are not at their listed paths are searched by name.
    by_name: bool = False
    # For a streamed file: its folders, if other files have the same name.
    part: str = ""
    # How remote files are read.
    storage: StorageConfig = field(default_factory=StorageConfig)
    # What a reader has to say about its lists, for the report.
    notes: list[str] = field(default_factory=list)
    # Share of what is for training, or has no split, that is held out; None: nothing.
    split_share: float | None = None

    def without_split(self, listed: str) -> None:
        """Readers call it for a list, or a row of one, that does not say which split it belongs to.

        Raises:
            ValueError: held-out data are asked for, and nothing keeps them apart from what is imported for training.
        """
        role = role_named(self.split)
        named = {role_named(Path(listed).name)} | self._roles_of_paths
        if self.split_share is None and role != TRAIN and role not in named:
            raise ValueError(
                f"{listed} has no column split, so split={self.split} would be the same recordings as split=train: "
                f"hold a share out with split_share=0.1, given to both imports (split=train takes the rest), name a "
                "list with a name that includes the split, or give the list such a column"
            )

    def takes(self, record: dict[str, Any], listed: str = "") -> bool:
        """Whether a record is of the split that is asked for; its field ``split`` is taken out.

        ``listed``: the list whose records must say it, or be checked by `without_split`.
        """
        if listed and "split" not in record:
            self.without_split(listed)
        return bool(record.pop("split", self.published_split) == self.published_split)

    def role_said(self, listed: str) -> str | None:
        """What the name or a folder of a list says its split is for; None where none does.

        A list named like a clip may have any words in its name, so its folders come first.
        """
        *folders, own = PurePosixPath(listed).parts
        parts = [own, *reversed(folders)]
        if self.tree.by_stem(stem(listed)):
            parts.append(parts.pop(0))
        return next((role for part in parts if (role := role_in(part))), None)

    def of_split(self, names: Iterable[str]) -> list[str]:
        """Lists or recordings of the split, by their names and folders: those that say it, else those that say none."""
        said = {name: self.role_said(name) for name in names}
        role = role_named(self.published_split)
        return [name for name in said if said[name] == role] or [name for name in said if said[name] is None]

    def lists(self, names: Sequence[str]) -> list[str]:
        """Those of the lists ``names``, given in path= or found there, that are of the split.

        Raises:
            ValueError: all are of other splits, or none says its split and held-out data are asked for.
        """
        found = self.of_split(names)
        if not found:
            raise ValueError(
                f"no list is of split {self.split}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; name "
                "one, path=[LIST,AUDIO], with a name that includes the split"
            )
        if self.role_said(found[0]) is None:
            for name in found:
                self.without_split(name)
        return found

    def listed_audio(self, file: str, within: str = "") -> str:
        """The audio file that a list of the split names, found by its name in any folder below ``within``.

        ``file``: with or without an extension, and the folders of the machine where the list was made. Of several files
        of one name those count that lie in the folders listed, then those whose folders say the split.

        Raises:
            BadRecord: there is none ("missing audio"), or several may be meant ("ambiguous audio").
        """
        name = PurePosixPath(file).name
        found = self.tree.all_by_stem(name, within) or self.tree.all_by_stem(stem(name), within)
        if not found:
            raise BadRecord(f"no audio file {stem(name)}.* in {within or '.'} or below", "missing audio")
        if len(found) == 1 or len(_folders(found)) == 1:
            return found[0]
        listed = [p for p in found if any(f"/{q}".endswith(f"/{file}") for q in (p, p.rpartition(".")[0]))] or found
        meant = listed if len(_folders(listed)) == 1 else self.of_split(listed)
        if len(_folders(meant)) != 1:
            raise BadRecord(
                f"{' and '.join((meant or listed)[:3])}: expected one recording {name}; name its folder in path=, or "
                "move the others away",
                "ambiguous audio",
            )
        return meant[0]

    @cached_property
    def _roles_of_paths(self) -> set[str]:
        return {role_named(Path(path).name) for path in self.paths}

    @property
    def field_columns(self) -> dict[str, str]:
        """``columns`` without the audio, which is no field of a record."""
        return {name: column for name, column in self.columns.items() if name != "audio"}

    @property
    def published_split(self) -> str:
        """The split to look for in a list: a share is held out of what is for training."""
        return self.split if self.split_share is None else TRAIN

    @cached_property
    def tree(self) -> Tree:
        """The files at ``paths``, listed when first needed."""
        return Tree(self.paths)


def _folders(paths: list[str]) -> set[PurePosixPath]:
    return {PurePosixPath(path).parent for path in paths}


def role_named(split: str) -> str:
    """What a split of a layout is for, by its name."""
    words = set(re.split(r"[\W_\d]+", split.lower()))
    if words & {"test", "eval", "evaluation", "te", "heldout"}:
        return TEST
    return DEV if words & {"dev", "devel", "val", "valid", "validate", "validation"} else TRAIN


def role_in(name: str) -> str | None:
    """What the split that a name says is for; None where it says none."""
    role = role_named(name)
    return role if role != TRAIN or re.search(r"(?<![a-z])train(?:ing)?(?![a-z])", name.lower()) else None


@dataclass(frozen=True)
class Corpus:
    """A public corpus: what its licence is, which official splits it has, and how it is read.

    ``splits`` maps the official name of a split to what it is for: "train", "dev" or "test". ``license`` is
    what the holders state; "(unverified)" marks what was not confirmed: check before publishing weights.
    """

    name: str
    title: str
    license: str
    homepage: str
    splits: dict[str, str]
    read: Callable[[Request], Found]
    gives: tuple[str, ...] = ()
    note: str = ""
    # Tasks of the prompt bank that its records are for; of a layout, whatever its fields allow.
    tasks: tuple[str, ...] = ()
    # A layout, not a corpus: any split name is allowed, and its name defines its purpose.
    generic: bool = False
    # Of files at addresses the reader's recordings have their bytes with them (``Recording.raw``), so that each file is
    # read once, from its beginning to its end.
    streams: bool = False

    def role(self, split: str) -> str:
        """What a split is for: "train", "dev" or "test". ValueError when the corpus has no such split."""
        if split in self.splits:
            return self.splits[split]
        if not self.generic:
            raise ValueError(f"{self.title} has no split {split!r}; its splits are {', '.join(self.splits)}")
        return role_named(split)

    @property
    def train_splits(self) -> list[str]:
        """The splits that may be trained on."""
        return [name for name, role in self.splits.items() if role == TRAIN]


_GENDERS = {
    "m": "male", "male": "male", "male_masculine": "male", "man": "male",
    "f": "female", "female": "female", "female_feminine": "female", "woman": "female",
}  # fmt: skip


def gender_of(text: object) -> str | None:
    """ "male" or "female" from a corpus's own word for it; None for anything else."""
    return _GENDERS.get(str(text or "").strip().lower())


def words_of(identifier: str) -> str:
    """ "Electric_guitar" -> "Electric guitar"."""
    return identifier.replace("_", " ").strip()


def without_spaces(text: str) -> str:
    """Chinese text without the spaces between its characters; spaces between Latin words stay."""
    return re.sub(r"(?<=[^\x00-\x7F])\s+|\s+(?=[^\x00-\x7F])", "", text.strip())


def events_record(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a clip with ``events``, {label, start, end} each in seconds: in their order, with their labels."""
    events = sorted(events, key=lambda event: (event["start"], event["end"], event["label"]))
    return {"events": events, "labels": list(dict.fromkeys(str(event["label"]) for event in events))}


def present(**fields: Any) -> dict[str, Any]:
    """A record of the fields that hold something."""
    return {name: value for name, value in fields.items() if not is_empty(value)}


def seconds_of(start: Any, end: Any) -> tuple[float, float]:
    """The times of a segment as numbers. ValueError unless 0 <= start < end, and both are finite."""
    first, last = float(start), float(end)
    if not 0 <= first < last < math.inf:
        raise ValueError(f"from {start} s to {end} s; expected 0 <= start < end")
    return first, last


def stem(path: str) -> str:
    """File name without folder and extension."""
    return Path(path).stem
