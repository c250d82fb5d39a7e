"""Time masks: about the asked share, in short spans, the same for the same key and only then."""

from __future__ import annotations

import torch

from qa_train.data.augment import MAX_SPAN, mask_spans


def test_masks_cover_about_the_share_in_short_spans() -> None:
    states = torch.ones(400, 3)
    zeros = torch.stack([(mask_spans(states, 0.1, (0, 0, f"clip{i}")) == 0).all(1) for i in range(200)])
    assert 0.07 < zeros.float().mean() < 0.11  # spans may overlap or pass the end
    assert states.min() == 1, "the cached states themselves must not change"
    runs = mask_spans(torch.ones(30, 1), 0.1, (0, 0, "a")).flatten().tolist()
    longest = max(len(part) for part in "".join("x" if v == 0 else " " for v in runs).split(" "))
    assert longest <= 3 * MAX_SPAN


def test_the_key_decides() -> None:
    states = torch.ones(300, 2)
    assert torch.equal(mask_spans(states, 0.2, (1, 2, "a")), mask_spans(states, 0.2, (1, 2, "a")))
    for other in ((0, 2, "a"), (1, 3, "a"), (1, 2, "b")):
        assert not torch.equal(mask_spans(states, 0.2, (1, 2, "a")), mask_spans(states, 0.2, other))
    assert mask_spans(states, 0.0, (0, 0, "a")) is states
