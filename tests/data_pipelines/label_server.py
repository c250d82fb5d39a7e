"""A model that hears, behind an OpenAI-compatible endpoint: a test chooses what it says to a clip."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import soundfile

# (milliseconds of the clip, prompt) -> (HTTP status, text, finish reason, or "refusal")
Says = Callable[[int, str], tuple[int, str, str]]


def says_length(milliseconds: int, prompt: str) -> tuple[int, str, str]:
    """As a model would that hears how long a clip is."""
    return 200, f"it lasts {milliseconds} milliseconds", "stop"


class LabelServer(ThreadingHTTPServer):
    """The endpoint; ``asked`` holds (milliseconds, prompt) of every request, ``most`` how many ran at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: Says = says_length
        self.asked: list[tuple[int, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sound, text = body["messages"][0]["content"]
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])))
        asked = round(1000 * len(wave) / rate), text["text"]
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        status, answer, finish = self.server.says(*asked)
        with self.server.lock:
            self.server.now -= 1
        message = {"refusal": answer, "content": None} if finish == "refusal" else {"content": answer}
        choice = {"message": message, "finish_reason": finish}
        raw = json.dumps({"choices": [choice]} if status == 200 else {"error": answer}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
