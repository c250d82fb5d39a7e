"""Where a run's numbers go besides metrics.jsonl: Weights & Biases, TensorBoard, MLflow, Trackio.

Each receives the same stream, under the names that people look for: ``train/loss``, ``eval/SET``,
``train/global_step``.
W&B is used through its own library, which shows tables with players; the others through accelerate's trackers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import uuid
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from qa_train.config import TrackingConfig
from qa_train.utils.progress import say

logger = logging.getLogger(__name__)

# Answers of a W&B server that only its user can change.
_REFUSED = re.compile(r"\b40[134]\b|permission denied", re.IGNORECASE)


class Sink(Protocol):
    """One place that a run's numbers are sent to."""

    # As the first screen calls it.
    title: str

    def log(self, values: dict[str, float], step: int) -> None:
        """The numbers of one step."""
        ...

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A table, if it can be shown there; cells that are a Path are recordings."""
        ...

    def close(self) -> str | None:
        """Finish; returns a line for the person who watches, if there is something to do."""
        ...


def open_sinks(cfg: TrackingConfig, stage: str, folder: Path, first: int, config: dict[str, Any]) -> list[Sink]:
    """The sinks of ``tracking.report_to``. ``first``: the step that the run goes on from; ``config``: its settings.

    W&B, which is the default, is skipped with a message where it is not installed, unless ``tracking.wandb`` is set
    (`qa_train.config.checks` refuses the others).
    """
    opened: list[Sink] = []
    mode = cfg.wandb or wandb_mode()
    for name in cfg.report_to:
        if name != "wandb":
            opened.append(_Tracker(name, cfg, folder, first, config))
        elif mode != "disabled" and find_spec("wandb") is None:
            say("W&B is not installed (pip install 'qa-train[tracking]'): metrics go to metrics.jsonl only")
        elif mode != "disabled":
            opened.append(_Wandb(cfg, stage, folder, mode, config))
    return opened


def numbers_of(record: dict[str, Any], step: int) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl by the names of the sinks; numbers that are not finite are not sent."""
    named: dict[str, float] = {"train/global_step": step}
    for name, value in record.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            named[name if name.startswith("eval/") else f"train/{name}"] = value
    return named


class _Wandb:
    """The W&B run of a run folder: the same one again after a restart."""

    def __init__(self, cfg: TrackingConfig, stage: str, folder: Path, mode: str, config: dict[str, Any]) -> None:
        import wandb

        self._folder, self._library = folder, wandb
        # Tables' files wait there for `wandb sync`: in the run folder, not in a home directory that may be deleted when
        # the job ends.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "wandb"))
        start = partial(
            wandb.init,
            project=cfg.project,
            name=folder.name,
            group=folder.parent.name,
            job_type=stage,
            id=_kept(folder / "wandb_run_id", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=folder,
            tags=[stage, *cfg.tags],
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        try:
            self._run: Any = start(mode=cast(Literal["online", "offline"], mode))
        except wandb.errors.CommError as error:
            # A server that is down must not end a job that nobody watches; one that refuses needs its user.
            if isinstance(error, wandb.errors.AuthenticationError) or _REFUSED.search(str(error)):
                raise
            why = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("W&B cannot be reached (%s): offline until the next start", why)
            wandb.teardown()  # its service still holds the run's name
            mode, self._run = "offline", start(mode="offline")
        self._mode, self.title = mode, f"W&B ({mode})"
        # Bytes of clips that tables may still upload.
        self._room = cfg.max_clips_mib * 2**20

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        def cell(value: Any) -> Any:
            if not isinstance(value, Path):
                return value if isinstance(value, (str, bool, int, float)) or value is None else json.dumps(value)
            if self._room < (size := value.stat().st_size):
                self._room = 0.0  # from here on text, whatever the size of the next one
                return value.name
            self._room -= size
            return self._library.Audio(str(value))

        data = [[cell(value) for value in row] for row in rows]
        self._run.log({name: self._library.Table(columns=[*columns], data=data, allow_mixed_types=True)}, step=step)

    def close(self) -> str | None:
        self._run.finish()
        if self._mode == "offline":
            return f"W&B was offline; to upload this run: wandb sync {self._folder}/wandb/offline-run-*"
        return None


class _Tracker:
    """A tracker of accelerate. Everything lies in the run folder, unless the library's own variables name a server."""

    def __init__(self, name: str, cfg: TrackingConfig, folder: Path, first: int, config: dict[str, Any]) -> None:
        from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker

        self.title = name
        self._tracker: Any
        self._set: list[str] = []
        self._failed = False
        if name == "tensorboard":
            # Steps that a restart trains again are dropped.
            self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=first + 1)
        elif name == "mlflow":
            self._default("MLFLOW_TRACKING_URI", f"sqlite:///{folder.absolute()}/mlflow.db")
            kept = folder / "mlflow_run_id"
            ident = kept.read_text().strip() if kept.is_file() else None
            self._tracker = MLflowTracker(cfg.project, run_id=ident, run_name=folder.name)
        else:
            self._default("TRACKIO_DIR", str(folder.absolute() / "trackio"))
            self._tracker = TrackioTracker(cfg.project, name=folder.name, config=config, resume="allow")
        self._tracker.start()
        if name == "mlflow":
            _kept(kept, lambda: str(self._tracker.active_run.info.run_id))

    def _default(self, variable: str, value: str) -> None:
        """Until this run ends: the next one of a sweep has another folder."""
        if variable not in os.environ:
            os.environ[variable] = value
            self._set.append(variable)

    def log(self, values: dict[str, float], step: int) -> None:
        try:
            self._tracker.log(values, step=step)
        except Exception as error:
            # A server that is away must not end a training whose ranks wait; metrics.jsonl has every number.
            if not self._failed:
                logger.warning("%s does not take the numbers of step %d: %s", self.title, step, error)
            self._failed = True

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Held-out answers are in the run folder and on the dashboard."""

    def close(self) -> str | None:
        self._tracker.finish()
        for variable in self._set:
            os.environ.pop(variable, None)
        return None


def _kept(path: Path, make: Any) -> str:
    """What the file holds, made when there is none."""
    if not path.is_file():
        path.write_text(make())
    return path.read_text().strip()


def wandb_mode() -> str:
    """WANDB_MODE if set; otherwise online with a key, offline without."""
    said = os.environ.get("WANDB_MODE", "").lower()
    if said in ("offline", "dryrun"):
        return "offline"
    if said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    netrc = Path.home() / ".netrc"
    known = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())
    return "online" if known else "offline"
