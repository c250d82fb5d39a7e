"""How long the steps that are left will take, by those that are done."""

from __future__ import annotations

from statistics import mean, median

from qa_train.utils.progress import duration

# After how many steps of a start the run speaks of its time, and after which share of its steps again.
FIRST_STEPS, SHARE = 3, 0.1


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
        return f"time: about {duration(left * step_s)} for the {steps} ({step_s:.2g} s a step, measured over {done})"

    def step_s(self) -> float:
        """Seconds per step: the median while there are few, as the first includes preparation; then the mean of all but
        the first. The mean includes saves.
        """
        return median(self.seconds) if len(self.seconds) <= FIRST_STEPS else mean(self.seconds[1:])
