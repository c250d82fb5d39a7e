"""`qa-train doctor`: each fault is found, and comes with what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from qa_train.command_line.command_table import run
from qa_train.doctor import environment, network, processor
from qa_train.doctor.environment import audio_formats, compiler, disk, packages, wandb_key
from qa_train.doctor.files import examine_checkpoint, examine_data, examine_run
from qa_train.doctor.finding import Finding
from qa_train.doctor.processor import arithmetic, cpu_quota, instructions, threads
from tests.model.stored import write_model


def states(findings: object) -> list[str]:
    found = list(findings)  # type: ignore[call-overload]
    assert all(each.remedy for each in found if each.state != "ok")
    return [each.state for each in found]


def test_packages_are_compared_with_what_is_asked_for() -> None:
    found = list(packages(["numpy>=1", "numpy>=99", "no-such-package>=1", "no-such-extra; extra == 'cloud'"]))
    assert [each.state for each in found] == ["problem", "problem", "ok", "note"]
    assert "needs >=99" in found[0].found
    assert "not installed" in found[1].found
    assert "qa-train[cloud]" in found[3].remedy


def test_this_environment_can_read_every_audio_format() -> None:
    (found,) = audio_formats()
    assert found.state == "ok"
    for name in ("wav", "flac", "opus", "mp3"):
        assert name in found.found


@pytest.mark.parametrize(
    ("missing", "gpu", "state"),
    [
        (None, True, "ok"),
        (None, False, "ok"),
        ("there is neither gcc nor clang", True, "problem"),
        ("there is neither gcc nor clang", False, "note"),
    ],
)
def test_compiler(missing: str | None, gpu: bool, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "missing_compiler", lambda: missing)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    found = compiler()
    assert states([found]) == [state]
    assert missing is None or missing in found.found
    assert ("qa-train dpo" in found.found) is (state == "problem")
    assert missing is None or "gcc" in found.remedy


def test_where_metrics_would_go(tmp_path: Path) -> None:
    assert wandb_key({"WANDB_MODE": "offline"}, tmp_path).state == "ok"
    assert wandb_key({}, tmp_path).state == "note"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret-word")
    found = wandb_key({}, tmp_path)
    assert found.state == "ok"
    assert "secret-word" not in str(found)


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert str(tmp_path.resolve()) in str(next(disk(tmp_path / "a" / "b")))


def test_shards(tmp_path: Path) -> None:
    from qa_train.data.shards.writer import ShardWriter
    from tests.data.conftest import noise

    assert states(examine_data([str(tmp_path / "*.tar")])) == ["problem"]
    with ShardWriter(tmp_path / "s-%d.tar", max_samples=2) as writer:
        for i in range(4):
            writer.write(f"k{i}", {"text": "a"}, noise(0.3, seed=i))
    assert states(examine_data([str(tmp_path)])) == ["ok", "note"]
    with (tmp_path / "s-0.tar").open("ab") as file:
        file.write(b"x")
    found = list(examine_data([str(tmp_path)]))
    assert [each.state for each in found] == ["problem", "ok", "note"]
    assert f"qa-train data index {tmp_path}/s-0.tar" in found[0].remedy


def make_run(folder: Path) -> Path:
    """A run folder with one whole checkpoint."""
    checkpoint = write_model(folder / "checkpoints" / "checkpoint-2")
    (folder / "config.yaml").write_text("stage: sft\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2)))
    return checkpoint


def test_checkpoints(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path)
    assert states(examine_checkpoint(str(tmp_path))) == ["ok"]
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    # One bit: found by checksums alone.
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (found,) = examine_checkpoint(str(checkpoint))
    assert "model.safetensors is not what was saved" in found.found
    assert states(examine_checkpoint(str(checkpoint), verify=False)) == ["ok", "note"]
    for content in (whole[:-4], b"abc", whole[:12], whole[:8] + b"?" * 200):
        weights.write_bytes(content)
        for verify in (True, False):
            assert states(examine_checkpoint(str(checkpoint), verify=verify)) == ["problem"]
    assert states(examine_checkpoint(str(tmp_path / "nowhere"))) == ["problem"]
    assert states(examine_checkpoint("owner/model")) == ["note"]


def test_runs(tmp_path: Path) -> None:
    assert states(examine_run(str(tmp_path))) == ["problem"]
    checkpoint = make_run(tmp_path)
    assert [str(each.found) for each in examine_run(str(tmp_path))][-1] == "the same command resumes from checkpoint-2"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": null}\n{"step": 4, "loss": "1"}\n{"step": 5, "loss": 1' + "0" * 400 + "}\n")
    (checkpoint / "manifest.json").unlink()
    assert states(examine_run(str(tmp_path))) == ["problem", "note", "note"]
    (tmp_path / "finished.json").write_text('{"steps": 3}')
    (tmp_path / "metrics.jsonl").write_bytes(bytes(500))
    told = list(examine_run(str(tmp_path)))
    assert "no line of" in str(told[0].found)
    assert told[-1].state == "ok"


def test_the_command_ends_with_one_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The environment is examined above, part by part; importing DeepSpeed takes many seconds.
    monkeypatch.setattr("qa_train.doctor.environment.examine", lambda folder: iter([Finding("x", "ok", "fine")]))
    make_run(tmp_path)
    assert run("doctor", [f"run={tmp_path}", f"checkpoint={tmp_path}"]) == 0
    assert run("doctor", [f"data={tmp_path}/none.tar"]) == 1
    shown = capsys.readouterr().out
    assert "1 problem," in shown
    assert "->" in shown


def test_names_that_other_machines_could_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*addresses: str) -> None:
        found = [(socket.AF_INET, 0, 0, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)

    resolve("127.0.1.1")
    finding = network.name_of_this_machine("node7")
    assert finding.state == "note"
    assert "NCCL_SOCKET_IFNAME" in str(finding)
    resolve("127.0.1.1", "10.0.0.7")
    assert network.name_of_this_machine("node7").state == "ok"
    monkeypatch.undo()
    assert network.name_of_this_machine("no-such-name.invalid").state == "note"
    assert [finding.name for finding in network.examine()] == ["loopback", "network"]


def test_instruction_sets_are_named_not_processors() -> None:
    found = instructions({"avx2": True, "avx512_f": True, "amx_bf16": False, "cpu_name": "X"}, "AVX512", {})
    assert (found.state, found.found) == ("ok", "AVX2, AVX-512; torch's own loops use AVX512")
    limited = instructions({"avx2": True}, "AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": ""})
    assert limited.state == "note"
    assert "limited by ONEDNN_MAX_CPU_ISA=AVX2" in limited.found
    assert "MKL" not in limited.found
    assert instructions({}, "DEFAULT", {}).found.startswith("none of those")


def test_what_auto_takes_and_what_the_other_would_cost() -> None:
    quick = arithmetic(157e9, 1050e9, native=True)
    assert quick.state == "ok"
    assert "157 GFLOP/s in float32, 1,050 in bfloat16: on it trainer.bf16=auto trains in bfloat16" in quick.found
    slow = arithmetic(100e9, 2e9, native=False)
    assert slow.state == "note"
    assert "auto trains in float32" in slow.found
    assert "50 times slower" in slow.remedy


@pytest.mark.parametrize(
    ("used", "affinity", "quota", "state", "says"),
    [
        (2, 2, None, "ok", "torch will use 2 (this process may use 2 CPUs, the machine has 4 cores)"),
        (1, 2, 2.0, "ok", "its container has the time of 2"),
        (4, 4, 1.5, "note", "OMP_NUM_THREADS=2"),
        (4, 1, None, "note", "OMP_NUM_THREADS=1"),
        (4, 8, 0.5, "note", "OMP_NUM_THREADS=1"),
    ],
)
def test_threads(used: int, affinity: int, quota: float | None, state: str, says: str) -> None:
    found = threads(used, affinity, 4, quota, None)
    assert found.state == state
    assert says in f"{found.found} {found.remedy}"
    assert "OMP_NUM_THREADS=7" in threads(used, affinity, 4, quota, "7").found


def test_a_containers_share_of_the_processors(tmp_path: Path) -> None:
    own = tmp_path / "self"
    assert cpu_quota(tmp_path, own) is None
    own.write_text("0::/a/b\n")
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path, own) is None
    (group.parent / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(tmp_path, own) == 2.5
    (group / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path, own) == 1.5
    # Version 1, and a tree that begins at the container's own group.
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/docker/1\n")
    old = tmp_path / "cpu,cpuacct"
    old.mkdir()
    (old / "cpu.cfs_quota_us").write_text("-1")
    (old / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(tmp_path, own) is None
    (old / "cpu.cfs_quota_us").write_text("50000")
    assert cpu_quota(tmp_path, own) == 0.5


def test_this_processor() -> None:
    found = {each.name: each for each in processor.examine()}
    assert list(found) == ["instruction sets", "arithmetic", "threads"]
    states(found.values())
    assert "GFLOP/s in float32" in found["arithmetic"].found
