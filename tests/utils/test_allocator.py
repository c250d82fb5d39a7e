"""Memory that is freed and taken again costs no page faults."""

import resource
import sys

import pytest
import torch

from qa_train.utils.allocator import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize("mebibytes", [1, 4, 8])
def test_a_tensor_that_is_made_again_takes_the_pages_of_the_last_one(mebibytes: int) -> None:
    assert keep_freed_memory()
    size = mebibytes * 2**20 // 4
    torch.ones(size)  # the heap grows once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(size)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # Without it each of the 40 is a new mapping: 256 faults a mebibyte, every time.
    assert faults < 5 * 256 * mebibytes
