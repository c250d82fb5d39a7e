"""`qa-train chat`."""

from __future__ import annotations

from qa_train.commands.device import on_device
from qa_train.config import ChatConfig


def chat(options: ChatConfig) -> int:
    """Talk to a checkpoint about audio files: one question, or a conversation when there is no text=."""
    options = on_device(options)
    from qa_train.infer import conversation

    return conversation.chat(options)
