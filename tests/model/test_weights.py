from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qa_train.config.compose import compose_stage
from qa_train.model import build_model, encoder_hash, load_model, load_weights, weights_digest
from qa_train.model.layers import parts
from qa_train.model.stored.weights import model_name
from tests.model.conftest import make_twins


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"], ids=["one file", "shards"])
def test_weights_are_restored_through_the_names_of_the_file(tmp_path: Path, shard_size: str) -> None:
    saved = make_twins().ours
    saved.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size != "5GB")
    live = make_twins().ours
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.zero_()
    assert weights_digest(live) != weights_digest(saved)
    load_weights(live, tmp_path)
    assert weights_digest(live) == weights_digest(saved)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda w: w.pop("language_model.lm_head.weight"), "missing lm_head.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda w: w.update({"audio_tower.conv1.bias": torch.zeros(3)}), r"has shape \[3\], the model has \[32\]"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path: Path, damage, says: str) -> None:
    model = make_twins().ours
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.model.norm.weight"].zero_()
    damage(weights)
    save_file(weights, tmp_path / "model.safetensors")
    before = weights_digest(model)
    with pytest.raises(ValueError, match=says):
        load_weights(model, tmp_path)
    assert weights_digest(model) == before


def test_unreadable_checkpoints_are_named(tmp_path: Path) -> None:
    model = make_twins().ours
    with pytest.raises(ValueError, match="nor its index: not a checkpoint"):
        load_weights(model, tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    file = min(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_weights(model, tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="the checkpoint is incomplete"):
        load_weights(model, tmp_path)


def test_digests_see_every_change_of_their_part() -> None:
    model = make_twins().ours
    whole, encoder = weights_digest(model), encoder_hash(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert weights_digest(model) != whole
    assert encoder_hash(model) == encoder
    with torch.no_grad():
        model.model.audio_tower.layer_norm.bias[0] += 1e-3
    assert encoder_hash(model) != encoder
    assert weights_digest(model.to(torch.bfloat16)) != whole


@pytest.mark.parametrize(
    ("stored", "inside"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("audio_tower.conv1.weight", "model.audio_tower.conv1.weight"),
    ],
)
def test_names_in_files_as_transformers_writes_them(stored: str, inside: str) -> None:
    assert model_name(stored) == inside


def test_a_release_with_other_names_is_one_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads the weights and has a table of its own: names that it lacks must not stay random."""
    model, processor = build_model(compose_stage("sft", ["model=tiny"]).model, seed=1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    other = {re.sub("^audio_tower", "ears", name): value for name, value in stored.items()}
    assert other.keys() != stored.keys()
    save_file(other, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.audio_tower"):
        load_model(tmp_path)
    monkeypatch.setattr(parts, "_RENAMED", (*parts._RENAMED, ("ears.", "model.audio_tower.")))
    loaded, _ = load_model(tmp_path)
    assert weights_digest(loaded) == weights_digest(model)
    # And it is saved as everybody knows it.
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == stored.keys()
