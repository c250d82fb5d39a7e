"""A real S3 server (moto's) behind latency and faults; run as its own process.

    python s3_server.py PLAN LATENCY_S

PLAN is a file of one fault a line, used up by the requests for shards: ok, cut (half of the body), or a status (503).
The port is the first line of standard output; every request is appended to PLAN.log as "FAULT METHOD PATH".
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

PLAN, LATENCY_S = Path(sys.argv[1]), float(sys.argv[2])
_store = DomainDispatcherApplication(create_backend_app)
_lock = threading.Lock()


def _fault(method: str, path: str) -> str:
    with _lock:
        faults = PLAN.read_text().split()
        fault = "ok"
        if faults and method == "GET" and path.endswith(".tar"):
            fault = faults.pop(0)
            PLAN.write_text("\n".join(faults))
        with Path(f"{PLAN}.log").open("a") as log:
            log.write(f"{fault} {method} {path}\n")
    return fault


def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    fault = _fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
    time.sleep(LATENCY_S)
    if fault.isdigit():
        start(f"{fault} Slow Down", [("Content-Length", "0")])
        return []
    body = b"".join(_store(environ, start))
    return [body[: len(body) // 2] if fault == "cut" else body]


server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
