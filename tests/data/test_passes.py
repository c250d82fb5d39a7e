"""Passes through the sources: exact at the ends of windows, and never going back."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qa_train.data.order.passes import Passes
from tests.data.test_plan import fake, make


def test_samples_seen_divided_by_the_size_of_the_source() -> None:
    plan = make([fake("a", 3, [100, 80, 120]), fake("b", 1, [40])], tokens_per_batch=3000, shuffle_window=200)
    passes, seen = Passes(plan), Counter[int]()
    for k in range(300):
        seen.update(ref.source for ref in plan.batch(k))
        found = passes.after(k)
        # Nothing is passed over and nothing is too long, so counting gives it.
        np.testing.assert_allclose(found, [seen[0] / 300, seen[1] / 40], atol=1e-9)


def test_records_passed_over_count_and_unused_sources_do_not() -> None:
    plan = make([fake("a", 3, [100, 80], bad=3), fake("off", 0, [9]), fake("b", 1, [40], max_epochs=2)])
    passes = Passes(plan)
    found = np.array([passes.after(k) for k in range(200)])
    assert (np.diff(found, axis=0) >= 0).all()
    assert not found[:, 1].any()
    assert found[-1, 2] == pytest.approx(2), "it ended after two passes"
    ends = [k for k in range(200) if plan.locate(k + 1) != plan.locate(k)]
    assert len(ends) >= 3
    for k in ends:
        _, following = plan.bounds(k)
        (epoch, place), _ = following.cursors
        assert found[k, 0] == pytest.approx(epoch + place / 180)


def test_they_do_not_depend_on_the_order_of_asking() -> None:
    forward = [Passes(make()).after(k) for k in (3, 50, 150)]
    backward = Passes(make())
    assert [backward.after(k) for k in (150, 50, 3)] == forward[::-1]
