"""Where answers are computed: a GPU where there is one, one place decides, and the first line shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qa_train.commands import answering
from qa_train.config import ChatConfig, EvalConfig, PairsConfig, ServeConfig
from qa_train.infer import conversation, server
from qa_train.model import build
from qa_train.model.placement import choose_device
from qa_train.preferences import from_answers

COMMANDS = [
    (answering.chat, ChatConfig(checkpoint="x"), conversation, "chat"),
    (answering.serve, ServeConfig(checkpoint="x"), server, "serve"),
    (answering.pairs, PairsConfig(checkpoint="x", shards="a.tar", out="o"), from_answers, "pairs"),
    (answering.evaluate, EvalConfig(checkpoint="x", data="q.jsonl", out="o"), None, "evaluate"),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two pretended GPUs; the list fills with the devices that were tried."""
    tried: list[str] = []

    def empty(size: int, device: str) -> None:
        tried.append(device)
        if device not in ("cuda:0", "cuda:1", "cpu"):
            raise RuntimeError("CUDA error: invalid device ordinal\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended H200")
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tried


@pytest.mark.parametrize(
    ("asked", "rank", "device"),
    [
        ("auto", None, "cuda:0"),
        ("auto", "1", "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda", "1", "cuda:1"),
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_choice(asked: str, rank: str | None, device: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(asked) == device
    assert gpus == [device]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_that_is_there_and_cannot_be_used(asked: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "7")
    with pytest.raises(ValueError, match=rf"device={asked} cannot be used \(CUDA error: invalid device ordinal\): use"):
        choose_device(asked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "cuda:99"])
def test_no_such_device(asked: str) -> None:
    with pytest.raises(ValueError, match=f"device={asked} cannot be used"):
        choose_device(asked)


@pytest.mark.parametrize(("command", "options", "module", "name"), COMMANDS, ids=[c[3] for c in COMMANDS])
@pytest.mark.parametrize("gpu", [True, False])
def test_every_command_that_answers(
    command: Any, options: Any, module: Any, name: str, gpu: bool, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if gpu:
        request.getfixturevalue("gpus")
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    if module is None:
        from qa_train.eval import suite as module
    given: list[Any] = []
    monkeypatch.setattr(module, name, lambda options: given.append(options) or 0)
    assert command(options) == 0
    assert [each.device for each in given] == ["cuda:0" if gpu else "cpu"]
    shown = capsys.readouterr()
    expected = "cuda:0, Pretended H200" if gpu else "cpu"
    assert (shown.out, shown.err) == ("", f"answers are computed on {expected} (device=auto)\n")


def test_only_the_first_process_shows_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(conversation, "chat", lambda options: 0)
    assert answering.chat(ChatConfig(checkpoint="x", device="cpu")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [EvalConfig(out="o", step="score"), EvalConfig(compare=["a", "b"], checkpoint="x")])
def test_what_needs_no_model_names_no_device(
    options: EvalConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qa_train.eval import suite

    monkeypatch.setattr(suite, "evaluate", lambda options: 0)
    assert answering.evaluate(options) == 0
    assert capsys.readouterr().err == ""


def test_a_model_is_loaded_to_the_chosen_device(gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by who calls the function without a command: the default is the same."""
    asked: list[Any] = []

    def load(source: str | Path, **options: Any) -> Any:
        asked.append(options["device"])
        return torch.nn.Identity(), None

    monkeypatch.setattr(build, "load_model", load)
    monkeypatch.setattr(build, "compute_dtype", lambda stored, device: stored)
    monkeypatch.setattr(torch.nn.Module, "dtype", torch.float32, raising=False)
    build.load_answering_model("x")
    assert asked == ["cuda:0"]
