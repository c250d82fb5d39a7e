"""Steps that a run skips after it went back to a checkpoint.

A non-finite or jumping loss is often caused by the previous update, and DeepSpeed has already updated the weights again
when the loss is judged. Under ``rollback`` the run therefore records which steps to skip and exits with a code that
asks for a restart (torchrun restarts it by itself). It resumes from the newest checkpoint and skips those steps without
a forward pass. RUN/left_out.json is the only state, so it can be read, edited, or put into a run folder before the
first start.
"""

from __future__ import annotations

import json
from pathlib import Path

from qa_train.train.job import checkpoints
from qa_train.train.safety.guards import StopRun
from qa_train.utils.atomic import write_json

FILE = "left_out.json"


class RollBack(StopRun):
    """The run must be restarted, which resumes from the newest checkpoint; the message has the reason."""


def skipped_steps(run: Path) -> dict[int, str]:
    """The steps (counted from 1) that the run skips, with reasons.

    Raises:
        ValueError: the file is not a JSON object of step: reason.
    """
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        return {int(step): str(reason) for step, reason in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{path} cannot be read ({error}): it should look like {{"17": "the loss is nan"}}') from error


def add_skips(run: Path, last: int, number: int, reason: str) -> int:
    """Add the ``number`` steps that end with ``last`` to the file; the first of them."""
    first = max(last - number + 1, 1)
    steps = dict.fromkeys(range(first, last + 1), f"{reason} (step {last})")
    write_json(run / FILE, {str(step): why for step, why in sorted((steps | skipped_steps(run)).items())}, durable=True)
    return first


def remove_spoilt(root: Path, first: int) -> list[str]:
    """Delete the checkpoints under ``root`` that hold an update of step ``first`` or later; their names.

    Raises:
        StopRun: no complete checkpoint is older, and the run would begin at step 0.
    """
    spoilt = [folder for folder in checkpoints.list_folders(root) if checkpoints.step_of(folder) >= first]
    older = [folder for folder in checkpoints.list_folders(root) if checkpoints.step_of(folder) < first]
    if spoilt and first > 1 and not any(checkpoints.problem(folder) is None for folder in older):
        raise StopRun(
            f"every checkpoint in {root} holds the update of step {first} or a later one, which {FILE} skips: raise "
            "trainer.keep_checkpoints, delete them to start from step 0 without those steps, or lower "
            "trainer.rollback_steps"
        )
    for folder in spoilt:
        checkpoints.remove(folder)
    return [folder.name for folder in spoilt]
