"""Our DPO loss against TRL's own trainer on the stock model: one padded copy of every clip for each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration
from trl import DPOConfig, DPOTrainer

from qa_train.config import DataConfig, EncoderConfig, LanguageModelConfig, ModelConfig, SourceConfig, TrainerConfig
from qa_train.config.checks.preference_checks import LOSSES
from qa_train.data.audio.waveform import read_clip
from qa_train.data.batches import PreferenceBatches, open_data
from qa_train.data.loader import Collator
from qa_train.model import build_model
from qa_train.train.dpo import AudioDPOTrainer, single_pairs
from qa_train.train.numbers.tally import pair_curves

# What a loss needs beside its name.
_NEEDS = {"robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 0.001}}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: _NEEDS.get(name, {}) for name in LOSSES},
    "aot with smoothing": {"label_smoothing": 0.2},
    "discopop at another temperature": {"discopop_tau": 0.5},
    **{f"sigmoid by {name}": {"f_divergence_type": name} for name in ("forward_kl", "js_divergence")},
    "hinge by alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    "sigmoid with weighting": {"use_weighting": True},
    "ipo with weighting": {"use_weighting": True},
    "sigmoid with a length limit": {"ld_alpha": 0.5},
    "sigmoid and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
}


class StockTrainer(DPOTrainer):
    """TRL's trainer as it is, but for the dataset, which is not asked for anything here."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """A policy and a processor; small random weights that react to what they hear."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
               "num_mel_bins": 80}  # fmt: skip
    llm = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=encoder),
        llm=LanguageModelConfig(config=llm),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.mul_(2.0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def batches(parts: tuple[Any, Any], shards: Path) -> PreferenceBatches:
    source = SourceConfig(name="made", shards=[f"{shards}/pairs-*.tar"], task="chat", template="chat")
    cfg = DataConfig(sources={"made": source}, tokens_per_batch=900, shuffle_window=64)
    opened = open_data(cfg, parts[1].tokenizer, 80, seed=0, batches_per_step=1, preference=True)
    assert isinstance(opened, PreferenceBatches)
    return opened


def perturbed(model: Any) -> Any:
    """The same model with other weights: the reference, so that margins are not zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * weight.std().nan_to_num() * torch.randn(weight.shape, generator=generator))
    return model.requires_grad_(False).eval()


def stock_inputs(batches: PreferenceBatches, ours: dict[str, torch.Tensor], processor: Any) -> dict[str, torch.Tensor]:
    """The rows of batch 0 with their clips padded to 30 s, once for chosen and once for rejected."""
    waves = []
    for ref in batches.plan.batch(0):
        for clip in batches.sources[ref.source].clips(ref.row):
            raw = Path(clip.shard).read_bytes()[clip.offset : clip.offset + clip.size]
            waves.append(read_clip(raw))
    audio = processor.feature_extractor(
        waves * 2, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    text = {name: ours[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    return {**text, "input_features": audio["input_features"], "feature_attention_mask": audio["attention_mask"]}


@contextmanager
def encoded(*models: Any) -> Iterator[list[list[int]]]:
    """Mel frames of the clips that each call of an encoder was given."""
    calls: list[list[int]] = []

    def hear(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((kwargs["feature_lengths"] if "feature_lengths" in kwargs else args[1]).tolist())

    hooks = [model.model.audio_tower.register_forward_pre_hook(hear, with_kwargs=True) for model in models]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def make_trainer(kind: type[DPOTrainer], model: Any, reference: Any, processor: Any, folder: Path, **more: Any) -> Any:
    args = DPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", beta=0.3, max_length=None,
        gradient_checkpointing=False, bf16=False, remove_unused_columns=False, **more,
    )  # fmt: skip
    return kind(
        model=model, ref_model=reference, args=args, train_dataset=datasets.Dataset.from_dict({"batch": [0]}),
        data_collator=lambda rows: rows, processing_class=processor.tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": ["sigmoid"]},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        {"loss_type": ["sft", "ipo"]},
        {"loss_type": ["sft"]},
    ],
    ids=lambda options: "+".join(options["loss_type"]),
)
def test_loss_and_gradient_do_not_hang_on_how_pairs_fall_into_batches(
    options: dict[str, Any], parts: tuple[Any, Any], batches: PreferenceBatches, tmp_path: Path
) -> None:
    """Accumulation and ranks alike: the trainer divides by the micro-batches of the step, wherever they are run."""
    model, processor = parts
    model.save_pretrained(tmp_path / "policy")
    reference = perturbed(type(model).from_pretrained(tmp_path / "policy"))
    trainer = make_trainer(AudioDPOTrainer, model, reference, processor, tmp_path, **options)
    trainer.tally = SimpleNamespace(add=lambda values: None)
    trainer.check_finite = lambda loss: None
    refs = [ref for k in range(3) for ref in batches.plan.batch(k)][:4]
    chosen = [int(batches.build_pairs([ref])[0]["completion_mask"][:1, 1:].sum()) for ref in refs]
    assert len(set(chosen)) > 1, "answers of one length would not tell a mean of means from a mean"
    trainer._step_numbers = {"pairs": len(refs), "chosen_tokens": sum(chosen)}
    found = []
    for sizes in ((4,), (2, 2), (1, 3), (1, 1, 1, 1)):
        trainer.args.gradient_accumulation_steps = len(sizes)
        model.zero_grad(set_to_none=True)
        total, start = 0.0, 0
        for size in sizes:
            batch, _ = batches.build_pairs(refs[start : start + size])
            loss = trainer.compute_loss(model, batch) / len(sizes)
            loss.backward()
            total, start = total + float(loss.detach()), start + size
        norm = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]).norm()
        found.append((total, float(norm)))
        assert trainer.loss_weights == (options.get("loss_weights") or [1.0] * len(options["loss_type"]))
    for value in found[1:]:
        assert value == pytest.approx(found[0], rel=1e-4)


def test_a_loss_that_sorts_says_where_it_cannot() -> None:
    def plan(sizes: list[int]) -> Any:
        return SimpleNamespace(plan=SimpleNamespace(batch=lambda k: [None] * sizes[k]))

    assert single_pairs(["sigmoid", "sft"], plan([1, 1]), 2) is None
    for loss in ("aot", "aot_unpaired"):
        assert single_pairs([loss], plan([2, 3]), 2) is None
        told = single_pairs(["sft", loss], plan([1, 3, 1, 4]), 4)
        assert told is not None
        assert f"dpo.loss_type={loss} sorts the pairs" in told
        assert "2 of the first 4 hold one pair" in told
        with pytest.raises(ValueError, match=r"3 of the first 3 hold one pair .*data\.tokens_per_batch"):
            single_pairs([loss], plan([1, 1, 1]), 3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_trl_on_the_stock_model(
    variant: str, parts: tuple[Any, Any], batches: PreferenceBatches, tmp_path: Path
) -> None:
    model, processor = parts
    model.zero_grad(set_to_none=True)
    model.save_pretrained(tmp_path / "policy")
    reference = perturbed(type(model).from_pretrained(tmp_path / "policy"))
    reference.save_pretrained(tmp_path / "reference")
    stock, stock_reference = (
        Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("policy", "reference")
    )
    options = {"loss_type": [variant.partition(" ")[0]], **VARIANTS[variant]}
    ours = make_trainer(AudioDPOTrainer, model, reference, processor, tmp_path, **options)
    theirs = make_trainer(StockTrainer, stock, stock_reference, processor, tmp_path, **options)
    batch = batches.build(0)
    pairs = len(batch["input_ids"]) // 2
    assert pairs >= 3
    ours.attach(
        batches=batches,
        run=SimpleNamespace(),
        writer=SimpleNamespace(),
        options=TrainerConfig(),
        throughput=SimpleNamespace(),
    )
    chosen = int(batch["completion_mask"][:pairs, 1:].sum())
    ours._step_numbers = {"pairs": pairs, "chosen_tokens": chosen}
    ours.tally.begin([Collator(batches)([0])])
    with encoded(model, reference) as passes:
        found = ours.compute_loss(ours.model, batch)
    # Each clip once for chosen and rejected together, by the policy and by the reference.
    assert len(batch["feature_lengths"]) == pairs
    assert passes == [batch["feature_lengths"].tolist()] * 2
    expected = theirs.compute_loss(theirs.model, stock_inputs(batches, batch, processor))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
    record = pair_curves(ours.tally.record(ours.accelerator), ours.beta)
    assert abs(record["rewards/margins"]) > 1e-3, "without a margin, the variants could not be told apart"
    names = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    for name in (*names, "logps/chosen", "logps/rejected", "entropy", "logits/rejected", "mean_token_accuracy"):
        (value,) = theirs._metrics["train"][name] or theirs._metrics["eval"][name]
        assert record[name] == pytest.approx(value, abs=1e-4), name
    found.backward()
    expected.backward()
    norms = [
        float(torch.cat([w.grad.flatten() for w in m.parameters() if w.grad is not None]).norm())
        for m in (model, stock)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert norms[0] > 1e-4
