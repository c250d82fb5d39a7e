"""Hostile inputs around the shards: source patterns, endless tars, prompt files, configurations, model folders."""

from __future__ import annotations

import io
import json
import struct
import time
from pathlib import Path

import pytest

from qa_train.config.compose import compose_stage
from qa_train.data.shards import tar
from qa_train.data.stores import storage
from qa_train.data.text.prompts import PromptBank
from qa_train.model import load_model
from tests.data.hostile import header


@pytest.mark.parametrize(
    "pattern",
    ["/nowhere/{0..999999999}.tar", "s3://b/{0..999999999}{0..9}.tar", "{0..999}{0..999}{0..9}.tar", "{a,b}" * 40,
     "{1.." + "9" * 5000 + "}.tar", "{{a,b}.tar"],
    ids=lambda p: p[:30],
)  # fmt: skip
def test_braces_that_stand_for_too_many_names_are_refused(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="cannot be expanded") as caught:
        storage.expand([pattern])
    assert len(str(caught.value)) < 600
    assert time.process_time() - started < 5


def test_a_tar_of_endless_empty_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 1000)
    raw = header() * 1001 + bytes(1024)
    with pytest.raises(tar.DamagedShard, match=r"x\.tar: more than 1000 members, at byte 512000"):
        list(tar.members(io.BytesIO(raw), "x.tar", len(raw)))


@pytest.mark.parametrize("opening", ["", "mine: {prompts: {en: *i}, target: '{text}'}\n"])
def test_a_yaml_bomb_is_no_prompt_file(opening: str, tmp_path: Path) -> None:
    levels = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    path = tmp_path / "bomb.yaml"
    path.write_text("a: &a [x, x, x, x, x, x, x, x, x]\n" + levels + opening)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"bomb\.yaml"):
        PromptBank.load([str(path)])
    assert time.process_time() - started < 5


@pytest.mark.parametrize("key", ["_target_", "model._target_", "model.lora.more"])
def test_a_configuration_names_no_code_and_no_unknown_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"there is no key {key}; .* has "):
        compose_stage("pretrain", ["experiment=smoke", f"+{key}=os.system"])


def test_a_model_folder_runs_no_code_and_lies_about_nothing(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    names = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    (tmp_path / "evil.py").write_text(f"open({str(owned)!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="contains code, which is never run here"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_audio"}))
    with pytest.raises(ValueError, match="header too large"):
        load_model(str(tmp_path))
    assert not owned.exists()
