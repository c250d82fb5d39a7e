"""A run on a GPU whose kernels need a C compiler ends before its model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qa_train.config.compose import compose_stage
from qa_train.train import arguments


@pytest.mark.parametrize(
    ("stage", "words", "asked"),
    [
        ("dpo", [], "qa-train dpo"),
        ("sft", ["trainer.use_liger_kernel=true"], "trainer.use_liger_kernel"),
        ("pretrain", ["trainer.compile_layers=true"], "trainer.compile_layers"),
        ("dpo", ["trainer.compile_layers=true"], "qa-train dpo and trainer.compile_layers"),
        ("pretrain", [], None),
        ("sft", [], None),
    ],
)
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("missing", ["there is neither gcc nor clang", None])
def test_refusal(
    stage: str, words: list[str], asked: str | None, gpu: bool, missing: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cfg = compose_stage(stage, ["experiment=smoke", f"run.dir={tmp_path}", *words])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(arguments, "missing_compiler", lambda: missing)
    if asked and gpu and missing:
        with pytest.raises(ValueError, match=f"^{asked} on a GPU needs a C compiler .*, and {missing}: apt-get"):
            arguments._check_compiler(cfg)
    else:
        arguments._check_compiler(cfg)


def test_it_is_asked_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose_stage("dpo", ["experiment=smoke", f"run.dir={tmp_path}"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(arguments, "missing_compiler", lambda: "there is no icc (CC)")
    monkeypatch.setattr(arguments, "_construct", lambda *_: pytest.fail("the arguments were built"))
    with pytest.raises(ValueError, match="needs a C compiler"):
        arguments.training_arguments(cfg, None)  # type: ignore[type-var]
