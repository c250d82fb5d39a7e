"""Can processes of this machine, and of others, find each other? Only the name service is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from qa_train.doctor.finding import Finding, note, ok, problem

_SETTING = "in slurm/site.sh export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (see: ip -brief address)"


def examine() -> Iterator[Finding]:
    """The loopback that torchrun on one machine needs; then the name by which other machines would find this one."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            yield ok("loopback", "processes of this machine can connect")
    except OSError as error:
        yield problem(
            "loopback", f"127.0.0.1 cannot be used: {error}", "ip link set lo up; torchrun cannot work without"
        )
    yield name_of_this_machine(socket.gethostname())


def name_of_this_machine(name: str) -> Finding:
    """What the machine's own name resolves to: with several machines the others must reach it there."""
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError as error:
        return note(
            "network", f"its name {name} has no address ({error})", f"add it to DNS or /etc/hosts; or {_SETTING}"
        )
    reachable = [address for address in addresses if not address.startswith(("127.", "::1", "fe80:"))]
    if reachable:
        return ok("network", f"{name} is {', '.join(reachable)}; interfaces {interfaces()}")
    return note(
        "network",
        f"{name} is only {', '.join(addresses)}, where other machines cannot reach it; interfaces {interfaces()}",
        f"fine for one machine; for several: {_SETTING}",
    )


def interfaces() -> str:
    """The network interfaces' names."""
    return " ".join(name for _, name in socket.if_nameindex())
