"""`qa-train serve`."""

from __future__ import annotations

from qa_train.commands.device import on_device
from qa_train.config import ServeConfig


def serve(options: ServeConfig) -> int:
    """Serve checkpoints through an OpenAI-compatible API, with a chat page."""
    options = on_device(options)
    from qa_train.infer import server

    return server.serve(options)
