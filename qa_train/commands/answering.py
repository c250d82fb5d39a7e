"""The commands that answer with a checkpoint: `qa-train eval`, `chat`, `serve` and `pairs`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TypeVar

from qa_train.config import ChatConfig, EvalConfig, PairsConfig, ServeConfig
from qa_train.config.options import AnsweringOptions
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
        options = _on_device(options)
    from qa_train.eval import suite

    return suite.evaluate(options)


def chat(options: ChatConfig) -> int:
    """Talk to a checkpoint about audio files: one question, or a conversation when there is no text=."""
    options = _on_device(options)
    from qa_train.infer import conversation

    return conversation.chat(options)


def serve(options: ServeConfig) -> int:
    """Serve checkpoints through an OpenAI-compatible API, with a chat page."""
    options = _on_device(options)
    from qa_train.infer import server

    return server.serve(options)


def pairs(options: PairsConfig) -> int:
    """Preference pairs from a checkpoint's own answers, as shards for `qa-train dpo`."""
    plugins.allow(options.plugins)
    options = _on_device(options)
    from qa_train.preferences import from_answers

    return from_answers.pairs(options)


_Options = TypeVar("_Options", bound=AnsweringOptions)


def _on_device(options: _Options) -> _Options:
    """``options`` with the device that ``device=`` stands for, checked and shown before anything is loaded.

    Shown on stderr, because the answers of `qa-train chat` and the address of `qa-train serve` are read from stdout.
    ValueError for a device that cannot be used.
    """
    from qa_train.model.placement import choose_device, describe_device

    device = choose_device(options.device)
    if int(os.environ.get("RANK", 0)) == 0:
        chosen = " (device=auto)" if options.device == "auto" else ""
        print(f"answers are computed on {describe_device(device)}{chosen}", file=sys.stderr, flush=True)
    return replace(options, device=device)
