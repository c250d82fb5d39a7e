"""DeepSpeed's settings: they compose, contradictions are refused, and checkpoints change shape."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from qa_train.config import config_dir, register, to_stage_config
from qa_train.model import load_model
from qa_train.model.stored import manifest
from qa_train.train.job import checkpoints, reshape
from qa_train.train.job.reshape import read_in_another_shape
from tests.train.conftest import metrics, run

register()
ZERO = "deepspeed.config.zero_optimization"


@pytest.fixture
def composed() -> Iterator[Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        yield lambda *words: to_stage_config(compose(config_name="pretrain", overrides=["run.dir=unused", *words]))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("bf16", [True, False])
def test_deepspeed_accepts_our_files(name: str, bf16: bool) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    words = yaml.safe_load((config_dir() / "deepspeed" / f"{name}.yaml").read_text())["config"]
    words |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0}
    words["bf16"] = {"enabled": bf16}
    read = DeepSpeedConfig(words)
    assert read.zero_optimization_stage == int(name[4])
    assert read.bfloat16_config.enabled is bf16
    offloaded = {part: getattr(read.zero_config, part) for part in ("offload_param", "offload_optimizer")}
    if name == "zero3_offload":
        assert all(part.device == "cpu" for part in offloaded.values())
    else:
        assert not any(offloaded.values())


@pytest.mark.parametrize("bf16", ["true", "false"])
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_they_compose_with_both_precisions(composed: Any, name: str, bf16: str) -> None:
    assert composed(f"deepspeed={name}", f"trainer.bf16={bf16}").deepspeed.name == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deepspeed=zero2", "+deepspeed.config.optimizer={type: Adam}"], "use trainer.optim"),
        (["deepspeed=zero2", "+deepspeed.config.gradient_cliping=1"], "correct its spelling"),
        (["deepspeed=zero2", "deepspeed.config.gradient_clipping=0.3"], "contradicts trainer.max_grad_norm"),
        (["deepspeed=zero2", "deepspeed.config.gradient_accumulation_steps=4"], "trainer.batches_per_step"),
        (["deepspeed=zero2", "deepspeed.config.bf16.enabled=true"], "contradicts trainer.bf16"),
        (["deepspeed=zero2", f"+{ZERO}.stage3_max_live_parameters=5"], "has no effect in ZeRO-2"),
        (["deepspeed=zero1", f"+{ZERO}.offload_param={{device: cpu}}"], "has no effect in ZeRO-1"),
        (["deepspeed=zero2", f"{ZERO}.stage=0"], "use 1, 2 or 3"),
        (["deepspeed=zero3_offload", f"{ZERO}.offload_param.device=nvme"], "needs nvme_path"),
        (["deepspeed=zero3", "trainer.on_nonfinite=skip"], "use stop or rollback"),
        (["deepspeed=zero2", "trainer.on_loss_spike=skip"], "use warn or rollback"),
        (["trainer.on_nonfinite=ignore"], "use stop, skip or rollback"),
        (["trainer.keep_every_steps=1500", "trainer.save_steps=1000"], "not a multiple of trainer.save_steps"),
        (["trainer.hang_timeout_s=0"], "above 0"),
        (["trainer.keep_best=loss", "trainer.keep_best_is=lowest"], "use smallest or largest"),
    ],
)
def test_settings_without_effect_or_against_the_trainer_are_refused(
    composed: Any, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        composed(*words)


def test_overrides_that_agree_are_taken(composed: Any) -> None:
    cfg = composed("deepspeed=zero2", "deepspeed.config.gradient_clipping=1.0", f"{ZERO}.reduce_bucket_size=1000")
    assert cfg.deepspeed.config["zero_optimization"]["reduce_bucket_size"] == 1000


def test_zero_and_plain_runs_do_not_mix(tmp_path: Path) -> None:
    cut = "cut by DeepSpeed ZeRO-{} for 2 process(es)".format
    for before, now in (("whole", cut(2)), (cut(3), cut(2)), (cut(1), cut(3))):
        with pytest.raises(ValueError, match="use the same deepspeed= as before"):
            read_in_another_shape(tmp_path, before, now, None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, options: Callable[[str, Path], list[str]]) -> dict[str, list[Any]]:
    """Columns of metrics.jsonl of an undisturbed run in one process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run("pretrain", *options("pretrain", folder))
    records = metrics(folder)
    names = ("loss", "grad_norm", "tokens", "supervised_tokens", "audio_s")
    return {name: [record[name] for record in records] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_zero_run_goes_on_with_fewer_processes_and_with_more_again(
    stage: int, tmp_path: Path, plain: dict[str, list[Any]], options: Callable[[str, Path], list[str]]
) -> None:
    folder = tmp_path / "run"
    words = [
        *options("pretrain", folder),
        f"deepspeed=zero{stage}",
        "trainer.save_steps=2",
        "trainer.keep_checkpoints=9",
    ]
    if stage == 3:
        words.append(f"{ZERO}.stage3_param_persistence_threshold=0")
    run("pretrain", *words, processes=2)
    forget_after(folder, 2)
    # DeepSpeed forgets under ZeRO-3 that biases and norms do not decay; the losses below would tell.
    settings = checkpoints.read_manifest(folder / "checkpoints" / "checkpoint-2")["param_groups"]
    assert {group["weight_decay"] for group in settings} == {0.0, 0.05}
    # Without torchrun, too.
    done = run("pretrain", *words)
    assert "joining the ZeRO parts of checkpoint-2" in done.stdout
    assert manifest.damage(folder / "checkpoints" / "checkpoint-2") is None
    assert metrics(folder)[-1]["step"] == 6
    forget_after(folder, 4)
    done = run("pretrain", *words, processes=2)
    assert "joining the ZeRO parts of checkpoint-4" in done.stdout
    # Nothing that a reader of the log need not know.
    assert not [line for line in done.stderr.splitlines() if "warn" in line.lower()]
    check_weights(folder / "checkpoints" / "checkpoint-2")
    records = metrics(folder)
    np.testing.assert_allclose([record["loss"] for record in records], plain["loss"], rtol=2e-6)
    np.testing.assert_allclose([record["grad_norm"] for record in records], plain["grad_norm"], rtol=1e-3)
    # The same samples: a step's numbers of tokens and seconds give the batches away.
    for name in ("tokens", "supervised_tokens", "audio_s"):
        np.testing.assert_allclose([record[name] for record in records], plain[name], rtol=1e-6)


def check_weights(folder: Path) -> None:
    """The weights that a checkpoint (and so an export of it) holds are those that the ranks trained, bit by bit."""
    model, _ = load_model(str(folder))
    (joined,) = folder.glob("global_step*_universal/zero")
    for name, parameter in model.named_parameters():
        if name.endswith("embed_positions.weight"):
            continue  # fixed sinusoids, which no rank trains
        held = torch.load(joined / name / "fp32.pt", weights_only=True)
        # ZeRO-3's are flat, and may end with padding.
        flat = (held["param"] if isinstance(held, dict) else held).flatten()
        assert torch.equal(flat[: parameter.numel()].view(parameter.shape), parameter), name


def forget_after(folder: Path, step: int) -> None:
    """Make a finished run one that was killed after saving ``step``."""
    for checkpoint in checkpoints.list_folders(folder / "checkpoints"):
        if checkpoints.step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    (folder / "finished.json").unlink()


PROGRAM = Path(__file__).with_name("waiting_program.py")


@pytest.mark.parametrize("how", ["note", "broadcast"])
def test_ranks_wait_for_rank_0_as_long_as_it_takes(how: str) -> None:
    done = run(how, processes=2, program=PROGRAM, check=False)
    assert (done.returncode == 0) is (how == "note"), done.stderr


@pytest.mark.slow
def test_a_conversion_may_take_longer_than_the_ranks_timeout(
    tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=3", "trainer.save_steps=2", "trainer.ddp_timeout=25"]
    words.append("deepspeed=zero3")
    run("pretrain", *words)
    forget_after(folder, 2)
    done = run("pretrain", *words, processes=2, program=PROGRAM)
    assert "joining the ZeRO parts of checkpoint-2" in done.stdout
    assert metrics(folder)[-1]["step"] == 3


def convert(*words: str) -> str:
    """What `qa-train convert` prints, in a process of its own."""
    return run("convert", *words).stdout


@pytest.mark.slow
def test_a_checkpoint_is_joined_without_its_ranks(tmp_path: Path, options: Callable[[str, Path], list[str]]) -> None:
    words = ["trainer.max_steps=4", "trainer.save_steps=2", "model.freeze=[encoder]", "deepspeed=zero3"]
    words.append(f"{ZERO}.stage3_param_persistence_threshold=0")
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    run("pretrain", *options("pretrain", whole), *words, processes=2)
    late = f"{ZERO}.stage3_gather_16bit_weights_on_model_save=false"
    run("pretrain", *options("pretrain", parts), *words, late, processes=2)
    folder = parts / "checkpoints" / "checkpoint-4"
    assert not list(folder.glob("*.safetensors"))
    refused = run("export", f"checkpoint={folder}", f"out={tmp_path / 'export'}", check=False)
    assert f"qa-train convert checkpoint={folder} joins them" in refused.stderr
    # A conversion that was killed: what it left counts for nothing.
    left = [folder / "model-00001-of-00002.safetensors", folder / "global_step4_universal" / "part.pt"]
    for path in (*left, folder / "model.safetensors"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert convert(f"checkpoint={parts}", "resume=false").splitlines()[-1] == f"{folder}: weights"
    assert manifest.damage(folder) is None
    assert not any(path.exists() for path in left)
    found, expected = load_model(str(folder))[0].state_dict(), load_model(str(whole))[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert convert(f"checkpoint={folder}").splitlines()[-1].endswith("state for any number of processes")
    assert convert(f"checkpoint={folder}").splitlines()[-1].endswith("nothing to join")
    run("export", f"checkpoint={folder}", f"out={tmp_path / 'export'}")
    run("export", f"checkpoint={whole}", f"out={tmp_path / 'other'}")
    names = [load_file(tmp_path / place / "model.safetensors").keys() for place in ("export", "other")]
    assert names[0] == names[1]
    # The run goes on with one process, at once.
    (parts / "finished.json").unlink()
    done = run("pretrain", *options("pretrain", parts), *words[1:], late, "trainer.max_steps=5")
    assert "joining" not in done.stdout
    assert metrics(parts)[-1]["step"] == 5


def test_only_a_checkpoint_in_parts_can_be_joined(tmp_path: Path, options: Callable[[str, Path], list[str]]) -> None:
    run("pretrain", *options("pretrain", tmp_path), "trainer.max_steps=1")
    faults = {"": "is not cut in parts", "logs": "is not a complete checkpoint", "none": "is no folder: give a run"}
    for place, told in ((tmp_path / name, told) for name, told in faults.items()):
        refused = run("convert", f"checkpoint={place}", check=False)
        assert refused.returncode == 2
        assert told in refused.stderr


def test_a_conversion_without_room_asks_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Traceback\nRuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(reshape.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"does not fit: .* GB are free. Make room"):
        reshape._convert(tmp_path, tmp_path / "joined")
