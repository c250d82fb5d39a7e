"""The run folder: the identity of a run, its progress, and whether it may continue.

::

    RUN/config.yaml          resolved configuration; environment values as references, no secrets
    RUN/environment.json     command, versions, git commit, host facts of every start
    RUN/data.txt             the sources of the newest start: samples, hours, share, skipped records and reasons
    RUN/mixture.json         the same, machine-readable
    RUN/plans/               settings and shards of every version of the data that the run has seen
    RUN/metrics.jsonl        one JSON object per optimizer step
    RUN/checkpoints/         checkpoint-N/, complete once manifest.json exists
    RUN/finished.json        written when the last step is saved
    RUN/owner.json           the process that trains this run now (see owner.py)
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml

from qa_train.config import BY_NAME, STAGES, StageConfig, TrainerConfig, digests, written
from qa_train.config import changed as environment_changed
from qa_train.config.renamed import with_new_names
from qa_train.train.job import checkpoints, states
from qa_train.train.job.distributed import by_main, world_size
from qa_train.train.job.owner import own
from qa_train.utils.atomic import write_json, write_text
from qa_train.utils.masking import masked_values, masked_words
from qa_train.utils.safe_yaml import read_yaml

logger = logging.getLogger(__name__)
T = TypeVar("T", dict[str, Any], list[Any])

# Changing these in mid-run would silently make another run of it.
_PINNED_SECTIONS = ("stage", "model", "data", "trainer", *(kind.section for kind in STAGES.values() if kind.section))
# A restored optimizer brings its own values of these: new ones would have no effect.
_CARRIED = (
    "learning_rate",
    "muon_learning_rate",
    "parts",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
)
_FREE_KEYS = {
    "model": ("verify",),
    "data": ("num_workers", "root", "encoder_cache", "error_budget", "storage"),
    "trainer": tuple(f.name for f in fields(TrainerConfig) if f.name not in (*_CARRIED, "batches_per_step")),
}


class RunFolder:
    """Paths and state of one run. Only the main process writes."""

    def __init__(self, cfg: StageConfig, *, is_main: bool) -> None:
        self.dir = Path(cfg.run.dir)
        self.checkpoints = self.dir / "checkpoints"
        self.metrics = self.dir / "metrics.jsonl"
        self.plans = self.dir / "plans"
        self.is_main = is_main
        self._cfg = cfg

    def finished_steps(self) -> int | None:
        """The number of steps of a run that came to its end, or None."""
        steps = read_run_file(self.dir / "finished.json", dict).get("steps")
        return steps if isinstance(steps, int) else None

    def steps_of(self, epochs: float) -> int:
        """The steps that the run counted for at least so many epochs when it started; more than any without."""
        stored = read_run_file(self.dir / "config.yaml", dict).get("trainer") or {}
        return int(stored.get("max_steps", sys.maxsize)) if (stored.get("epochs") or 0) >= epochs else sys.maxsize

    def take(self, steps: int) -> int | None:
        """Become the only process group that trains this run, unless it is finished; a collective call.

        Nothing in the folder is changed before. ``steps``: planned number of steps.

        Returns:
            The number of steps of a finished run, or None: then the folder is this run's.

        Raises:
            Owned: another start trains it.
            ValueError: the folder cannot be written.
        """
        return by_main(lambda: self._take(steps))

    def _take(self, steps: int) -> int | None:
        if (done := self.finished_steps()) is not None and done >= steps:
            return done
        with self._writable():
            own(self.dir)
        # The start that this one waited for may have finished the run.
        done = self.finished_steps()
        return done if done is not None and done >= steps else None

    def start(self) -> Path | None:
        """Check that the folder belongs to this configuration, and find the resume point; `record` follows.

        Rank 0 checks, and all ranks get its result; a collective call.

        Returns:
            The checkpoint to resume from, every file of it compared with its checksum and every state
            readable, or None for a fresh start.

        Raises:
            ValueError: the folder holds a run with other model or data settings, cannot be written, or holds
                checkpoints that are all damaged.
        """
        return by_main(self._start)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Within, an OSError becomes a ValueError with the remedy."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"run.dir={self.dir} cannot be written: {error}; choose a folder on storage with write access"
            ) from error

    def _start(self) -> Path | None:
        with self._writable():
            return self._checked()

    def _checked(self) -> Path | None:
        resume = checkpoints.newest_complete(self.checkpoints, states.fault)
        if resume is None:
            self._refuse_to_lose_a_run()
        # Until the first checkpoint settings may change: they may be what had to be corrected.
        bound = resume is not None or self.finished_steps() is not None
        if (
            bound
            and not self._cfg.run.allow_config_change
            and (previous := read_run_file(self.dir / "config.yaml", dict))
        ):
            self._compare(previous)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not os.access(self.dir, os.W_OK):
            raise PermissionError("no write access")
        return resume

    def record(self, resume: Path | None) -> None:
        """Write the configuration and the start, after all checks have passed (main process).

        Raises:
            OSError: the folder cannot be written.
            Owned: another start took the folder at the same time.
        """
        if not self.is_main:
            return
        own(self.dir).check()
        # A finished run that is extended is unfinished again.
        (self.dir / "finished.json").unlink(missing_ok=True)
        write_text(self.dir / "config.yaml", yaml.safe_dump(written(self._cfg), sort_keys=False), durable=True)
        self._record_start(resume)

    def _refuse_to_lose_a_run(self) -> None:
        """If all committed checkpoints are damaged, do not silently start at step 0."""
        committed = [f for f in checkpoints.list_folders(self.checkpoints) if (f / checkpoints.MANIFEST).is_file()]
        if committed:
            newest = committed[0]
            raise ValueError(
                f"no checkpoint in {self.checkpoints} can be used ({newest.name}: {states.fault(newest)}): "
                "restore one, or delete them all to start from step 0"
            )

    def finish(self, steps: int) -> None:
        """Mark the run as finished, so that starting it again has no effect."""
        if self.is_main:
            write_json(self.dir / "finished.json", {"steps": steps, "time": time.time()}, durable=True)

    def other_settings(self) -> str:
        """How a finished run differs from the requested one, as text; ValueError for another stage."""
        previous = read_run_file(self.dir / "config.yaml", dict)
        if (stage := previous.get("stage", self._cfg.stage)) != self._cfg.stage:
            raise ValueError(f"{self.dir} holds a finished {stage} run: choose another run.dir for {self._cfg.stage}")
        keys = ", ".join(self._changed(previous)) if previous else ""
        return f" (other values than in its config.yaml are ignored: {keys})" if keys else ""

    def _compare(self, previous: dict[str, Any]) -> None:
        if keys := ", ".join(self._changed(previous)):
            raise ValueError(
                f"{self.dir} holds a run with other values of {keys} (see its config.yaml): choose another run.dir, "
                "or resume with the new values by run.allow_config_change=true"
            )

    def _changed(self, previous: dict[str, Any]) -> list[str]:
        """Changed settings that must not change, from the first section that has any."""
        # As stored: without keys and signatures, which may change.
        now, defaults = written(self._cfg), written(StageConfig())
        previous = with_new_names(masked_values(previous))
        for section in _PINNED_SECTIONS:
            free = _free(section)
            before, after = previous.get(section), now[section]
            if isinstance(after, dict) and isinstance(before, dict):
                # A key that an older version did not have had its default's effect.
                before = _filled(section, {**defaults[section], **before})
                changed = [k for k in after if k not in free and _same(after[k]) != _same(before.get(k))]
            else:
                changed = [] if before == after else [""]
            if changed:
                return [f"{section}.{k}".rstrip(".") for k in changed]
        last = (self._starts() or [{}])[-1]
        pinned = (key.split(".") for key in environment_changed(self._cfg, last.get("environment", {})))
        return [".".join(key) for key in pinned if key[0] in _PINNED_SECTIONS and key[1] not in _free(key[0])]

    def _starts(self) -> list[dict[str, Any]]:
        """Every start of environment.json, the newest last."""
        return read_run_file(self.dir / "environment.json", list)

    def _record_start(self, resume: Path | None) -> None:
        told = {"resumed_from": resume.name if resume else None, "environment": digests(self._cfg, {})}
        starts, now = self._starts(), environment()
        before = starts[-1].get("versions", {}) if starts and resume else {}
        versions = now["versions"].items()
        if changed := [f"{name} {before[name]} -> {it}" for name, it in versions if before.get(name, it) != it]:
            logger.warning("other versions than at the start before (%s): numbers may differ", ", ".join(changed))
        write_json(self.dir / "environment.json", [*starts, {**now, **told}], durable=True)


def read_run_file(path: Path, kind: type[T]) -> T:
    """What a JSON or YAML file of a run folder holds; an empty ``kind`` if the file is not there.

    Raises:
        ValueError: the file is damaged, or holds something else; the message tells what to do.
    """
    if not path.exists():
        return kind()
    try:
        found = read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text(encoding="utf-8"))
        reason = f"it holds {type(found).__name__}, expected {kind.__name__}"
        if isinstance(found, kind):
            return found
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
    raise ValueError(
        f"{path} is damaged ({reason}): restore it, or delete it; the same command then continues without it"
    )


def _same(value: Any) -> Any:
    """Optimizers that are one: fused or not, AdamW has the same states and, to rounding, the same updates."""
    return "adamw_torch" if value in ("auto", "adamw_torch_fused") else value


def _free(section: str) -> tuple[str, ...]:
    return _FREE_KEYS.get(section, ())


def _filled(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """The section with defaults filled in for its named entries, such as ``data.sources``."""
    for path, kind in BY_NAME.items():
        owner, _, key = path.partition(".")
        if owner == section:
            default, named = asdict(kind()), values[key] if isinstance(values[key], dict) else {}
            values = {**values, key: {name: {**default, **(entry or {})} for name, entry in named.items()}}
    return values


def environment() -> dict[str, Any]:
    """Facts that explain a result later: command, versions, commit, machine."""
    from qa_train.utils import plugins

    packages = ("torch", "transformers", "trl", "accelerate", "deepspeed", "datasets", "qa-train")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": masked_words(sys.argv),
        **({"own_code": own} if (own := plugins.allowed()) else {}),
        "versions": versions,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "world_size": world_size(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
