"""Memory that is freed and taken again costs no page faults."""

import resource
import sys

import pytest
import torch

from qa_train import cli
from qa_train.utils.process import expand_segments, keep_freed_memory


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


GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, GROWING),
        ({"PATH": "/bin"}, {"PATH": "/bin"} | GROWING),
        ({"PYTORCH_ALLOC_CONF": ""}, GROWING),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
        (
            {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:False"},
            {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:False"},
        ),
        (GROWING, GROWING),
    ],
)
def test_segments_grow_unless_the_user_has_set_the_allocator_up(before: dict[str, str], after: dict[str, str]) -> None:
    environ = dict(before)
    expand_segments(environ)
    assert environ == after


def test_every_command_sets_it_before_it_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(cli, "end_with_launcher", lambda: None)
    monkeypatch.setattr(cli, "leave_the_group", lambda: None)
    monkeypatch.setattr(cli, "expand_segments", lambda: done.append("set"))
    monkeypatch.setattr(cli, "guarded", lambda name, work: done.append(name) or 0)
    for command in ("sft", "dpo", "eval", "serve", "chat", "pairs"):
        with pytest.raises(SystemExit):
            cli.main([command])
        assert done == ["set", command]
        done.clear()
