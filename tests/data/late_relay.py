"""A relay to a server of this machine whose answers are late; run as its own process.

    python late_relay.py PORT PLAN LATENCY_S

PORT is the server's. Requests pass at once; what comes back waits LATENCY_S, without holding up what comes behind it.
Every GET is appended to PLAN.log as http_server.py does it. The port is the first line of standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from typing import cast

PORT, PLAN, LATENCY_S = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
_numbers = itertools.count()


class Server(asyncio.Protocol):
    """The connection to the server, for one of a client."""

    def __init__(self, client: asyncio.Transport) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(LATENCY_S, self.client.write, data)

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.get_running_loop().call_later(LATENCY_S, self.client.close)


class Client(asyncio.Protocol):
    """A client's connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.number = next(_numbers)
        loop, client = asyncio.get_running_loop(), cast(asyncio.Transport, transport)
        self.server = loop.create_task(loop.create_connection(lambda: Server(client), "127.0.0.1", PORT))

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            lines = data.decode("latin-1").splitlines()
            asked = next((line[6:].strip() for line in lines if line.lower().startswith("range:")), "-")
            with Path(f"{PLAN}.log").open("a") as log:
                log.write(f"ok {asked} {self.number} {lines[0].split()[1].partition('?')[0]}\n")
        self.server.add_done_callback(lambda made: made.result()[0].write(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.add_done_callback(lambda made: made.result()[0].close())


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
