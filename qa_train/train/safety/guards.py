"""Steps that must not reach the weights: losses and gradients that are not finite, and losses that jump.

Every verdict is drawn from numbers that all ranks share, so all of them skip or stop at the same step, and a run that
resumed judges as one that was never interrupted: its memory is read back from metrics.jsonl.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch

from qa_train.config import ReliabilityConfig
from qa_train.train.job.distributed import have_met

logger = logging.getLogger(__name__)

# Fewer losses than this are too few to tell what is normal.
_MIN_LOSSES = 20
# Median absolute deviation of a normal distribution -> its standard deviation.
_MAD_TO_STD = 1.4826


class StopRun(RuntimeError):
    """The run must stop; the message has the reason and the remedy."""


def robust_z(value: float, window: list[float]) -> float:
    """How many robust standard deviations ``value`` is above the median of ``window``.

    The deviation is 1.4826 times the median absolute deviation, and at least a thousandth of the median, so that small
    changes of a flat curve are not spikes.
    """
    middle = statistics.median(window)
    spread = _MAD_TO_STD * statistics.median([abs(each - middle) for each in window])
    return (value - middle) / max(spread, abs(middle) / 1000, 1e-12)


class Guards:
    """Judges each step of one rank. The trainer asks; this class never touches the model."""

    def __init__(self, options: ReliabilityConfig) -> None:
        self._options = options
        self._losses: deque[float] = deque(maxlen=options.loss_spike_window)
        self._bad_loss: str | None = None
        self._in_a_row = 0
        self.skipped = 0
        # Whether the last verdict was about numbers that are not finite.
        self.nonfinite = False
        # Why the step that is being logged was skipped.
        self.reason: str | None = None

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Take up the memory of the steps before a resume from their records in metrics.jsonl."""
        for record in records:
            if "loss" not in record:
                # A record of an evaluation only is not a step.
                continue
            self.skipped = int(record.get("skipped_steps", self.skipped))
            self._in_a_row = self._in_a_row + 1 if "skipped_because" in record else 0
            if "skipped_because" not in record and record.get("loss") is not None:
                self._losses.append(record["loss"])

    def check_loss(self, loss: torch.Tensor) -> str | None:
        """Look at one micro-batch's loss on this rank.

        Returns:
            Why the run must stop, or None. Under skip and rollback the verdict waits for `verdict`.
        """
        value = loss.detach().float().item()
        if math.isfinite(value):
            return None
        if self._options.on_nonfinite == "stop":
            return f"the loss is {value}"
        self._bad_loss = f"the loss is {value}"
        return None

    def verdict(self, grad_norm: float, loss: torch.Tensor) -> str | None:
        """Why the step must not change the weights, or None; the same on all ranks.

        Args:
            grad_norm: norm of the whole gradient, the same on all ranks.
            loss: this rank's part of the step's loss, a scalar; the step's loss is the mean over ranks.
        """
        bad, step_loss = self._agree(loss)
        reason = None
        if not math.isfinite(grad_norm):
            reason = f"the gradient norm is {grad_norm}"
        if bad:
            reason = self._bad_loss or "the loss of another rank is not finite"
        self.nonfinite = reason is not None
        if self._options.on_loss_spike in ("skip", "rollback") and reason is None:
            reason = self._spike(step_loss)
        self._bad_loss = None
        return reason

    def skip(self, reason: str, samples: str) -> None:
        """Count a skipped step.

        Raises:
            StopRun: too many in a row.
        """
        self.reason = reason
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self._options.max_skipped_steps:
            raise StopRun(f"{samples}; {self._in_a_row} steps in a row were skipped (trainer.max_skipped_steps)")
        logger.warning("%s; the step was skipped", samples)

    def count_skip(self, reason: str) -> None:
        """Count a step skipped by a rollback."""
        self.reason = f"left out: {reason}"
        self.skipped += 1
        self._in_a_row += 1

    def logged(self, logs: dict[str, Any]) -> str | None:
        """Take note of a step's record and complete it.

        Returns:
            A warning about the step's loss, or None.
        """
        warning = None
        if self.reason is not None:
            logs["skipped_because"], self.reason = self.reason, None
        else:
            self._in_a_row = 0
            if self._options.on_loss_spike == "warn":
                warning = self._spike(logs["loss"])
            self._losses.append(logs["loss"])
        if self.skipped:
            logs["skipped_steps"] = self.skipped
        return warning

    def _spike(self, loss: float) -> str | None:
        window = list(self._losses)
        if len(window) < _MIN_LOSSES:
            return None
        z = robust_z(loss, window)
        if z < self._options.loss_spike_z:
            return None
        middle = statistics.median(window)
        return f"the loss jumped to {loss:.4g} (median {middle:.4g}, {z:.0f} robust standard deviations above)"

    def _agree(self, loss: torch.Tensor) -> tuple[bool, float]:
        """Whether any rank met a bad loss, and the mean loss of the ranks."""
        asks = {"skip", "rollback"} & {self._options.on_nonfinite, self._options.on_loss_spike}
        if not asks or not have_met():
            return self._bad_loss is not None, float(loss)
        numbers = torch.stack([loss.detach().float(), loss.new_tensor(float(self._bad_loss is not None)).float()])
        torch.distributed.all_reduce(numbers)
        return bool(numbers[1] > 0), float(numbers[0]) / torch.distributed.get_world_size()


def read_tail(path: Path, num_losses: int) -> list[dict[str, Any]]:
    """The last records of metrics.jsonl, in order, with ``num_losses`` steps that were not skipped among them.

    Fewer if the file has fewer; none if it is missing.
    """
    tail: list[dict[str, Any]] = []
    for line in reversed(path.read_text().splitlines() if path.is_file() else []):
        tail.append(json.loads(line))
        num_losses -= "loss" in tail[-1] and "skipped_because" not in tail[-1]
        if num_losses <= 0:
            break
    return tail[::-1]
