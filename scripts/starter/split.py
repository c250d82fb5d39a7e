"""Training and test: what belongs together is grouped first, then whole groups are held out.

Draws are keyed hashes of names, so that adding a clip never moves another one across the line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from data_pipelines.clips.picks import draw
from scripts.quickstart_data.clip import Clip
from scripts.quickstart_data.spoken_text import TextIndex


class _Joined:
    """Disjoint sets of names (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        roots = sorted((self.find(one), self.find(other)))
        self._parent[roots[1]] = roots[0]


def speech_groups(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Groups of clips that must share a side: same ``group``, or conflicting texts in any language.

    A clip counts with its transcript and with its translations.
    """
    joined = _Joined()
    texts: dict[str, TextIndex] = defaultdict(TextIndex)
    owner: dict[tuple[str, str], str] = {}
    for clip in clips:
        name = f"group {clip.group}"
        joined.find(name)
        for language, text in clip_texts(clip):
            for other in texts[language].conflicts(text):
                joined.join(name, owner[language, other])
            texts[language].add(text)
            owner.setdefault((language, text), name)
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[joined.find(f"group {clip.group}")].append(clip)
    return [groups[root] for root in sorted(groups)]


def clip_texts(clip: Clip) -> list[tuple[str, str]]:
    """(language, text) of the transcript and of every translation of a clip."""
    record = clip.record
    return [(record["language"], record["text"]), *record.get("translation", {}).items()]


def hold_out(
    groups: Iterable[list[Clip]], *, seed: str, wanted: int, counts: Callable[[Clip], bool], max_group: int
) -> tuple[list[Clip], list[Clip]]:
    """Splits groups into (train, test) until test holds ``wanted`` clips for which ``counts`` is true.

    Groups without such a clip, and groups of more than ``max_group`` clips, stay in training.
    """
    train: list[Clip] = []
    test: list[Clip] = []
    found = 0
    for group in sorted(groups, key=lambda group: draw(seed, group[0].group)):
        counted = sum(map(counts, group))
        if found < wanted and counted and len(group) <= max_group:
            test.extend(group)
            found += counted
        else:
            train.extend(group)
    if found < wanted:
        raise ValueError(f"only {found} clips can be held out, {wanted} wanted; raise max_group or lower wanted")
    return sorted(train, key=lambda clip: clip.key), sorted(test, key=lambda clip: clip.key)


def hold_out_per_class(clips: Sequence[Clip], *, seed: str, share: float) -> tuple[list[Clip], list[Clip]]:
    """Splits labelled clips into (train, test) class by class; clips of one ``group`` stay together.

    Each class gives about ``share`` of its clips to test, and keeps at least one group for training.
    """
    train: list[Clip] = []
    test: list[Clip] = []
    for label in sorted({clip.record["label"] for clip in clips}):
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            if clip.record["label"] == label:
                groups[clip.group].append(clip)
        total = sum(map(len, groups.values()))
        held = 0
        for name in sorted(groups, key=lambda name: draw(seed, label, name)):
            if held + len(groups[name]) <= round(share * total):
                test.extend(groups[name])
                held += len(groups[name])
            else:
                train.extend(groups[name])
    return sorted(train, key=lambda clip: clip.key), sorted(test, key=lambda clip: clip.key)
