"""Which items of a corpus become records, under which keys, and with which fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.corpora.base import TRAIN, Corpus, Drop, Found, Item, Request
from data_pipelines.corpora.recordings import Recording
from data_pipelines.importing.blocklist import Blocklist
from qa_train.data.text.records import BadRecord, check_text
from qa_train.utils import draws


@dataclass(frozen=True)
class Entry:
    """An item that becomes a record."""

    key: str
    item: Item
    record: dict[str, Any]

    @property
    def bare(self) -> bool:
        """Whether its list says nothing of it: there is no text, no label."""
        return not set(self.record) - {"source", "split", "license", "subset"}


@dataclass(frozen=True)
class Admission:
    """The rules for one split of a corpus. Picklable, so that they hold in the processes that read it."""

    corpus: Corpus
    split: str
    # Of the keys and shards.
    prefix: str
    # What the records name as their source.
    source: str
    purpose: str = "train"
    where: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    split_share: float | None = None
    block: Blocklist = field(default_factory=Blocklist)
    # Digest of a key -> that of the item's name; None if the key is the name as it is.
    _seen: dict[bytes, bytes | None] = field(default_factory=dict)

    def judge(self, found: Item | Drop) -> Entry | Drop:
        """What becomes of an item. Of two with equal names the second is damage; what the rules keep out is not."""
        if isinstance(found, Drop):
            return found
        role = self.corpus.role(self.split)
        known = {} if self.corpus.generic else {"license": self.corpus.license}
        known |= {} if role == self.split else {"subset": self.split}
        record = known | found.record | {"source": self.source, "split": role} | self.fields
        try:
            check_text(record)
        except BadRecord as error:
            return Drop(found.name, "bad text", str(error))
        reason = self._kept_out(found, record, role)
        if reason is not None:
            return Drop(found.name, *reason, filter=True)
        key = f"{self.prefix}-{plain(found.name)}"
        digest, name = draws.digest(key), None if plain(found.name) == found.name else draws.digest(found.name)
        if self._seen.get(digest, name) != name:
            # Another name of the same letters: "Car Keys", "Car_Keys".
            key += f"-{draws.digest(found.name).hex()[:8]}"
            digest = draws.digest(key)
        if digest in self._seen:
            return Drop(found.name, "duplicate name", key)
        self._seen[digest] = name
        return Entry(key, found, record)

    def _kept_out(self, item: Item, record: dict[str, Any], role: str) -> tuple[str, str] | None:
        """Why an item does not become a record: (reason, detail)."""
        for name, wanted in self.where.items():
            if record.get(name) not in (wanted if isinstance(wanted, list) else [wanted]):
                return f"where {name}", str(record.get(name))
        if self.split_share is not None and (_share_of(item, record) < self.split_share) == (role == TRAIN):
            return "in the other split", f"split_share={self.split_share}"
        if self.purpose == "train":
            blocked = self.block.match(self.corpus.name, item)
            if blocked is not None:
                return "blocklist", blocked
        return None


class Bare:
    """Counts records of which nothing is known."""

    def __init__(self) -> None:
        self._number, self._first = 0, ""

    def look(self, entry: Entry) -> None:
        """Count one, if it is such."""
        if entry.bare:
            self._number, self._first = self._number + 1, self._first or entry.key

    def notes(self) -> list[str]:
        """One sentence, or none."""
        told = f"records without a text, label or any other field: {self._number}, e.g. {self._first}"
        return [told] if self._number else []


def items_of(corpus: Corpus, request: Request) -> Found:
    """The reader's items, of a clip with several captions one for each that is trained on.

    A list that is not as published is a clear error.
    """
    train = corpus.role(request.split) == TRAIN
    try:
        for found in corpus.read(request):
            if train and isinstance(found, Item):
                yield from found.by_caption()
            else:
                yield found
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{corpus.title}, split {request.split}: its lists are not as they are published ({error!r})"
        ) from error


def plain(name: str) -> str:
    """A name for keys and files: letters, digits, "_" and "-" only (a dot would begin the file's type)."""
    return re.sub(r"[^\w\-]+", "_", name).strip("_") or "_"


def _share_of(item: Item, record: dict[str, Any]) -> float:
    """A number in [0, 1) that all recordings of a speaker share; of nobody's, all parts of one recording."""
    first = item.audio[0] if item.audio else Recording(item.name)
    place = item.name if first.data else f"{first.path} {first.member} {first.offset} {first.row}"
    return draws.share(f"split_share {record.get('speaker') or place}")
