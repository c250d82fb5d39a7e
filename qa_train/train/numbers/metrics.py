"""Where numbers go: metrics.jsonl always, the sinks of ``tracking``, a progress line for the person watching."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from statistics import mean, median
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qa_train.config import StageConfig
from qa_train.train.job.run import RunFolder
from qa_train.train.numbers.sinks import Sink, numbers_of, open_sinks
from qa_train.utils.atomic import named, write_text
from qa_train.utils.progress import bar_width, duration, rough, say

logger = logging.getLogger(__name__)

# After how many steps of a start the run speaks of its time, and after which share of its steps again.
FIRST_STEPS, SHARE = 3, 0.1


class MetricsWriter:
    """Appends one JSON object per optimizer step; a resumed run first drops the steps it will redo."""

    def __init__(self, path: Path, *, is_main: bool) -> None:
        self.path = path
        self.is_main = is_main
        self._sinks: list[Sink] = []
        self._begun = False
        self._since_save: list[dict[str, Any]] = []

    def rewind(self, step: int) -> None:
        """Forget every record after ``step``, and lines that cannot be read, as one that a crash cut short."""
        if not self.is_main:
            return
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        steps = {line: number for line in lines if (number := _step(line)) is not None and number <= step}
        if absent := sorted({*range(1, step + 1)} - {*steps.values()}):
            logger.warning(
                "%s has no record of %d of the %d steps so far (the first: %d): the run goes on, its curves have a gap",
                self.path, len(absent), step, absent[0],
            )  # fmt: skip
        if lines:
            write_text(self.path, "".join(line + "\n" for line in lines if line in steps))

    def track(self, cfg: StageConfig, config: dict[str, Any], first: int = 0) -> None:
        """Open the sinks of ``tracking.report_to``; ``first``: the step that the run goes on from."""
        if self.is_main:
            self._sinks = open_sinks(cfg.tracking, cfg.stage, self.path.parent, first, config)

    @property
    def tracked(self) -> str:
        """What receives the numbers besides metrics.jsonl, for a person."""
        return ", ".join(sink.title for sink in self._sinks)

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Append the record of one step."""
        if not self.is_main:
            return
        self._since_save.append(record)
        # JSON has no NaN: a norm that is not finite becomes null.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        # A file that is gone must not begin again in the middle of the run.
        with named(self.path), self.path.open("r+" if self._begun else "a") as file:
            file.seek(0, os.SEEK_END)
            file.write(json.dumps({"step": step, **finite}) + "\n")
        self._begun = True
        for sink in self._sinks:
            sink.log(numbers_of(record, step), step)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a table where the sinks can; a cell that is a Path of a recording becomes a player.

        Once ``tracking.max_clips_mib`` is used up, such cells hold the file's name.
        """
        for sink in self._sinks:
            sink.table(name, columns, rows, step)

    def mean_since_save(self, name: str | None) -> float | None:
        """The mean of one value over the steps since the last call, for choosing the best checkpoint.

        Skipped steps do not count. For a value of an evaluation it is the last one.

        A resumed run starts at a save, so it finds the same mean as an undisturbed one.

        Raises:
            ValueError: no step has a value of this name.
        """
        records, self._since_save = self._since_save, []
        if name is None or not records:
            return None
        trained = [record for record in records if "loss" in record]
        records = [record for record in trained if "skipped_because" not in record]
        if name.startswith("eval/"):
            values = [record[name] for record in trained if isinstance(record.get(name), (int, float))]
            # A save between two evaluations (a stop, RUN/SAVE) is not a candidate.
            return values[-1] if values else None
        values = [record[name] for record in records if isinstance(record.get(name), (int, float))]
        if not records:
            return None
        if not values:
            known = sorted(k for k, v in records[-1].items() if isinstance(v, (int, float)))
            raise ValueError(f"trainer.keep_best is {name!r}, which no step has: use one of {', '.join(known)}")
        return sum(values) / len(values)

    def close(self) -> None:
        """Finish the sinks."""
        for told in [sink.close() for sink in self._sinks]:
            if told:
                say(told)
        self._sinks = []


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


class Pace:
    """Seconds per step, and when to report a new estimate of the remaining time."""

    def __init__(self, first: int, last: int) -> None:
        """The step that a start goes on from, and the run's last one."""
        self.first, self.last = first, last
        self.seconds: list[float] = []
        # A tenth of the work is a better sample than three steps only if it is longer.
        tenth = round(SHARE * (last - first))
        self._due = {FIRST_STEPS, tenth} if tenth > FIRST_STEPS else {FIRST_STEPS}

    def step(self, seconds: float) -> str | None:
        """A step took ``seconds``; returns a line where one is due."""
        self.seconds.append(seconds)
        done = len(self.seconds)
        left = self.last - self.first - done
        if done not in self._due or left <= 0:
            return None
        step_s = self.step_s()
        steps = f"{left:,} step{'s' * (left > 1)} left"
        return f"time: about {duration(left * step_s)} for the {steps} ({rough(step_s)} s a step, measured over {done})"

    def step_s(self) -> float:
        """Seconds per step: the median while there are few, as the first includes preparation; then the mean of all but
        the first. The mean includes saves.
        """
        return median(self.seconds) if len(self.seconds) <= FIRST_STEPS else mean(self.seconds[1:])


class Progress(TrainerCallback):
    """A progress bar on a terminal; a line every ``every_s`` seconds in a log file."""

    def __init__(self, run: RunFolder, *, stage: str, every_s: float = 20.0) -> None:
        self._run = run
        self._stage = stage
        self._every_s = every_s
        self._bar: Any = None
        self._last = 0.0
        self._seconds: deque[float] = deque(maxlen=50)
        self._pace: Pace | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step the run starts from."""
        if self._run.is_main:
            self._pace = Pace(state.global_step, state.max_steps)
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self._stage, unit="step",
                **(bar_width() if sys.stderr.isatty() else {"disable": True}),
            )  # fmt: skip

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss and rates."""
        if self._bar is None or not logs or "loss" not in logs:
            return
        shown = {"loss": f"{logs['loss']:.3f}", "audio": f"{logs.get('audio_s_per_s', 0):.0f}x"}
        self._seconds.append(logs.get("seconds", 0.0))
        self._bar.set_postfix(shown)
        self._bar.update(state.global_step - self._bar.n)
        if self._pace is not None and (line := self._pace.step(logs.get("seconds", 0.0))) is not None:
            say(f"{self._stage}: {line}")
        now = time.monotonic()
        last_step = state.global_step >= state.max_steps
        if not sys.stderr.isatty() and (now - self._last >= self._every_s or last_step):
            self._last = now
            # The median: one slow step, such as the first or a save, is not typical.
            step_s = median(self._seconds)
            left = step_s * (state.max_steps - state.global_step)
            print(
                f"{self._stage}: step {state.global_step}/{state.max_steps}  loss {shown['loss']}  "
                f"{rough(step_s)} s/step  {logs.get('tokens_per_s', 0):,.0f} tokens/s  {shown['audio']} real time  "
                f"{duration(left)} left",
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
