"""`qa-train eval`."""

from __future__ import annotations

from qa_train.commands.device import on_device
from qa_train.config import EvalConfig
from qa_train.utils import plugins


def evaluate(options: EvalConfig) -> int:
    """Answer benchmarks, or a file of questions about audio, and score the answers.

      qa-train eval checkpoint=RUN data=FILE.jsonl out=DIR
      qa-train eval checkpoint=RUN benchmarks=[librispeech_clean] data_root=DIR \\
        out=DIR
      qa-train eval out=DIR step=score     score the answers in DIR again
      qa-train eval compare=[DIR,DIR]      item by item, with significance
    """
    plugins.allow(options.plugins)
    if options.checkpoint is not None and options.compare is None and options.step != "score":
        options = on_device(options)
    from qa_train.eval import suite

    return suite.evaluate(options)
