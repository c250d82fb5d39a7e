"""Requests from outside a run: signals, and files in its folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# sysexits.h EX_TEMPFAIL, "try again later": stopped by a signal after saving. torchrun would report
# any worker's code as a failure, so under it the code is 0 and finished.json shows whether the run is complete.
EXIT_STOPPED = 0 if "TORCHELASTIC_RUN_ID" in os.environ else 75
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
