"""`qa-train pairs`."""

from __future__ import annotations

from qa_train.commands.device import on_device
from qa_train.config import PairsConfig
from qa_train.utils import plugins


def pairs(options: PairsConfig) -> int:
    """Preference pairs from a checkpoint's own answers, as shards for `qa-train dpo`."""
    plugins.allow(options.plugins)
    options = on_device(options)
    from qa_train.preferences import from_answers

    return from_answers.pairs(options)
