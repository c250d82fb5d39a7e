"""Jobs on a Ray cluster (extra ``cluster``). The only file that imports Ray.

A node gets as many jobs as it has cores, each in a process of its own as on one machine. Ray's usage statistics and its
dashboard are off. Functions and results travel between our own processes by Ray's serialisation; what a job reads is
opened by the job alone.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any

from qa_train.jobs.processes import Died, NodeLost, Processes

# Read when Ray is imported; the processes of a cluster that this one starts inherit it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Of a cluster of this machine alone: only the loopback address, and only for who has the token.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# Results are small; Ray would take 30 % of the memory for them.
_OBJECT_STORE_BYTES = 256 << 20
_CONNECT_S = 30.0
# So long a command waits for the first node that can take its jobs.
_JOIN_S = 60.0
# Jobs handed in for each core, so that none waits for this process.
_AHEAD = 2


class RayPool:
    """A cluster that runs, or one of this machine alone that ends with the command."""

    def __init__(
        self, address: str, modules: Sequence[str], *, keep: bool = False, cores: int = 1, gpus: float = 0.0
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS", "") or "local"
        if "://" in address:
            raise ValueError(f"ray_address={address}: start the command on a node of the cluster, and give HOST:PORT")
        os.environ.update(_LOCAL if address == "local" else {})
        _check_reachable(address)
        try:
            import ray
        except ImportError as error:
            raise ValueError("engine=ray needs Ray: pip install 'qa-train[cluster]'") from error

        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        # Ray would print what its nodes log to standard output, which is the command's result; its own messages of lost
        # nodes, too, whatever ray.init is told. What they mean for a job is told by qa_train.jobs.executor.
        quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        ray._private.worker._worker_logs_enabled = False
        try:
            ray.init(address=address, **quiet, **(own if address == "local" else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
        self._ray, self._modules, self._keep, self._cores = ray, modules, keep, cores
        self._check_room(gpus, 0.0 if address == "local" else _JOIN_S)
        # What Ray would try again itself is tried again, counted and told by qa_train.jobs.executor. And it would end
        # its process after each job with a GPU, and with it the one that is kept.
        self._task = ray.remote(max_retries=0, max_calls=0, num_cpus=cores, num_gpus=gpus)(_on_node)

    def _check_room(self, gpus: float, wait_s: float) -> None:
        """Wait for a node that has room for a job; ValueError if none joins: Ray would wait for ever, in silence."""
        until = time.monotonic() + wait_s
        while True:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if any(node.get("CPU", 0) >= self._cores and node.get("GPU", 0) >= gpus for node in nodes):
                return
            if time.monotonic() >= until:
                break
            time.sleep(1)
        self.close()
        has = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ValueError(
            f"cores={self._cores} gpus={gpus:g}: no node of the Ray cluster has as many; they have {has}: ask for "
            "less, or start the command when such a node has joined"
        )

    @property
    def ahead(self) -> int:
        """Grows and shrinks with the cluster."""
        return max(1, _AHEAD * int(self._ray.cluster_resources().get("CPU", 0)) // self._cores)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a job."""
        future: Future[Any] = self._task.remote(str(Path.cwd()), self._modules, self._keep, work, *arguments).future()
        return future

    def result(self, future: Future[Any]) -> Any:
        """The job's result."""
        errors = self._ray.exceptions
        try:
            good, answer = future.result()
        except errors.OutOfMemoryError as error:
            raise Died("Ray ended it, for its node was out of memory") from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            raise NodeLost(f"its node or Ray's process there was lost ({type(error).__name__})") from error
        except errors.RayTaskError as error:
            # Not the job's own error: a node could not begin it.
            raise ValueError(f"a node cannot run jobs of this qa-train: {error.cause or error}") from error
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        """Leave the cluster, which ends the jobs of this command there."""
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """ValueError if nobody listens there: Ray would wait for minutes, and tell it in pages."""
    host, colon, port = address.rpartition(":")
    try:
        if colon:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address} ({error}): start one, or correct ray_address= or RAY_ADDRESS"
        ) from error


@lru_cache(maxsize=1)
def _kept(modules: tuple[str, ...]) -> Processes:
    """The process that goes on to this worker's next job; Ray gives a worker one at a time."""
    return Processes(1, modules, keep=True)


def _on_node(
    folder: str, modules: Sequence[str], keep: bool, work: Callable[..., Any], *arguments: Any
) -> tuple[bool, Any]:
    """(True, result) or (False, what was raised)."""
    try:
        # Relative paths mean the same everywhere.
        os.chdir(folder)
    except OSError as error:
        where = f"node {socket.gethostname()} has no folder {folder} ({error.strerror})"
        return False, ValueError(f"{where}: start the command in one that all nodes share")
    try:
        # Ray's own program is the main module here, which every child would import.
        needed = (*modules, "ray")
        return True, (_kept(needed) if keep else Processes(1, needed)).run(work, *arguments)
    except Exception as error:
        return False, error
