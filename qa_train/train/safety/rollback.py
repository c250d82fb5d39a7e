"""Steps that a run leaves out after it went back to a checkpoint.

A step whose loss is not finite, or jumps, has often been spoilt by the update before it, and DeepSpeed has updated the
weights again before the verdict is there. Under ``rollback`` the run therefore writes down which steps to leave out
and ends with a code that asks for a restart (torchrun starts it again by itself): it resumes from the newest
checkpoint, comes to those steps, and passes them without a forward pass. RUN/left_out.json is all there is to it, so
the outcome is a function of that file: it can be read, edited, or put into a run folder before the first start.
"""

from __future__ import annotations

import json
from pathlib import Path

from qa_train.train.job import checkpoints
from qa_train.train.safety.guards import StopRun
from qa_train.utils.atomic import write_json

FILE = "left_out.json"


class RollBack(StopRun):
    """The run must be started again, which resumes from the newest checkpoint; the message says why."""


def left_out(run: Path) -> dict[int, str]:
    """The steps (counted from 1) that the run leaves out, and why.

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


def leave_out(run: Path, last: int, number: int, reason: str) -> int:
    """Add the ``number`` steps that end with ``last`` to the file; the first of them."""
    first = max(last - number + 1, 1)
    steps = dict.fromkeys(range(first, last + 1), f"{reason} (step {last})")
    write_json(run / FILE, {str(step): why for step, why in sorted((steps | left_out(run)).items())}, durable=True)
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
            f"every checkpoint in {root} holds the update of step {first} or a later one, which {FILE} leaves out: "
            "raise trainer.keep_checkpoints, delete them to begin anew without those steps, or lower "
            "trainer.rollback_steps"
        )
    for folder in spoilt:
        checkpoints.remove(folder)
    return [folder.name for folder in spoilt]
