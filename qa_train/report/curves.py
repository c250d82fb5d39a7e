"""What the pages draw of runs: the panels of each stage, and every run's curves as plain values.

The scripts in ``templates`` draw them: one colour for a run wherever it appears, one panel for a metric. A point is
made once, when a later step follows it: what a page of growing runs costs is what they have grown by.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import count, islice
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

from qa_train.config import STAGES
from qa_train.report.panels import DERIVED, GROUPS, PANELS, SETTINGS, Panel, Row, is_score, panel_of
from qa_train.report.runs import Run, Steps, differences, is_number

# Points of a curve: a longer run is averaged over neighbouring steps, and says so.
MAX_POINTS = 1000
# Steps of the mean that stands for a run's loss in tables.
LAST_STEPS = 20
# What the axes but the first are sums of.
_AXES = {"tokens": "tokens", "audio": "audio_s", "time": "seconds"}
_MEDIANS = ("tokens_per_s", "audio_s_per_s")
_GENERATIONS = count(1)
_KNOWN: WeakKeyDictionary[Steps, Curves] = WeakKeyDictionary()


def board_of(runs: Sequence[Run], kept: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All that the scripts draw, for JSON: ``runs`` with curves, ``stages`` with panels, ``scores`` with titles.

    kept: run -> how many of its first points the page has; they are not sent again.
    """
    drawn = [curves_of(run).drawn((kept or {}).get(run.name, 0)) for run in runs]
    stages = list(dict.fromkeys(run.stage for run in runs))
    return {
        "runs": [{"name": run.name, "stage": run.stage} | each for run, each in zip(runs, drawn, strict=True)],
        "stages": [_stage(stage, [run for run in runs if run.stage == stage]) for stage in stages],
        "scores": _scores(runs),
    }


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels for which a run has a curve of two points that are not all zero, in the order of their groups."""
    keys, scores = {key for run in runs for key in curves_of(run).keys}, _scores(runs)
    known = [panel.key for panel in PANELS if panel.key in keys]
    others = sorted(keys.difference(known), key=lambda key: (key not in scores, key))
    panels = [panel for key in (*known, *others) if (panel := panel_of(key)) is not None]
    titled = [replace(panel, title=scores.get(panel.key, panel.title)) for panel in panels]
    return sorted(titled, key=lambda panel: GROUPS.index(panel.group))


def last_loss(run: Run) -> float | None:
    """The mean loss of the last ``LAST_STEPS`` steps."""
    found = (float(row["loss"]) for row in reversed(run.rows) if is_number(row.get("loss")))
    losses = [*islice(found, LAST_STEPS)][::-1]
    return sum(losses) / len(losses) if losses else None


def _scores(runs: Sequence[Run]) -> dict[str, str]:
    """Held-out metrics -> title: the set, how it is scored, and over how many items."""
    titles = {}
    for points in (curves_of(run).points for run in runs):
        for key in points.scores:
            name = key.removeprefix("eval/")
            how = points.evaluated.get(name)
            said = f" ({how.get('metric')}, n = {how.get('n')})" if how is not None else ""
            titles[key] = ("held out: " if key.startswith("eval/") else "") + name + said
    return dict(sorted(titles.items()))


def _stage(stage: str, runs: list[Run]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for panel in panels_of(runs):
        said = {"key": panel.key, "title": panel.title, "steady": panel.steady}
        groups.setdefault(panel.group, []).append(said)
    return {
        "name": stage,
        "title": f"stage {list(STAGES).index(stage) + 1}: {stage}" if stage in STAGES else stage,
        "groups": [{"title": title, "panels": panels} for title, panels in groups.items()],
        "differences": {key: [_short(value) for value in values] for key, values in differences(runs).items()},
    }


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


class Points:
    """The points of a run's curves, and what follows from all its rows; rows are added in order."""

    def __init__(self) -> None:
        # Axis, or metric, -> values; ``at``: the numbers of the points that have one.
        self.x: dict[str, list[float]] = {"step": [], **{axis: [] for axis in _AXES}}
        self.y: dict[str, list[float]] = {}
        self.at: dict[str, list[int]] = {}
        # Rows of the longest point.
        self.longest = 1
        # Of each metric: its last value, how many there are, whether one is not zero.
        self.last: dict[str, float] = {}
        self.count: Counter[str] = Counter()
        self.lively: set[str] = set()
        self.sums = dict.fromkeys(_AXES.values(), 0.0)
        self.ordered: dict[str, list[float]] = {key: [] for key in _MEDIANS}
        # Held-out set -> its newest entry of ``evaluation``.
        self.evaluated: dict[str, Row] = {}
        # Steps; an evaluation before the first one has a row of its own.
        self.trained = 0

    def copy(self) -> Points:
        """The same points, to be continued apart from these."""
        made = Points()
        for name, value in vars(self).items():
            lists = name in ("x", "y", "at", "ordered")
            setattr(made, name, {key: [*values] for key, values in value.items()} if lists else copy(value))
        return made

    def add(self, run: Run, rows: Sequence[Row]) -> None:
        """One more point, of these rows."""
        values: dict[str, list[float]] = {}
        for row in rows:
            for key, value in {**row, **{key: derive(run, row) for key, derive in DERIVED.items()}}.items():
                if is_number(value):
                    values.setdefault(key, []).append(float(value))
            if isinstance(said := row.get("evaluation"), dict):
                self.evaluated |= {name: each for name, each in said.items() if isinstance(each, dict)}
            self.trained += row["step"] > 0
        self.longest = max(self.longest, len(rows))
        number = len(self.x["step"])
        for key, found in values.items():
            self.last[key] = found[-1]
            self.count[key] += len(found)
            if any(found):
                self.lively.add(key)
            if (panel := panel_of(key)) is not None:
                point = found[-1] if panel.steady else sum(found) / len(found)
                self.y.setdefault(key, []).append(_rounded(point))
                self.at.setdefault(key, []).append(number)
            for value in found if key in self.ordered else ():
                insort(self.ordered[key], value)
        self.x["step"].append(rows[-1]["step"])
        for axis, key in _AXES.items():
            for value in values.get(key, ()):
                self.sums[key] += value
            self.x[axis].append(_rounded(self.sums[key]))

    @property
    def scores(self) -> dict[str, float]:
        """The newest value of every held-out score."""
        return {key: value for key, value in sorted(self.last.items()) if is_score(key)}

    def median(self, key: str) -> float | None:
        """Of a metric's values: one slow step (a save, a start) does not move it."""
        return median(self.ordered[key]) if self.ordered[key] else None


class Curves:
    """The points of a run, kept while it grows.

    Points that a later row follows are final, unless rows before were trained again or a run became so long that its
    points are means of more steps: then all are made anew.
    """

    def __init__(self) -> None:
        self._rows: Sequence[Row] = ()
        self._basis: tuple[Any, ...] = ()
        self._final, self._done, self._generation = Points(), 0, 0
        self.points = Points()

    def take(self, run: Run) -> None:
        """Make these the points of the run as it is now."""
        basis = (max(1, -(-len(run.rows) // MAX_POINTS)), *map(run.setting, SETTINGS))
        if run.rows is self._rows and basis == self._basis:
            return
        before = self._rows[: self._done]
        same = len(run.rows) >= len(before) and all(a is b for a, b in zip(before, run.rows, strict=False))
        if not same or basis != self._basis:
            self._final, self._done, self._generation = Points(), 0, next(_GENERATIONS)
        *final, newest = [*_buckets(run.rows[self._done :], basis[0])] or [[]]
        for bucket in final:
            self._final.add(run, bucket)
            self._done += len(bucket)
        self.points = self._final.copy()
        if newest:
            self.points.add(run, newest)
        self._rows, self._basis = run.rows, basis

    @property
    def keys(self) -> set[str]:
        """Metrics that are drawn: with two values that are not all zero."""
        return {key for key in self.points.y if self.points.count[key] >= 2 and key in self.points.lively}

    @property
    def place(self) -> tuple[object, int]:
        """(What a page must have in common with these curves, how many points of them are final then)."""
        return (self._generation, self.keys, self._axes()), len(self._final.x["step"])

    def _axes(self) -> list[str]:
        return ["step", *(axis for axis, key in _AXES.items() if self.points.sums[key] > 0)]

    def drawn(self, kept: int = 0) -> dict[str, Any]:
        """``x``: each axis at every point; ``curves``: y, and ``at``, which points; the first ``kept`` are left out."""
        points = self.points
        curves: dict[str, dict[str, list[Any]]] = {}
        for key in self.keys:
            at = points.at[key]
            first = bisect_left(at, kept)
            everywhere = not kept and len(at) == len(points.x["step"])
            curves[key] = {"y": points.y[key][first:]} | ({} if everywhere else {"at": at[first:]})
        x = {axis: points.x[axis][kept:] for axis in self._axes()}
        return {"x": x, "per_point": points.longest, "curves": curves} | ({"kept": kept} if kept else {})


def curves_of(run: Run) -> Curves:
    """The curves of a run as it is now, made on from those of an earlier reading of its folder."""
    found = _KNOWN.setdefault(run.steps, Curves())
    found.take(run)
    return found


def _buckets(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows that make one point; one with held-out scores ends it, so that they stand at their step."""
    bucket: list[Row] = []
    for row in rows:
        bucket.append(row)
        if len(bucket) >= size or "evaluation" in row:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
