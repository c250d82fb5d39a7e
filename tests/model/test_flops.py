"""The FLOP formulas against torch's counter on the real model, and against the numbers of the released one."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qa_train.model import freeze
from qa_train.model.encoders.whisper_costs import WhisperCosts
from qa_train.model.flops import Regime, Shapes, Work, forward_flops, training_flops
from tests.model.conftest import Batch, make_config, make_twins

MIXED = [[3, -10, 2, -101, 5], [1, -350, 4], [-3000, 3], [7], [2, -77, -64, 3]]
RANK = 4
REGIMES = {
    "full": (Regime(), ()),
    "frozen encoder": (Regime(encoder=False), ("encoder",)),
    "frozen LLM": (Regime(llm=False), ("llm",)),
    "frozen projector": (Regime(projector=False), ("projector",)),
    "projector alone": (Regime(encoder=False, llm=False), ("encoder", "llm")),
    "LoRA": (Regime(encoder=False, projector=False, llm=False, lora_rank=RANK), ()),
}
QWEN2_AUDIO = Shapes(WhisperCosts(128, 1280, 5120, 32), 4096, 11008, 32, 32, 32, 128, 156032)


def count(regime: str, batch: Batch) -> tuple[float, float]:
    """What torch counts in a forward and backward: (without convolutions, convolutions)."""
    model = make_twins().ours.train()
    _, frozen = REGIMES[regime]
    freeze(model, frozen)
    if regime == "LoRA":
        layers = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules=layers))
    # The plain attention is made of products that the counter sees; it computes whole squares.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch.joined(), labels=batch.labels, use_cache=False).loss.backward()
    counts = {str(name): value for name, value in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(value for name, value in counts.items() if "convolution" in name)
    return sum(counts.values()) - convolutions, convolutions


@pytest.mark.parametrize("regime", REGIMES)
def test_training_flops_equal_what_torch_counts(regime: str) -> None:
    batch = Batch(MIXED)
    work = Work.of({**batch.joined(), "labels": batch.labels})
    expected = training_flops(Shapes.of(make_config()), work, REGIMES[regime][0], causal=False)
    rest, convolutions = count(regime, batch)
    useful = expected.stem
    assert rest == expected.total - useful
    # Each segment brings up to two tail frames and an empty column or two between itself and the next.
    columns = 4 * len(work.segments) + 2
    assert useful < convolutions <= useful * (1 + columns / sum(work.segments))


def test_work_is_what_the_batch_really_holds() -> None:
    batch = Batch([[3, -10, 2], [7]])
    work = Work.of({**batch.joined(), "labels": batch.labels})
    # The first token of a row is never a target; 10 mel frames are 5 conv frames and 2 audio tokens.
    assert work == Work(segments=[10], documents=[7, 7], supervised=2 + 2 + 6)
    assert QWEN2_AUDIO.encoder.frames(work.segments) == 5
    text = Batch([[7]])
    assert Work.of({**text.joined(), "labels": text.labels}).segments == []


def test_a_causal_document_costs_its_pairs() -> None:
    shapes = Shapes.of(make_config())
    one, square = (forward_flops(shapes, Work([], [5], 0), causal=causal).llm_attention for causal in (True, False))
    assert one == 4 * 2 * 32 * 15
    assert square == 4 * 2 * 32 * 25
    two = forward_flops(shapes, Work([], [5, 5], 0)).llm_attention
    assert two == 2 * one


@pytest.mark.parametrize(("seconds", "teraflops"), [(30, 2.27), (15, 1.045), (10, 0.676), (5, 0.328), (4, 0.261)])
def test_encoder_of_the_released_model(seconds: int, teraflops: float) -> None:
    flops = forward_flops(QWEN2_AUDIO, Work([100 * seconds], [], 0))
    encoder = flops.stem + flops.encoder + flops.encoder_attention
    assert encoder / 1e12 == pytest.approx(teraflops, rel=3e-3)


def test_llm_of_the_released_model() -> None:
    assert QWEN2_AUDIO.llm_weights == pytest.approx(6.476e9, rel=1e-4)
    assert QWEN2_AUDIO.encoder.weights == pytest.approx(0.629e9, rel=1e-3)
    work = Work([500], [173], 14)
    total = training_flops(QWEN2_AUDIO, work, Regime()).total
    # 3 x (0.328 TF of encoder + 173 tokens x 12.95 GF + 14 rows x 1.278 GF); attention of 173 tokens adds 0.3 %.
    assert total / 1e12 == pytest.approx(0.98 + 6.72 + 0.05, rel=6e-3)


def test_a_regime_must_train_something() -> None:
    with pytest.raises(ValueError, match="nothing trains"):
        Regime(encoder=False, projector=False, llm=False)
    with pytest.raises(ValueError, match="adapters need llm=False"):
        Regime(lora_rank=8)
