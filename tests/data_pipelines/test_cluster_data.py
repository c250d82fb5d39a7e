"""engine=ray on a cluster of two nodes of this machine, of which one and some processes are killed on the way."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.data.shards.index import SUFFIX
from qa_train.data.shards.writer import ShardWriter
from tests.data_pipelines.corpora.made_up import tone, write_tree
from tests.data_pipelines.label_server import LabelServer, says_length
from tests.processes import running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="the extra cluster is missing")]
# The loopback address only, and only for who has the token. Ray reads this when it is imported.
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0",
}  # fmt: skip
CLIPS, PER_SHARD = 240, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 recordings of 20 s as a Kaldi folder; some cannot be read."""
    names = [f"u{i:03d}" for i in range(CLIPS)]
    files: dict[str, Any] = {
        "a.wav": tone("a.wav", 20.0),
        "b.wav": b"\x01" * 999,
        "wav.scp": "".join(f"{name} {'b' if name in ('u007', 'u201') else 'a'}.wav\n" for name in names),
        "text": "".join(f"{name} hello {name}\n" for name in names),
    }
    return write_tree(tmp_path_factory.mktemp("kaldi"), files)


@pytest.fixture
def cluster() -> Iterator[Any]:
    os.environ.update(LOCAL)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def command(name: str, *words: str, told: Path | None = None) -> subprocess.Popen[str]:
    """A command, whose messages go to the file ``told``."""
    return subprocess.Popen(
        [sys.executable, "-m", "qa_train", "data", name, *words], env=os.environ | LOCAL, text=True,
        stdout=subprocess.PIPE, stderr=told.open("w") if told else subprocess.PIPE,
    )  # fmt: skip


def done(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out, err


def importing(corpus: Path, out: Path, *words: str, told: Path | None = None) -> subprocess.Popen[str]:
    words = ("kaldi", f"path={corpus}", f"out={out}", f"samples_per_shard={PER_SHARD}", *words)
    return command("import", *words, told=told)


def contents(out: Path) -> dict[str, bytes]:
    """All files but the listing, whose lines name the same recordings."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def offspring(pid: int, parent: str = "") -> Iterator[tuple[int, str, str]]:
    """(pid, name, name of its parent) of the processes below one, outer ones first."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        name = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
        yield child, name, parent
        yield from offspring(child, name)


def find_one(raylet: int, is_it: Callable[[str, str], bool]) -> int:
    """A process of the kind below that node of Ray, as soon as there is one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        # Processes end while they are looked at.
        with suppress(OSError):
            for pid, name, parent in offspring(raylet):
                if is_it(name, parent):
                    return pid
    pytest.fail("no such process")


def kill_one(raylet: int, is_it: Callable[[str, str], bool]) -> None:
    """SIGKILL to a process of the kind below that node of Ray."""
    while True:
        with suppress(ProcessLookupError):
            return os.kill(find_one(raylet, is_it), signal.SIGKILL)


def strike(raylet: int, is_it: Callable[[str, str], bool], told: Path, what: str) -> None:
    """Kill such a process, and again until it is told: one that had just finished is not missed."""
    while what not in told.read_text():
        kill_one(raylet, is_it)
        deadline = time.monotonic() + 5
        while what not in told.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)


def made(out: Path) -> int:
    return len(list(out.glob("*.recipe")))


def wait_for(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while made(out) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lost_node_and_killed_processes_change_no_byte(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    done(importing(corpus, tmp_path / "alone", "workers=0"))
    wanted = contents(tmp_path / "alone")
    assert sum(name.endswith(".tar") for name in wanted) == CLIPS // PER_SHARD

    out, told = tmp_path / "ray", tmp_path / "told"
    process = importing(corpus, out, "engine=ray", f"ray_address={cluster.address}", told=told)
    wait_for(out, 4, process)
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.recipe")}
    # A job's own process, and later the worker of Ray that watches one, on the head node.
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    strike(raylet, lambda name, parent: "forkserver" in name and "forkserver" in parent, told, "tried again, 2 of 3")
    wait_for(out, 8, process)
    strike(raylet, lambda name, parent: name.startswith("ray::_on_node"), told, "was lost")
    wait_for(out, 12, process)
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    wait_for(out, 18, process)
    cluster.add_node(num_cpus=1)
    assert process.wait(600) == 0, told.read_text()
    assert contents(out) == wanted
    assert not list(out.glob(".making-*"))
    # Nothing that was finished was made again.
    assert first.items() <= {path: path.stat().st_mtime_ns for path in out.glob("*.recipe")}.items()
    report = json.loads((out / "kaldi-train.report.json").read_text())
    assert (report["made"], report["bad"]) == (CLIPS - 2, 2)

    # The same again makes nothing, and the tools find the same as in one process.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    done(importing(corpus, out, "engine=ray", f"ray_address={cluster.address}"))
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before
    some = sorted(map(str, out.glob("*.tar")))[:4]
    for tool in ("stats", "validate", "clean"):
        alone = done(command(tool, *some))[0]
        assert done(command(tool, *some, "engine=ray", f"ray_address={cluster.address}"))[0] == alone
    for path in some:
        Path(path + SUFFIX).unlink()
    done(command("index", *some, "engine=ray", f"ray_address={cluster.address}"))
    assert contents(out) == wanted


def test_labels_after_a_lost_node_and_a_killed_process(cluster: Any, tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)
    (tmp_path / "raw").mkdir()
    for number in range(12):
        with ShardWriter(tmp_path / f"raw/s-{number:02d}.tar") as writer:
            for clip in range(10):
                writer.write(f"k{number:02d}-{clip}", {"language": "en"}, wave[: 16_000 + 1600 * clip + 16 * number])
    server = LabelServer()
    answering = threading.Event()
    answering.set()

    def slow(milliseconds: int, prompt: str) -> tuple[int, str, str]:
        time.sleep(0.25)
        assert answering.wait(300)
        return says_length(milliseconds, prompt)

    def kill_at_work(kill: Callable[[], None]) -> None:
        """Kill while a job of each node waits for an answer: a node between two jobs would not be missed."""
        answering.clear()
        deadline = time.monotonic() + 300
        while server.now < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill()
        answering.set()

    def remove_node(node: Any) -> None:
        """And see the last of its processes gone, which outlive Ray's by a second or so."""
        below = [pid for pid, *_ in offspring(node.all_processes["raylet"][0].process.pid)]
        cluster.remove_node(node, allow_graceful=False)
        deadline = time.monotonic() + 300
        while any(map(running, below)):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    server.says = slow
    words = [f"shards={tmp_path}/raw", f"url={server.url}", "model=ear", "date=2026-01-02"]
    done(command("label", *words, f"out={tmp_path}/alone", "workers=0"))
    wanted = contents(tmp_path / "alone")
    server.asked.clear()
    out = tmp_path / "ray"
    process = command("label", *words, f"out={out}", "engine=ray", f"ray_address={cluster.address}", "requests=1")
    wait_for(out, 2, process)
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.recipe")}
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    kill_at_work(lambda: kill_one(raylet, lambda name, parent: "forkserver" in name and "forkserver" in parent))
    wait_for(out, 4, process)
    (other,) = cluster.worker_nodes
    kill_at_work(lambda: remove_node(other))
    _, err = done(process)
    server.shutdown()
    server.server_close()
    assert contents(out) == wanted
    assert sum(name.endswith(".tar") for name in wanted) == 12
    assert "tried again, 2 of 3" in err
    assert "was lost" in err
    assert first.items() <= {path: path.stat().st_mtime_ns for path in out.glob("*.recipe")}.items()
    # The killed process and the lost node cost at most the shard that each was at.
    assert 120 <= len(server.asked) <= 120 + 2 * 10


def test_a_kept_process_takes_the_jobs_of_its_core(cluster: Any) -> None:
    code = (
        "import os, sys; from qa_train.jobs.ray_pool import RayPool; pool = RayPool(sys.argv[1], [], keep=True);"
        "jobs = [pool.submit(os.getpid) for _ in range(12)]; print(len({pool.result(job) for job in jobs}))"
    )
    words = [sys.executable, "-c", code, cluster.address]
    found = subprocess.run(words, env=os.environ | LOCAL, text=True, capture_output=True)
    assert int(found.stdout) <= 2, found.stderr


def test_a_kept_process_takes_the_jobs_of_its_gpu(cluster: Any) -> None:
    cluster.add_node(num_cpus=1, num_gpus=1)
    code = (
        "import os, sys; from qa_train.jobs.ray_pool import RayPool;"
        "pool = RayPool(sys.argv[1], [], keep=True, gpus=1);"
        "jobs = [pool.submit(os.getpid) for _ in range(12)]; print(len({pool.result(job) for job in jobs}));"
        "print(pool.result(pool.submit(os.getenv, 'CUDA_VISIBLE_DEVICES')))"
    )
    words = [sys.executable, "-c", code, cluster.address]
    found = subprocess.run(words, env=os.environ | LOCAL, text=True, capture_output=True)
    assert found.stdout.split() == ["1", "0"], found.stderr


@pytest.mark.parametrize("asked", ["cores=2", "gpus=1"])
def test_what_no_node_has_is_not_waited_for(asked: str, cluster: Any) -> None:
    code = f"import sys; from qa_train.jobs import ray_pool as p; p._JOIN_S = 1; p.RayPool(sys.argv[1], [], {asked})"
    words = [sys.executable, "-c", code, cluster.address]
    found = subprocess.run(words, env=os.environ | LOCAL, text=True, capture_output=True, timeout=120)
    assert "no node of the Ray cluster has as many; they have 1 cores and 0 GPUs, 1 cores and 0 GPUs" in found.stderr


def test_what_the_nodes_log_is_no_result(cluster: Any) -> None:
    code = (
        "import os, sys, time; from qa_train.jobs.ray_pool import RayPool; pool = RayPool(sys.argv[1], []);"
        "from ray._private import utils, worker;"
        "utils.publish_error_to_driver('node', 'a node was lost', gcs_client=worker.global_worker.gcs_client);"
        "print(pool.result(pool.submit(os.system, 'echo noise')), flush=True); time.sleep(3)"
    )
    words = [sys.executable, "-c", code, cluster.address]
    assert subprocess.run(words, env=os.environ | LOCAL, text=True, capture_output=True).stdout == "0\n"


def test_the_error_budget_is_that_of_all_nodes(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    words = ("engine=ray", f"ray_address={cluster.address}", "error_budget=0.004")
    # Each shard alone keeps within it: one bad recording is allowed, two are not.
    err = done(importing(corpus, tmp_path, *words), 2)[1]
    assert "2 of 240 recordings cannot be used, error_budget=0.004 allows 1" in err


def test_a_cluster_that_is_not_there_is_named(corpus: Path, tmp_path: Path) -> None:
    err = done(importing(corpus, tmp_path, "engine=ray", "ray_address=127.0.0.1:9"), 2)[1]
    assert "no Ray cluster at 127.0.0.1:9" in err
    assert "Traceback" not in err
