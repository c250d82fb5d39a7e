"""The report of an import: counts with examples, written next to the shards."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from data_pipelines.corpora.base import NOT_OBTAINED, Drop, Item, Request
from qa_train.data.shards.sidecar import ShardIndex
from qa_train.data.stores.folders import write_text
from qa_train.utils.atomic import json_text
from qa_train.utils.progress import counted, duration

if TYPE_CHECKING:
    from data_pipelines.corpora.tree import Tree

EXAMPLES = 5


class Unlisted:
    """Unlisted audio files next to those of a split."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._folders: set[str] = set()
        self._stems: set[str] = set()

    def seen(self, found: Item | Drop) -> None:
        """Note what a reader found."""
        self._stems.add(found.name)
        for place in found.audio if isinstance(found, Item) else ():
            path = PurePath(place.member or place.path)
            self._folders.add(str(path.parent))
            self._stems.add(path.stem)

    def notes(self) -> list[str]:
        """A sentence with their number and an example, and one about files that were found by other capitals."""
        # Readers of tables that carry their audio list no files.
        tree: Tree | None = vars(self._request).get("tree")
        if tree is None:
            return []
        places = (place for name in tree.audio_names() for place in tree.places(name))
        names = [PurePath(place.member or place.path) for place in places]
        extra = [path for path in names if str(path.parent) in self._folders and path.stem not in self._stems]
        notes = []
        if found := tree.other_capitals:
            notes.append(f"{len(found)} files were found under names with other capitals, e.g. {found[0]}")
        if not extra:
            return notes
        return [
            *notes,
            f"{len(extra)} audio files in the same folders belong to no record of this split, e.g. {extra[0].name}",
        ]


@dataclass
class Report:
    """What an import read, made and skipped, by reason; written next to the shards.

    ``bad`` counts entries skipped as damaged (the error budget is compared with it), ``missing`` the clips that a list
    is published without and that were not obtained.
    """

    corpus: str
    split: str
    license: str
    listed: int = 0
    made: int = 0
    bad: int = 0
    missing: int = 0
    hours: float = 0.0
    shards: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    # What was imported, without signatures.
    path: list[str] = field(default_factory=list)

    def drop(self, name: str, reason: str, detail: str = "") -> None:
        """Count a left-out item, and keep the first few of each reason as examples."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{name}: {detail}" if detail else name)

    def count_shard(self, index: ShardIndex) -> None:
        """Count a shard that was made."""
        self.shards += 1
        self.made += len(index)
        self.hours += sum(index.table["duration_s"].to_pylist()) / 3600

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json_text(asdict(self), indent=2, sort_keys=True) + "\n")

    @staticmethod
    def saved(path: Path) -> dict[str, Any]:
        """What is saved there; nothing where there is no report. ValueError for a damaged one."""
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no report of an import ({error}): move it away") from error

    def count(self, drop: Drop) -> None:
        """Count what a reader, or the rules of the import, left out."""
        self.drop(drop.name, drop.reason, drop.detail)
        self.missing += drop.reason == NOT_OBTAINED
        self.bad += not drop.filter and drop.reason != NOT_OBTAINED

    def text(self) -> str:
        """The report for a person."""
        lines = [
            f"{self.corpus}, {self.split}: {self.made} records, {duration(self.hours * 3600)} of audio in "
            f"{counted(self.shards, 'shard')} (licence: {self.license})"
        ]
        for reason, count in sorted(self.dropped.items(), key=lambda entry: -entry[1]):
            lines.append(f"  skipped {count}: {reason}, e.g. {self.examples[reason][0]}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
