"""Noise on the answers that the decoder reads back."""

from __future__ import annotations

from qa_train.data.text.noise import ordinary_tokens, replace_targets
from qa_train.data.text.template import IGNORE, Encoded
from qa_train.model.tokenizers import load_tokenizer

TOKENS = range(1000, 2000)


def test_only_inner_targets_are_replaced_and_labels_stay() -> None:
    row = Encoded([1, 2, 3, *range(10, 210), 5], [IGNORE] * 3 + [*range(10, 210), 5])
    noisy = replace_targets(row, 0.25, TOKENS, (0, 0, "a"))
    assert noisy.labels == row.labels
    assert noisy.input_ids[:3] == [1, 2, 3]
    assert noisy.input_ids[-1] == 5
    changed = [i for i in range(len(row.input_ids)) if noisy.input_ids[i] != row.input_ids[i]]
    assert 30 <= len(changed) <= 70
    assert all(noisy.input_ids[i] in TOKENS for i in changed)


def test_the_draw_depends_on_the_key_alone() -> None:
    row = Encoded(list(range(100)), list(range(100)))
    draws = [
        replace_targets(row, 0.5, TOKENS, key).input_ids for key in ((0, 0, "a"), (0, 0, "a"), (0, 1, "a"), (0, 0, "b"))
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
    assert replace_targets(row, 0.0, TOKENS, (0, 0, "a")) is row


def test_turns_keep_their_ends() -> None:
    # Two answers in one chat: the last token of each ends a turn.
    labels = [IGNORE, 7, 8, 9, IGNORE, 7, 9, IGNORE]
    row = Encoded([0, 7, 8, 9, 1, 7, 9, 1], labels)
    for epoch in range(20):
        noisy = replace_targets(row, 0.9, TOKENS, (0, epoch, "a")).input_ids
        assert [noisy[i] for i in (0, 3, 4, 6, 7)] == [0, 9, 1, 9, 1]


def test_ordinary_tokens_hold_no_special_token() -> None:
    tokenizer = load_tokenizer("builtin:nano")
    found = ordinary_tokens(tokenizer)
    names = set(tokenizer.convert_ids_to_tokens(found))
    assert len(found) > 300
    assert not {name for name in names if name.startswith("<|")}
