"""One rank of a prediction run with the stand-in model: python rank_program.py OUT DATA [die after N batches]."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "infer"))

from fake_model import FakeModel, processor

from qa_train.commands.guard import leave_the_group
from qa_train.eval.answers import Limits
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.predict import predict
from qa_train.eval.ranks import ranks_from_environment
from qa_train.infer.generate import Generator


def main(out: str, yaml: str, die_after: str = "0") -> None:
    parts = processor()
    model = FakeModel(parts.tokenizer)
    generate = model.generate

    def dying(**inputs: Any) -> Any:
        if int(die_after) and len(model.calls) == int(die_after):
            os._exit(9)
        return generate(**inputs)

    model.generate = dying  # type: ignore[method-assign]
    generator = Generator(model, parts)
    (benchmark,) = find_benchmarks([yaml])
    rows = read_rows(benchmark, Path(yaml).parent)
    predict(
        benchmark, rows, generator, Path(out), identity={"weights": "w"}, limits=Limits(3),
        ranks=ranks_from_environment(), probe=4, data_root=Path(yaml).parent,
    )  # fmt: skip
    Path(out, f"calls-{os.environ.get('RANK', 0)}").write_text(str(len(model.calls)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # As every command does: without it a thread of gloo may abort the process while Python shuts down.
    leave_the_group()
