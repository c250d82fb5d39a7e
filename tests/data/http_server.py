"""A small HTTP server of a folder with byte ranges, kept connections, and faults on request; run as its own process.

    python http_server.py FOLDER PLAN [LATENCY_S]

PLAN is a file of one fault a line, used up request by request: ok, stall, drip (of the body), drip-head, cut, shifted,
whole, moved, or a status (503). Every request is appended to PLAN.log as "FAULT RANGE CONNECTION PATH". Each answer is
LATENCY_S late, whatever else is asked meanwhile. The port is the first line of standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from http import HTTPStatus
from pathlib import Path

FOLDER, PLAN = Path(sys.argv[1]), Path(sys.argv[2])
LATENCY_S = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
_numbers = itertools.count()


def next_fault() -> str:
    faults = PLAN.read_text().split()
    if not faults:
        return "ok"
    PLAN.write_text("\n".join(faults[1:]))
    return faults[0]


async def answer(head: str, number: int, out: asyncio.StreamWriter) -> bool:
    """Answer one request; whether the connection is kept."""
    place = head.split()[1].partition("?")[0]
    asked = next((line[6:].strip() for line in head.splitlines() if line.lower().startswith("range:")), "")
    fault = next_fault()
    with Path(f"{PLAN}.log").open("a") as log:
        log.write(f"{fault} {asked} {number} {place} {'with a token' if 'authorization:' in head.lower() else ''}\n")
    await asyncio.sleep(LATENCY_S)
    path = FOLDER / place.removeprefix("/moved").lstrip("/")
    if fault == "moved":
        port = out.get_extra_info("sockname")[1]
        out.write(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/moved{place}\r\n".encode())
        out.write(b"Content-Length: 0\r\n\r\n")
        return True
    if fault.isdigit() or not path.is_file():
        status = HTTPStatus(int(fault) if fault.isdigit() else 404)
        out.write(f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode())
        out.write(b"Content-Length: 2\r\n\r\nno")
        return True
    size = path.stat().st_size
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    if fault == "shifted":
        first, last = first + 1, last + 1
    if first >= size:
        out.write(f"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\n".encode())
        out.write(b"Content-Length: 0\r\n\r\n")
        return True
    last = min(last, size - 1)
    with path.open("rb") as file:
        file.seek(first)
        body = file.read(last + 1 - first)
    head = f"HTTP/1.1 {200 if fault == 'whole' else 206} OK\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
    if fault == "drip-head":
        await drip(head.encode(), out)
        return False
    out.write(head.encode())
    if fault == "stall":
        await asyncio.sleep(5)
    if fault == "drip":
        await drip(body[:50], out)
        return False
    out.write(body[: len(body) // 2] if fault == "cut" else body)
    return fault != "cut"


async def drip(raw: bytes, out: asyncio.StreamWriter) -> None:
    for byte in raw:
        out.write(bytes([byte]))
        await asyncio.sleep(0.1)


async def serve(source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
    number = next(_numbers)
    try:
        while await answer((await source.readuntil(b"\r\n\r\n")).decode("latin-1"), number, out):
            await out.drain()
        await out.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    out.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
