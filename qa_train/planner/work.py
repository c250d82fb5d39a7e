"""What one micro-batch holds, and how the tasks share a run: from the shards if available, else as declared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qa_train.config import PlanConfig, StageConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.mixture_report import Ints, effective_mixture, steps_of_epochs
from qa_train.data.open_sources import records_at_hand
from qa_train.data.order.mixture import Line, effective_weights
from qa_train.model.flops import Work
from qa_train.planner.balance import open_planned

# Steps whose batches are planned to see how long the samples are.
LOOK = 20


@dataclass(frozen=True)
class Task:
    """One source over the whole run. epochs: passes over it; None when its size is unknown."""

    source: str
    task: str
    share: float
    samples: float
    tokens: float
    hours: float
    epochs: float | None


@dataclass(frozen=True)
class Load:
    """One micro-batch, and the run's samples, tokens and hours by source. origin: where the lengths come from."""

    work: Work
    samples: float
    clip_s: float
    tasks: list[Task]
    origin: str
    problems: list[str] = field(default_factory=list)
    # Samples per second that one process plans; None if the shards are not here, or were planned before.
    planned_per_s: float | None = None

    @property
    def audio_s(self) -> float:
        """Seconds of audio of one micro-batch."""
        return self.samples * self.clip_s


def declared(cfg: StageConfig, options: PlanConfig) -> Load:
    """The load when every sample is one clip of ``clip_s`` seconds with ``text_tokens`` tokens of text.

    ValueError for lengths or hours that cannot be, and for a mixture that is none.
    """
    clip_s, text_tokens, answer_tokens = options.clip_s, options.text_tokens, options.answer_tokens
    if not 0 < answer_tokens <= text_tokens or clip_s < 0:
        raise ValueError(
            f"plan: clip_s={clip_s} text_tokens={text_tokens} answer_tokens={answer_tokens}: use sizes > 0"
        )
    rows, seconds, absent = records_at_hand(cfg.data)
    hours = {name: each / 3600 for name, each in seconds.items()} | options.hours
    origin = f"the options: clips of {clip_s:g} s"
    if rows:
        clip_s = sum(seconds.values()) / sum(rows.values())
        origin = f"{sum(rows.values()):,} available records, {clip_s:.1f} s on average; from the options"
    load = _load(cfg, clip_s, text_tokens, answer_tokens, 1.0)
    total = load[1] * cfg.trainer.batches_per_step * cfg.trainer.max_steps
    shares, problems = _shares(cfg, hours)
    if rows and absent:
        problems.append(f"not available, assumed to have the same lengths: {', '.join(absent)}")
    per_sample = sum(load[0].documents) / load[1]
    tasks = []
    for name, share in shares.items():
        samples = share * total
        # Of a source that is at hand, its own mean length.
        mean_s = seconds[name] / rows[name] if rows.get(name) else clip_s
        heard = samples * mean_s / 3600
        epochs = samples / rows[name] if rows.get(name) else heard / hours[name] if hours.get(name) else None
        tasks.append(Task(name, cfg.data.sources[name].task, share, samples, samples * per_sample, heard, epochs))
    origin += f", {text_tokens} text tokens, {answer_tokens} of them answers"
    return Load(load[0], load[1], clip_s, tasks, origin, problems)


def from_data(cfg: StageConfig) -> Load:
    """The load as the plan of the shards gives it. ValueError or FileNotFoundError if they cannot be opened."""
    data = open_planned(cfg)
    if cfg.trainer.epochs is not None:
        cfg.trainer.max_steps = steps_of_epochs(data.plan, data.sources, cfg.trainer.epochs)
    lengths: list[Ints] = []
    seen = effective_mixture(data.plan, data.sources, min(cfg.trainer.max_steps, LOOK), lengths=lengths)
    return replace(from_effective_mixture(cfg, seen, lengths), planned_per_s=data.plan.rate)


def from_effective_mixture(cfg: StageConfig, seen: dict[str, Any], lengths: list[Ints]) -> Load:
    """The load of a run with first steps ``seen`` and sample lengths ``lengths``.

    See `qa_train.data.mixture_report.effective_mixture`.
    """
    steps = seen["steps"]
    times = cfg.trainer.max_steps / steps
    samples = max(1, seen["samples"])
    clip_s = sum(row["hours"] for row in seen["sources"]) * 3600 / samples
    text = max(1.0, seen["tokens"] / samples - clip_s * FRONT_END.tokens_per_second)
    work, per_batch = _typical(cfg, np.concatenate(lengths), seen["fill"])
    tasks = [
        Task(row["source"], row["task"], row["share"], row["samples"] * times, row["tokens"] * times,
             row["hours"] * times, row["epochs"] * times)
        for row in seen["sources"]
    ]  # fmt: skip
    origin = f"the shards: {steps} steps planned, {clip_s:.1f} s and {text:.0f} text tokens per sample on average"
    return Load(work, per_batch, clip_s, tasks, origin)


def _typical(cfg: StageConfig, lengths: Ints, fill: float) -> tuple[Work, float]:
    """(a micro-batch whose samples are spread evenly over those there are, by length; how many it holds on average).

    Samples of the mean length would hide what attention costs in long ones.
    """
    samples = max(1.0, cfg.data.tokens_per_batch * fill / lengths[:, 1].mean())
    ordered = lengths[np.lexsort(lengths.T[:2])]
    number = round(samples)
    audio, tokens, scored = ordered[((np.arange(number) + 0.5) * len(ordered) / number).astype(int)].T
    window = FRONT_END.segment_tokens
    frames = FRONT_END.frames_per_token
    segments: list[int] = []
    if not cfg.data.encoder_cache:
        for whole, rest in zip(*divmod(audio, window), strict=True):
            segments += [window * frames] * int(whole) + [int(rest) * frames] * bool(rest)
    # A pair is two documents.
    rows = cfg.kind.rows
    documents = [int(count) // rows for count in tokens for _ in range(rows)]
    return Work(segments, documents, int(scored.sum())), samples


def _load(cfg: StageConfig, clip_s: float, text: float, answers: float, fill: float) -> tuple[Work, float]:
    """(what a micro-batch of equal samples holds, how many samples); a pair has two rows and one clip."""
    rows = cfg.kind.rows
    document = max(1, round(clip_s * FRONT_END.tokens_per_second + text))
    samples = max(1.0, cfg.data.tokens_per_batch * fill / (rows * document))
    segments: list[int] = []
    if not cfg.data.encoder_cache and clip_s > 0:
        whole, rest = divmod(clip_s, FRONT_END.segment / FRONT_END.sample_rate)
        clip = [FRONT_END.segment_frames] * int(whole)
        if rest * FRONT_END.frames_per_second >= 3:
            clip.append(round(rest * FRONT_END.frames_per_second))
        segments = clip * round(samples)
    documents = [document] * round(rows * samples)
    return Work(segments, documents, round(rows * samples * answers)), samples


def _shares(cfg: StageConfig, hours: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Shares of the samples by source, according to the mixture; hours by source where it needs them."""
    sources = {name: source for name, source in cfg.data.sources.items() if source.weight > 0}
    if unknown := sorted(set(hours) - set(cfg.data.sources)):
        raise ValueError(f"plan: hours.{unknown[0]}: no such source; there are {', '.join(cfg.data.sources)}")
    by, problems = cfg.data.mixture.by, []
    missing = [name for name in sources if not hours.get(name)]
    if by in ("temperature", "epochs") and missing:
        problems.append(
            f"data.mixture.by={by} needs the hours of every source: give hours.{missing[0]}=... (shown: by weight)"
        )
        by = "weight"
    # The number of records is not known; hours stand for it.
    lines = [Line(name, each.weight, hours.get(name, 0.0), hours.get(name, 0.0)) for name, each in sources.items()]
    weights = effective_weights(lines, by, cfg.data.mixture.temperature)
    return {name: weight / sum(weights) for name, weight in zip(sources, weights, strict=True)}, problems
