"""A small HTTP server of a folder with byte ranges, and with faults on request; run as a process of its own.

    python http_server.py FOLDER PLAN

PLAN is a file of one fault a line, used up request by request: ok, stall, drip, cut, shifted, whole, or a status (503).
The requests are appended to PLAN.log as "FAULT RANGE". The port is the first line of standard output.
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, PLAN = Path(sys.argv[1]), Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        faults = PLAN.read_text().split()
        fault = faults.pop(0) if faults else "ok"
        PLAN.write_text("\n".join(faults))
        with Path(f"{PLAN}.log").open("a") as log:
            log.write(f"{fault} {self.headers['Range']}\n")
        path = FOLDER / self.path.lstrip("/")
        if fault.isdigit() or not path.is_file():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        raw = path.read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        if fault == "shifted":
            first, last = first + 1, last + 1
        body = raw[first : last + 1]
        self.send_response(200 if fault == "whole" else 206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
        self.end_headers()
        if fault == "stall":
            time.sleep(5)
        if fault == "drip":
            for byte in body[:50]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            return
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
