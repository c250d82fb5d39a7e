"""The folder of one benchmark's results: run.json, predictions.jsonl, then scores.json and judgements.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qa_train.utils.digests import sha256_of_file

RUN, PREDICTIONS, SCORES, JUDGEMENTS = "run.json", "predictions.jsonl", "scores.json", "judgements.jsonl"


def recorded(path: Path) -> dict[str, Any]:
    """A file of the folder, run.json or scores.json; {} if it is missing.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found:
            raise ValueError(f"expected an object with fields, found {found!r:.40}")
    except ValueError as error:
        remedy = "step=score" if path.name == SCORES else "the prediction step"
        raise ValueError(f"{path} is damaged ({error}): run {remedy} again") from error
    return found


def refuse_changed(folder: Path, predictions: str = PREDICTIONS) -> str:
    """The digest of the predictions. ValueError: they are not what the model answered, according to run.json."""
    found = sha256_of_file(folder / predictions)
    if recorded(folder / RUN).get("predictions_sha256") not in (None, found):
        raise ValueError(
            f"{folder / predictions} was changed after the model wrote it. Run the prediction step again "
            "(answers that are in the journal are kept)"
        )
    return found
