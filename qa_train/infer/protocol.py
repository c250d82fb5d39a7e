"""What OpenAI's chat-completions requests and answers share: errors, and the JSON of an answer."""

from __future__ import annotations

import json
import uuid
from typing import Any

_MOST_SAID = 600


class ApiError(Exception):
    """A request that is answered with an error; the message has the finding and the remedy."""

    def __init__(self, status: int, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        # Many messages quote the client's input, which may be long.
        message = message if len(message) <= _MOST_SAID else f"{message[:_MOST_SAID]} ..."
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param = None if param is None else param[:80]

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients expect."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """Status 400: ``param`` names what is wrong in the request."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(400, message, code=code, param=param)


class Reply:
    """The JSON of the answers to one request, whole or in chunks."""

    def __init__(self, model: str, created: int) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": created, "model": model}

    def whole(self, answers: list[tuple[str, str]], usage: dict[str, int]) -> dict[str, Any]:
        """A ``chat.completion`` of answers with their finish reasons."""
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
            for index, (text, finish) in enumerate(answers)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, index: int, delta: dict[str, str], finish: str | None = None) -> str:
        """One server-sent event with the next piece of answer number ``index``."""
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return event({**self.head, "object": "chat.completion.chunk", "choices": [choice]})

    def usage(self, usage: dict[str, int]) -> str:
        """The event with the number of tokens, for clients that asked for it."""
        return event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage})


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
