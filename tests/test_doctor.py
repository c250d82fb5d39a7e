"""`qa-train doctor`: each fault is found, and comes with what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from qa_train.doctor import Finding, doctor, network
from qa_train.doctor.environment import audio_formats, disk, packages, wandb_key
from qa_train.doctor.files import examine_checkpoint, examine_data, examine_run
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
    assert [str(each.found) for each in examine_run(str(tmp_path))][-1] == "the same command goes on from checkpoint-2"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": null}\n')
    (checkpoint / "manifest.json").unlink()
    assert states(examine_run(str(tmp_path))) == ["problem", "note", "note"]
    (tmp_path / "finished.json").write_text('{"steps": 3}')
    assert states(examine_run(str(tmp_path)))[-1] == "ok"


def test_the_command_ends_with_one_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The environment is examined above, part by part; importing DeepSpeed takes many seconds.
    monkeypatch.setattr("qa_train.doctor.environment.examine", lambda folder: iter([Finding("x", "ok", "fine")]))
    make_run(tmp_path)
    assert doctor([f"run={tmp_path}", f"checkpoint={tmp_path}"]) == 0
    assert doctor([f"data={tmp_path}/none.tar"]) == 1
    shown = capsys.readouterr().out
    assert "1 problem(s)" in shown
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
