"""Every command that takes checkpoint= refuses one that was tampered with, before it does anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qa_train.config import ChatConfig, EvalConfig, ExportConfig, ModelConfig, PairsConfig, ServeConfig, parse_options
from qa_train.doctor.files import examine_checkpoint
from qa_train.eval.suite import _answerer
from qa_train.export.hugging_face import export
from qa_train.infer.conversation import chat
from qa_train.infer.server import open_models
from qa_train.model import build_model
from tests.model.stored import write_adapters, write_model
from tests.model.test_loading import ADAPTER, MODEL, edit, flip

SAYS = "is not what was saved"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    return {"model": write_model(root / "model" / "checkpoint-2"), "adapters": write_adapters(root / "adapters")}


def doctor(folder: Path) -> None:
    (found,) = examine_checkpoint(str(folder))
    assert found.state == "problem"
    raise ValueError(found.found)


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "chat": lambda folder: chat(ChatConfig(str(folder), text="What is said?")),
    "serve": lambda folder: open_models(ServeConfig(checkpoint={"a": str(folder)})),
    "eval": lambda folder: _answerer(EvalConfig(checkpoint=str(folder), data="x")),
    "export": lambda folder: export(folder, folder.parent / "out"),
    "train": lambda folder: build_model(ModelConfig("x", checkpoint=str(folder))),
    "doctor": doctor,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("model", flip(MODEL, 0.8)),
        ("adapters", flip(ADAPTER, 0.8)),
        ("adapters", edit("adapter_config.json", lora_alpha=320)),
    ],
    ids=["a bit of the weights", "a bit of the adapters", "lora_alpha"],
)
def test_a_tampered_checkpoint_is_refused(
    command: str, kind: str, change: Callable[[Path], Any], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved[kind], tmp_path / "checkpoint-2"))
    change(folder)
    with pytest.raises(ValueError, match=SAYS):
        COMMANDS[command](folder)
    assert not (tmp_path / "out").exists()


def test_whoever_changed_it_on_purpose_can_say_so(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["model"], tmp_path / "checkpoint-2"))
    flip(MODEL, 0.8)(folder)
    for kind, words in (
        (ChatConfig, [f"checkpoint={folder}"]),
        (ServeConfig, [f"checkpoint={folder}"]),
        (EvalConfig, [f"checkpoint={folder}"]),
        (PairsConfig, [f"checkpoint={folder}", "shards=x", "out=y"]),
        (ExportConfig, [f"checkpoint={folder}", "out=y"]),
    ):
        options = parse_options(kind, [*words, "verify=false", "allow_missing=[a.*]"], "command")
        assert (options.verify, options.allow_missing) == (False, ["a.*"])
        assert kind(**dict(word.split("=") for word in words)).verify
    assert list(open_models(ServeConfig(checkpoint={"a": str(folder)}, verify=False))) == ["a"]
    assert export(folder, tmp_path / "out", verify=False).max_difference < 1e-4
