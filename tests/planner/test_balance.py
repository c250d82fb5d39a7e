"""The cost of a sample: the operations of the run's own model, the same for training and for every command."""

from __future__ import annotations

import numpy as np
import pytest

from qa_train.config.compose import compose_stage
from qa_train.data.order.packing import Cost
from qa_train.data.order.shuffle_window import Lengths
from qa_train.model import build_model, load_model_config
from qa_train.model.flops import Regime, Shapes, Work, forward_flops, training_flops
from qa_train.planner.balance import cost_of

CLIPS, TEXTS, SCORED = [40, 250, 700, 0], [30, 12, 90, 400], [20, 5, 40, 300]
CACHED = ["model.freeze=[encoder]", "data.encoder_cache=cache"]


def lengths(documents: list[list[int]]) -> Lengths:
    columns = [[sum(each), sum(n * n for n in each), clip, clip * clip, scored]
               for each, clip, scored in zip(documents, CLIPS, SCORED, strict=True)]  # fmt: skip
    return Lengths(*np.asarray(columns).T, np.full(len(columns), "", dtype=object))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("pretrain", []),
        ("pretrain", ["model.freeze=[encoder]"]),
        ("pretrain", CACHED),
        ("sft", ["model.freeze=[llm]"]),
        ("sft", ["model.lora.parts=[encoder,llm]"]),
        ("dpo", []),
        ("dpo", ["dpo.reference=precomputed"]),
    ],
)
@pytest.mark.parametrize("model", ["nano", "tiny", "qwen2_audio_7b"])
def test_costs_are_the_operations_of_the_samples(stage: str, words: list[str], model: str) -> None:
    cfg = compose_stage(stage, ["experiment=smoke", f"model={model}", "model.dtype=float32", *words])
    shapes = Shapes.of(load_model_config(cfg.model))
    pair = 2 if stage == "dpo" else 1
    documents = [[clip + text + i for i in range(pair)] for clip, text in zip(CLIPS, TEXTS, strict=True)]
    exact = []
    for clip, rows, scored in zip(CLIPS, documents, SCORED, strict=True):
        # Four mel frames are one audio token.
        work = Work([4 * clip] if clip and not cfg.data.encoder_cache else [], rows, scored)
        flops = training_flops(shapes, work, Regime.of(cfg.model)).total
        if stage == "dpo" and cfg.dpo.reference == "live":
            flops += forward_flops(shapes, work).total
        if cfg.data.encoder_cache and clip:
            flops += training_flops(shapes, Work([4 * clip], rows, scored), Regime.of(cfg.model)).projector
        exact.append(flops)
    found = cost_of(cfg, shapes).of(lengths(documents))
    # Three significant digits of every coefficient.
    np.testing.assert_allclose(found / found.sum(), np.asarray(exact) / sum(exact), rtol=0.01)


def test_the_default_is_the_released_model() -> None:
    cfg = compose_stage("pretrain", ["experiment=smoke", "model=qwen2_audio_7b", "model.dtype=float32"])
    assert cost_of(cfg, Shapes.of(load_model_config(cfg.model))) == Cost()


@pytest.mark.parametrize("model", ["nano", "tiny", "qwen2_audio_7b", "whisper_large_v3_qwen_7b"])
def test_shapes_without_the_model_are_the_models(model: str) -> None:
    cfg = compose_stage("pretrain", ["experiment=smoke", f"model={model}", "model.dtype=float32"])
    built, _ = build_model(cfg.model, meta=True)
    assert Shapes.of(load_model_config(cfg.model)) == Shapes.of(built.config)


def test_memory_settings_do_not_change_the_order() -> None:
    """They may change when a run is resumed."""
    words = ["experiment=smoke", "model=nano"]
    plain, other = (
        compose_stage("pretrain", [*words, *more])
        for more in ([], ["trainer.gradient_checkpointing.llm=full", "deepspeed=zero2", "trainer.batches_per_step=8"])
    )
    shapes = Shapes.of(load_model_config(plain.model))
    assert cost_of(plain, shapes) == cost_of(other, shapes)
    assert cost_of(compose_stage("pretrain", [*words, *CACHED]), shapes) != cost_of(plain, shapes)
