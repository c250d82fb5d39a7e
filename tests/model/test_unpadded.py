"""The unpadded model against its twin, the stock padded one."""

from __future__ import annotations

import re

import pytest
import torch
from transformers.integrations.neftune import activate_neftune
from transformers.trainer_pt_utils import LabelSmoother
from trl.trainer.utils import add_fused_lm_head

from qa_train.model import encoder_states
from qa_train.model.layers.rows import Rows
from tests.model.conftest import AUDIO_ID, FULL, MELS, Batch, Twins, make_twins

# 0.1 s to 30 s, odd and even, two clips in a row, clips side by side, text alone, audio alone.
MIXED = [[3, -10, 2, -101, 5], [1, -350, 4], [-3000, 3], [7], [2, -77, -64, 3], [-2999, 6]]
SHORT = [[3, -20, 2], [5, -133, 4], [9]]


def real(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    return values[batch.attention_mask.bool()]


@pytest.mark.parametrize("left", [False, True])
def test_logits_equal_stock(twins: Twins, left: bool) -> None:
    batch = Batch(MIXED, left=left)
    with torch.no_grad():
        expected = twins.stock(**batch.padded(), use_cache=False).logits
        found = twins.ours(**batch.joined()).logits
    torch.testing.assert_close(real(found, batch), real(expected, batch), atol=1e-5, rtol=1e-5)


def test_stock_inputs_are_understood(twins: Twins) -> None:
    batch = Batch(SHORT)
    with torch.no_grad():
        assert torch.equal(twins.ours(**batch.padded()).logits, twins.ours(**batch.joined()).logits)


def test_loss_and_every_gradient_equal_stock(twins: Twins) -> None:
    batch = Batch(MIXED)
    expected = twins.stock(**batch.padded(), labels=batch.labels, use_cache=False).loss
    found = twins.ours(**batch.joined(), labels=batch.labels)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    found.loss.backward()
    ours = dict(twins.ours.named_parameters())
    for name, parameter in twins.stock.named_parameters():
        if "embed_positions" in name:
            continue
        assert parameter.grad is not None, name
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=2e-5 * scale, rtol=1e-3, msg=name)


def test_llama_decoder_and_gradient_checkpointing() -> None:
    twins = make_twins(model_type="llama")
    batch = Batch(SHORT)
    expected = twins.stock(**batch.padded(), labels=batch.labels, use_cache=False).loss
    twins.ours.train()
    twins.ours.gradient_checkpointing_enable({"use_reentrant": False})
    loss = twins.ours(**batch.joined(), labels=batch.labels, use_cache=False).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None for n, p in twins.ours.named_parameters() if "embed_positions" not in n)


def test_rows_do_not_see_each_other(twins: Twins) -> None:
    batch, other = Batch(SHORT), Batch(SHORT)
    other.features[0] += 1.0
    other.input_ids[0, 0] += 1
    with torch.no_grad():
        before, after = twins.ours(**batch.joined()).logits, twins.ours(**other.joined()).logits
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:], atol=0, rtol=0)


def test_loss_is_divided_by_the_given_number(twins: Twins) -> None:
    batch = Batch(SHORT)
    supervised = int((batch.labels[:, 1:] != -100).sum())
    mean = twins.ours(**batch.joined(), labels=batch.labels).loss
    shared = twins.ours(**batch.joined(), labels=batch.labels, num_items_in_batch=torch.tensor(4 * supervised)).loss
    torch.testing.assert_close(shared * 4, mean)
    nothing = twins.ours(**batch.joined(), labels=torch.full_like(batch.labels, -100)).loss
    assert nothing == 0
    nothing.backward()


def test_losses_by_row_equal_those_of_rows_alone(twins: Twins) -> None:
    found = twins.ours(
        **Batch(SHORT).joined(), labels=Batch(SHORT).labels, num_items_in_batch=7, return_row_losses=True
    )
    torch.testing.assert_close(found.row_losses.sum(), found.loss.detach() * 7)
    assert not found.row_losses.requires_grad
    for i in range(len(SHORT)):
        labels = Batch(SHORT).labels
        labels[[j for j in range(len(SHORT)) if j != i]] = -100
        alone = twins.ours(**Batch(SHORT).joined(), labels=labels, num_items_in_batch=1).loss
        torch.testing.assert_close(found.row_losses[i], alone.detach())


def test_weights_of_rows_scale_their_part_of_the_loss(twins: Twins) -> None:
    batch = Batch(SHORT)
    asked = {"labels": batch.labels, "num_items_in_batch": 5, "return_row_losses": True}
    rows = twins.ours(**batch.joined(), **asked).row_losses
    weights = torch.tensor([1.0, 0.0, 2.5])
    found = twins.ours(**batch.joined(), **asked, row_weights=weights)
    torch.testing.assert_close(found.loss.detach(), (rows * weights).sum() / 5)
    torch.testing.assert_close(found.row_losses, rows)


@pytest.mark.parametrize("factor", [0.1, 0.9])
def test_label_smoothing_is_that_of_transformers(twins: Twins, factor: float) -> None:
    batch = Batch(MIXED)
    output = {"logits": twins.stock(**batch.padded(), use_cache=False).logits}
    expected = LabelSmoother(factor)(output, batch.labels, shift_labels=True)
    found = twins.ours(**batch.joined(), labels=batch.labels, smoothing=factor).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", MIXED[:2])
def test_neftune_is_that_of_transformers(twins: Twins, row: list[int]) -> None:
    batch = Batch([row])
    twins.stock.train()
    twins.ours.train()
    activate_neftune(twins.stock, 5.0)
    twins.ours.model.neftune_noise_alpha = 5.0
    losses = []
    for model, inputs in ((twins.stock, batch.padded()), (twins.ours, batch.joined())):
        torch.manual_seed(7)
        losses.append(model(**inputs, labels=batch.labels, use_cache=False).loss)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    twins.ours.eval()
    assert abs(float(twins.ours(**batch.joined(), labels=batch.labels).loss - losses[1])) > 1e-3


def test_neftune_scales_by_the_length_of_each_document(twins: Twins) -> None:
    lengths = [3, 50, 1]
    rows = Rows.of((3, 50), torch.arange(50) < torch.tensor(lengths)[:, None], torch.device("cpu"))
    noise = rows.noise(torch.zeros(54, 4096)).split(lengths)
    for part, length in zip(noise, lengths, strict=True):
        assert float(part.abs().max()) == pytest.approx((length * 4096) ** -0.5, rel=1e-3)


def test_many_supervised_rows_are_scored_in_chunks(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(SHORT)
    whole = twins.ours(**batch.joined(), labels=batch.labels).loss
    whole.backward()
    gradient = twins.ours.lm_head.weight.grad.clone()
    twins.ours.zero_grad()
    monkeypatch.setattr("qa_train.model.layers.head.HEAD_ROWS", 4)
    chunked = twins.ours(**batch.joined(), labels=batch.labels).loss
    chunked.backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(twins.ours.lm_head.weight.grad, gradient)


def test_fused_head_of_trl_gives_the_same_loss(twins: Twins) -> None:
    batch = Batch(SHORT)
    expected = twins.ours(**batch.joined(), labels=batch.labels).loss
    add_fused_lm_head(twins.ours)
    fused = twins.ours(**batch.joined(), labels=batch.labels, fused_lm_head=True)
    torch.testing.assert_close(fused.loss, expected)
    fused.loss.backward()


def test_encoder_states_replace_mels_and_the_encoder_call(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(SHORT)
    with torch.no_grad():
        expected = twins.ours(**batch.joined()).logits
        states = encoder_states(twins.ours, batch.joined()["input_features"], torch.tensor(batch.frames))
        monkeypatch.setattr(twins.ours.model.audio_tower, "forward", None)
        found = twins.ours(**batch.text(), audio_states=states).logits
        text = Batch([[4], [9]])
        twins.ours(**text.text(), audio_states=states[:0])
    assert torch.equal(found, expected)


def test_rows_can_share_a_clip(twins: Twins) -> None:
    batch = Batch([[3, -50, 2], [3, -90, 2], [1, -50, 6], [1, -90, 6]])
    shared = batch.joined()
    twice = batch.features.clone()
    twice[2:] = twice[:2]
    batch.features = twice
    full = batch.joined()
    first, second = 12, 22
    columns = 52 + 92
    shared["input_features"], shared["feature_lengths"] = full["input_features"][:, :columns], torch.tensor([50, 90])
    shared["audio_gather"] = torch.arange(first + second).repeat(2)
    with torch.no_grad():
        torch.testing.assert_close(twins.ours(**shared).logits, twins.ours(**full).logits, atol=1e-6, rtol=1e-5)


def test_batch_without_audio_calls_encoder_and_projector_once(twins: Twins) -> None:
    calls = []
    tower, projector = twins.ours.model.audio_tower, twins.ours.model.multi_modal_projector
    for module in (tower, projector):
        module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    batch = Batch([[5], [9]])
    output = twins.ours(**batch.joined(), labels=batch.labels)
    assert len(calls) == 2
    output.loss.backward()
    assert float(tower.conv1.weight.grad.abs().max()) == 0
    with torch.no_grad():
        expected = twins.stock(**batch.padded(), use_cache=False).logits
        found = twins.ours(**batch.joined()).logits
    torch.testing.assert_close(real(found, batch), real(expected, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=["cache", "no cache", "beams"])
def test_generate_equals_stock(twins: Twins, options: dict) -> None:
    batch = Batch([[3, -20, 2], [5, -133, 4], [2, -64, 1]], left=True)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1, **options}
    expected = twins.stock.generate(**batch.padded(), **settings)
    assert torch.equal(twins.ours.generate(**batch.joined(), **settings), expected)


def test_generate_samples_share_one_encoding(twins: Twins) -> None:
    batch = Batch([[3, -20, 2, -31, 1], [5], [2, -64, 1]], left=True)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    encoded = []
    twins.ours.model.audio_tower.register_forward_hook(lambda _m, _i, out: encoded.append(out[0].shape[0]))
    one = twins.ours.generate(**batch.joined(), **settings)
    assert len(encoded) == 1
    # Two greedy beams that never part would be equal; sampling at a tiny temperature is greedy.
    settings |= {"do_sample": True, "temperature": 1e-4, "num_return_sequences": 2}
    two = twins.ours.generate(**batch.joined(), **settings)
    assert torch.equal(two, one.repeat_interleave(2, 0))
    assert encoded == [encoded[0]] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_features": torch.zeros(MELS + 1, 157)}, "takes [16, frames]"),
        ({"input_features": torch.zeros(MELS, 150)}, "150 columns, but feature_lengths [20, 133] need 157"),
        ({"feature_lengths": torch.tensor([2, 133])}, "needs 3 to 3000"),
        ({"feature_lengths": torch.tensor([FULL + 1])}, "needs 3 to 3000"),
        ({"input_features": torch.zeros(MELS, 160), "feature_lengths": torch.tensor([23, 133])}, "audio gives 39"),
        ({"input_features": None, "feature_lengths": None}, "38 <|AUDIO|> tokens, but no audio was given"),
        ({"feature_lengths": None}, "came without their lengths"),
        ({"audio_states": torch.zeros(38, 5)}, "gives [tokens, 32]"),
        ({"attention_mask": torch.zeros(3, 43, dtype=torch.long)}, "no real token"),
    ],
)
def test_bad_input_is_named(twins: Twins, changes: dict, says: str) -> None:
    batch = Batch(SHORT)
    assert int((batch.input_ids == AUDIO_ID).sum()) == 38
    with pytest.raises(ValueError, match=re.escape(says)):
        twins.ours(**{**batch.joined(), **changes})
