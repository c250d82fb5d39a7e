"""Every keyed draw gives the numbers that it gave when each module made its own."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.clips import picks
from qa_train.data.audio.augment import mask_spans
from qa_train.data.order.epoch import hashes
from qa_train.data.order.seek import number_of
from qa_train.data.text.noise import replace_targets
from qa_train.data.text.prompts import draw
from qa_train.data.text.template import Encoded
from qa_train.utils import draws


def test_the_numbers_of_training_stay() -> None:
    assert [draw(7, epoch, key, "asr", 1000) for epoch, key in ((0, "clip-1"), (1, "clip-1"), (0, "é"))] == [
        934, 348, 407,
    ]  # fmt: skip
    noisy = replace_targets(
        Encoded(list(range(12)), [-100] * 2 + list(range(2, 12))), 0.5, range(100, 140), (3, 1, "a:asr")
    )
    assert noisy.input_ids == [0, 1, 108, 134, 4, 102, 103, 133, 102, 129, 10, 11]
    kept = mask_spans(torch.ones(40, 1), 0.4, (3, 1, "clip/0"))[:, 0].int().tolist()
    assert "".join(map(str, kept)) == "1000000001111111100011110011110000000111"
    assert draws.generator([1, "s", 0, "k", 2]).integers(0, 1000, 4).tolist() == [249, 539, 987, 314]
    assert hashes(3, 5, "rows", "name", 2).tolist() == [
        1567234991297854562, 4937255216210820644, 6858029214287934183,
    ]  # fmt: skip
    assert hashes(2).tolist() == [11304702791397197789, 14078216091297057993]
    assert number_of("settings") == 222812460894767


def test_the_numbers_of_the_builders_stay() -> None:
    assert draws.share(("k", "q", "variation")) == 0.10939698578821885
    assert picks.draw(3, "x", "y") == 0.9348513046745438
    assert picks.draw("é") == 0.7933768955844694
    assert picks.pick("abcdefgh", 3, "x", "y") == "h"


def test_a_key_is_its_json_and_a_text_is_itself() -> None:
    assert draws.digest((1, "a")) == draws.digest([1, "a"]) != draws.digest([1, "b"])
    assert draws.digest("a") != draws.digest(["a"])
    assert len(draws.digest("a", 64)) == 64
    shares = np.array([draws.share([i]) for i in range(2000)])
    assert ((shares >= 0) & (shares < 1)).all()
    assert abs(shares.mean() - 0.5) < 0.03
    assert {draws.below(3, [i]) for i in range(50)} == {0, 1, 2}
