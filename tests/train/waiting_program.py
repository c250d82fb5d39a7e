"""Ranks that wait for rank 0 for longer than their group allows. Run once a rank: `tests.train.forks`.

waiting_program.py note|broadcast       # for work of 6 s and a refusal, in a group whose collective calls may take 2 s
waiting_program.py STAGE KEY=VALUE ...  # a stage whose ZeRO conversion takes longer than trainer.ddp_timeout=SECONDS
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from qa_train.cli import main
from qa_train.data.shards.tar import DamagedShard
from qa_train.train.job import distributed, reshape
from qa_train.train.job.owner import Owned


def wait(how: str) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))

    def work() -> str:
        time.sleep(6)
        return "done"

    def refuse() -> None:
        raise Owned("another start trains here")

    def damaged() -> None:
        raise DamagedShard("a.tar", 7, None, "cut")

    def locked() -> None:
        error = OSError("a server went away")
        error.connection = threading.Lock()  # type: ignore[attr-defined]
        raise error

    if how == "note":
        found = distributed.by_main(work)
        # Rank 0 alone looks, and all are refused alike.
        with pytest.raises(Owned, match="another start trains here"):
            distributed.by_main(refuse)
        # Neither can be made again from its arguments alone.
        with pytest.raises(ValueError, match=r"a\.tar: cut, at byte 7, before its first member"):
            distributed.by_main(damaged)
        with pytest.raises(OSError, match="a server went away"):
            distributed.by_main(locked)
    else:
        found = distributed.from_main(work() if distributed.is_main() else None)
    assert found == "done"
    torch.distributed.destroy_process_group()


def convert_slowly(words: list[str]) -> None:
    limit_s = next(int(word.partition("=")[2]) for word in words if word.startswith("trainer.ddp_timeout="))
    convert = reshape._convert

    def slow(source: Path, target: Path) -> None:
        convert(source, target)
        time.sleep(limit_s + 5)

    reshape._convert = slow
    main(words)


if __name__ == "__main__":
    if sys.argv[1] in ("note", "broadcast"):
        wait(sys.argv[1])
    else:
        convert_slowly(sys.argv[1:])
    sys.exit(0)
