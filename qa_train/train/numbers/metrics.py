"""Where numbers go: metrics.jsonl always, W&B on request, a progress line for the person watching.

This file owns wandb.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import uuid
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qa_train.config import StageConfig
from qa_train.train.job.run import RunFolder
from qa_train.train.numbers.pace import Pace
from qa_train.utils.atomic import named, write_text
from qa_train.utils.progress import say

# sysexits.h EX_TEMPFAIL, "try again later": stopped by a signal after saving. torchrun would report
# any worker's code as a failure, so under it the code is 0 and finished.json shows whether the run is complete.
EXIT_STOPPED = 0 if "TORCHELASTIC_RUN_ID" in os.environ else 75


class MetricsWriter:
    """Appends one JSON object per optimizer step; a resumed run first drops the steps it will redo."""

    def __init__(self, path: Path, *, is_main: bool) -> None:
        self.path = path
        self.is_main = is_main
        # online or offline while a W&B run is open.
        self.tracked: str | None = None
        self._tracker: Any = None
        self._begun = False
        # Bytes of clips that tables may still hand to W&B.
        self._table_room = 0.0
        self._since_save: list[dict[str, Any]] = []

    def rewind(self, step: int) -> None:
        """Forget every record after ``step``, and a last line that a crash cut short."""
        if not self.is_main or not self.path.is_file():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step(line) is not None]
        kept = [line for line in kept if (_step(line) or 0) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def track(self, cfg: StageConfig, config: dict[str, Any]) -> None:
        """Open the W&B run of this run folder: the same one again after a restart."""
        mode = cfg.tracking.wandb or _wandb_mode()
        if not self.is_main or mode == "disabled":
            return
        if find_spec("wandb") is None:
            if cfg.tracking.wandb is not None:
                raise ValueError("tracking.wandb is set, but wandb is not installed: pip install 'qa-train[tracking]'")
            print("W&B is not installed (pip install 'qa-train[tracking]'): metrics go to metrics.jsonl alone")
            return
        import wandb

        folder = self.path.parent
        id_file = folder / "wandb_run_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:8])
        # Tables' files wait there for `wandb sync`: in the run folder, not in a home directory that may be deleted when
        # the job ends.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "wandb"))
        self._tracker = wandb.init(
            project=cfg.tracking.project,
            name=folder.name,
            group=folder.parent.name,
            job_type=cfg.stage,
            id=id_file.read_text().strip(),
            resume="allow",
            dir=folder,
            mode=cast(Literal["online", "offline"], mode),
            tags=[cfg.stage, *cfg.tracking.tags],
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.tracked = mode
        self._table_room = cfg.tracking.max_clips_mib * 2**20

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
        if self._tracker is not None:
            self._tracker.log({"train/" + name: value for name, value in record.items()}, step=step)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a table in W&B, if a run is open there; a cell that is a Path of a recording becomes a player.

        Once ``tracking.max_clips_mib`` is used up, such cells hold the file's name.
        """
        if self._tracker is None:
            return
        import wandb

        def cell(value: Any) -> Any:
            if not isinstance(value, Path):
                return value if isinstance(value, (str, bool, int, float)) or value is None else json.dumps(value)
            if self._table_room < (size := value.stat().st_size):
                self._table_room = 0.0  # from here on text, whatever the size of the next one
                return value.name
            self._table_room -= size
            return wandb.Audio(str(value))

        data = [[cell(value) for value in row] for row in rows]
        self._tracker.log({name: wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)}, step=step)

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
        """Finish the W&B run, if there is one."""
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None
            if self.tracked == "offline":
                print(f"W&B was offline; to upload this run: wandb sync {self.path.parent}/wandb/offline-run-*")


def _wandb_mode() -> str:
    """WANDB_MODE if set; otherwise online with a key, offline without."""
    said = os.environ.get("WANDB_MODE", "").lower()
    if said in ("offline", "dryrun"):
        return "offline"
    if said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    netrc = Path.home() / ".netrc"
    known = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())
    return "online" if known else "offline"


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


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
                disable=not sys.stderr.isatty(), dynamic_ncols=True,
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
        shown = {"loss": f"{logs['loss']:.3f}", "audio": f"{logs.get('audio_s_per_s', 0):.0f}x real time"}
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
                f"{step_s:.2g} s/step  {logs.get('tokens_per_s', 0):,.0f} tokens/s  {shown['audio']}  "
                f"{left / 60:.1f} min left",
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


# What the ranks agree on at the end of a step; the largest wins.
_NOTHING, _SAVE, _STOP, _STOP_BY_SIGNAL = 0.0, 1.0, 2.0, 3.0


class StopOnRequest(TrainerCallback):
    """Requests from outside, met at the end of a step by all ranks together.

    SIGTERM and SIGUSR1: save, and leave with a code that asks for a requeue. A file ``RUN/SAVE``: save and go on.
    A file ``RUN/STOP``: save and leave. The files are deleted when they are seen.
    """

    def __init__(self, folder: Path, *, is_main: bool) -> None:
        self.stopped_by: str | None = None
        self._folder = folder
        self._is_main = is_main
        self._asked = _NOTHING
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self._asked = _STOP_BY_SIGNAL

    @staticmethod
    def close() -> None:
        """Training is over: a signal that is repeated must not kill the process while it shuts down.

        Python puts the default action, which is death, in the place of a handler before its last threads have ended.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All ranks do the same at the same step, whichever of them was asked."""
        asked = max(self._asked, self._files() if self._is_main else _NOTHING)
        if args.world_size > 1:
            flag = torch.tensor(asked, device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = float(flag.item())
        if asked >= _SAVE:
            control.should_save = True
        if asked >= _STOP and state.global_step < state.max_steps:
            self.stopped_by = "a signal" if asked == _STOP_BY_SIGNAL else f"the file {self._folder / 'STOP'}"
            control.should_training_stop = True

    def _files(self) -> float:
        """Requests by files in the run folder; the files are deleted."""
        asked = _NOTHING
        for name, request in (("SAVE", _SAVE), ("STOP", _STOP)):
            path = self._folder / name
            if path.exists():
                path.unlink(missing_ok=True)
                asked = max(asked, request)
        return asked
