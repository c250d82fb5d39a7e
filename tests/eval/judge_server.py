"""A judge that misbehaves: an OpenAI-compatible endpoint in a process of its own, with faults on demand.

    python judge_server.py PORT_FILE LOG_FILE

Answers "A B" from the digits after "rate:" in the prompt. A prompt that holds "fault:NAME" first fails in
that way, twice, and then is answered: 429, 500, timeout, malformed, empty, hangup; "fault:always-500" never
is; "fault:refusal" and "fault:nonsense" are answers of their own kind; "fault:filtered" is HTTP 400, "fault:cut" ends
by length. Every call is a line of the log.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAILS = 2
calls: Counter[str] = Counter()
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else content[-1]["text"]
        with lock:
            calls[prompt] += 1
            count = calls[prompt]
            keys = {k: body[k] for k in ("model", "temperature", "max_tokens")}
            with Path(sys.argv[2]).open("a") as log:
                log.write(json.dumps({"path": self.path, "auth": self.headers.get("Authorization"), **keys}) + "\n")
        fault = re.search(r"fault:([\w-]+)", prompt)
        self.answer(prompt, fault.group(1) if fault else "", count, content)

    def answer(self, prompt: str, fault: str, count: int, content: Any) -> None:
        if code := {"wrong-key": 401, "filtered": 400}.get(fault):
            self.reply(code, b'{"error": "no such key, or words that are filtered"}')
        elif fault == "always-500":
            self.reply(500, b"out of order")
        elif fault in ("429", "500") and count <= FAILS:
            self.reply(int(fault), b"slow down", {"Retry-After": "0"})
        elif fault == "timeout" and count <= FAILS:
            time.sleep(0.6)
            self.reply(200, b"{}")
        elif fault == "malformed" and count <= FAILS:
            self.reply(200, b'{"choices": [{"mess')
        elif fault == "empty" and count <= FAILS:
            self.reply(200, json.dumps({"choices": [{"message": {"content": None}}]}).encode())
        elif fault == "hangup" and count <= FAILS:
            self.close_connection = True
            self.connection.close()
        elif fault == "refusal":
            message = {"content": None, "refusal": "I cannot rate this."}
            self.reply(200, json.dumps({"choices": [{"message": message}]}).encode())
        else:
            found = re.search(r"rate:(\d+) (\d+)", prompt)
            text = "what a lovely answer" if fault == "nonsense" else " ".join(found.groups()) if found else "yes"
            if not isinstance(content, str):
                text = f"heard {sum(part['type'] == 'input_audio' for part in content)} clips"
            usage = {"prompt_tokens": 10, "completion_tokens": 2}
            choice = {"message": {"content": text}, "finish_reason": "length" if fault == "cut" else "stop"}
            self.reply(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    partial = Path(sys.argv[1] + ".partial")
    partial.write_text(str(server.server_address[1]))
    partial.replace(sys.argv[1])
    server.serve_forever()
