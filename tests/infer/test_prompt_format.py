"""The form in which a checkpoint is asked: that of its run's training data, with the configurations that runs store."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fake_model import FakeModel, processor

from data_pipelines.labelling import build_labels
from data_pipelines.labelling.label_options import LabelConfig, Labeller
from qa_train.config import ChatConfig, EvalConfig, PairsConfig, ServeConfig, compose_stage, written
from qa_train.eval import suite
from qa_train.eval.ranks import Ranks
from qa_train.infer import conversation
from qa_train.infer import server as server_module
from qa_train.infer.prompt_format import template_for
from qa_train.preferences import from_answers

CHATS = "+data.sources.chats={shards: [x.tar], task: chat, template: chat}"


def a_run(folder: Path, stage: str, *words: str) -> str:
    """A run folder with one checkpoint, which holds nothing."""
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    cfg = compose_stage(stage, ["experiment=smoke", f"run.dir={folder}", *words])
    (folder / "config.yaml").write_text(yaml.safe_dump(written(cfg), sort_keys=False))
    return str(folder)


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    return a_run(tmp_path / "pre", "pretrain")


@pytest.fixture
def tuned(tmp_path: Path) -> str:
    return a_run(tmp_path / "sft", "sft", "data=empty", CHATS)


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/checkpoint-3"])
def test_it_is_that_of_the_training_data(
    inside: str, pretrained: str, tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert template_for(f"{tuned}/{inside}", None) == "chat"
    assert template_for(a_run(tmp_path / "both", "pretrain", CHATS), None) == "chat"
    skipped = a_run(tmp_path / "skipped", "pretrain", CHATS, "+data.sources.chats.weight=0")
    assert template_for(skipped, None) == "base"
    capsys.readouterr()
    assert template_for(f"{pretrained}/{inside}", None) == "base"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{pretrained}/{inside} is asked with template=base: the data of its run had no chat ({pretrained}/config.yaml)"
    )


def test_what_is_asked_for_is_done_without_a_word(pretrained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [template_for(pretrained, asked) for asked in ("chat", "base")] == ["chat", "base"]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="template=chatml: use base or chat, or leave it out"):
        template_for(pretrained, "chatml")


@pytest.mark.parametrize("damage", ["", "data: [", "data: {sources: [1]}", "stage: pretrain", "[]"])
def test_a_file_that_does_not_tell_changes_nothing(damage: str, pretrained: str) -> None:
    (Path(pretrained) / "config.yaml").write_text(damage)
    assert template_for(pretrained, None) == "chat"


def test_a_hub_id_or_endpoint_is_asked_in_a_chat(pretrained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even from within a run."""
    monkeypatch.chdir(pretrained)
    assert template_for("Qwen/Qwen2-Audio-7B", None) == template_for(None, None) == "chat"
    assert template_for("checkpoints/checkpoint-3", None) == template_for(".", None) == "base"


def test_chat_asks_so(pretrained: str, tuned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = processor()
    model = FakeModel(parts.tokenizer)
    monkeypatch.setattr(conversation, "load_answering_model", lambda source, **options: (model, parts))
    for checkpoint, template in ((pretrained, None), (tuned, None), (pretrained, "chat")):
        conversation.chat(ChatConfig(checkpoint, text="What is it?", template=template), out=io.StringIO())
    base, chat, forced = (model.tokenizer.decode(call["input_ids"][0]) for call in model.calls)
    assert base == "What is it?"
    assert "<|im_start|>user\nWhat is it?<|im_end|>" in chat
    assert forced == chat


def test_serve_asks_each_of_its_checkpoints_so(pretrained: str, tuned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    from qa_train.infer import service
    from qa_train.infer.protocol import ApiError
    from qa_train.infer.request import parse

    made: list[Any] = []
    monkeypatch.setattr(server_module, "open_models", lambda options: {"a": SimpleNamespace(), "b": SimpleNamespace()})
    monkeypatch.setattr(service, "application", lambda one: made.append(one))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [each.close() for each in sockets])
    assert server_module.serve(ServeConfig({"a": pretrained, "b": tuned}, port=0)) == 0
    made[0].close()
    assert made[0].templates == {"a": "base", "b": "chat"}

    def asked(model: str, *messages: dict[str, str]) -> str:
        body = json.dumps({"model": model, "messages": messages}).encode()
        return parse(body, made[0].options, made[0].templates).sample.template

    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert (asked("a", user), asked("b", user), asked("b", system, user)) == ("base", "chat", "chat")
    with pytest.raises(ApiError, match="one user message, without system or history"):
        asked("a", system, user)


def test_labels_are_asked_so(pretrained: str, tuned: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(build_labels, "find_checkpoint", lambda place: f"{place}/checkpoints/checkpoint-3")

    def template(**more: Any) -> str | None:
        return build_labels._checked(LabelConfig(shards="x", out="y", **more)).template

    assert template(checkpoint=pretrained) == "base"
    assert template(checkpoint=tuned) == template(url="http://x/v1", model="m") == "chat"
    capsys.readouterr()
    assert template(checkpoint=tuned, second=Labeller(checkpoint=pretrained)) == "chat"
    assert f"{pretrained}/checkpoints/checkpoint-3 is asked with template=chat, and the data of its run had only " in (
        capsys.readouterr().err
    )
    assert template(checkpoint=pretrained, second=Labeller(checkpoint=tuned)) == "base"
    assert f"{tuned}/checkpoints/checkpoint-3 is asked with template=base, and" in capsys.readouterr().err


def test_an_evaluation_tells_of_chats(
    pretrained: str, tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unread(options: EvalConfig) -> Any:
        raise ValueError("not loaded")

    monkeypatch.setattr(suite, "_answerer", unread)
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}], "gt": "Hello"}))
    (tmp_path / "base.jsonl").write_text(json.dumps({"audio": "x.wav", "prompt": "Transcribe", "gt": "Hello"}))
    told = {}
    for checkpoint in (pretrained, tuned):
        for name in ("chat", "base"):
            asked = EvalConfig(checkpoint, data=str(tmp_path / f"{name}.jsonl"), out=str(tmp_path / "out"))
            with pytest.raises(ValueError, match="not loaded"):
                suite.evaluate(asked)
            told[checkpoint, name] = capsys.readouterr().err
    assert [key for key, said in told.items() if said] == [(pretrained, "chat")]
    assert f"{pretrained} is asked with template=chat, and the data of its run had only" in told[pretrained, "chat"]


def test_preference_pairs_tell_of_chats(
    pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unread(*place: Any, **options: Any) -> Any:
        raise ValueError("not loaded")

    monkeypatch.setattr(from_answers, "load_answerer", unread)
    with pytest.raises(ValueError, match="not loaded"):
        from_answers._drawn(PairsConfig(checkpoint=pretrained), [], tmp_path, Ranks(0, 1))
    assert "train it with qa-train sft first" in capsys.readouterr().err
