"""Take an address: sockets that listen, on which nothing is accepted yet."""

import socket
from typing import Final

_BACKLOG: Final = 512


def listen_on(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host, all on one port; port 0 is any free one. Raise `OSError`.

    The host may be in brackets. `[::]` and `*` are all addresses of this machine, of IPv4 too.
    """
    name = host.strip("[]")
    found = socket.getaddrinfo(
        None if name == "*" else name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    every = {info[4][0] for info in found} & {"::", "*"}
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, _, _, _, address in found:
        if family not in {socket.AF_INET, socket.AF_INET6} or (every and family == socket.AF_INET):
            continue
        try:
            sockets.append(_listening(family, (address[0], port, *address[2:]), both=bool(every)))
        except OSError as error:
            problem = error
            continue
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise problem or OSError("there is no such address")
    return sockets


def _listening(family: int, address: tuple[object, ...], *, both: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.setblocking(False)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def listen_at(path: str) -> socket.socket:
    """Listen on a Unix socket. Raise `OSError`."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.bind(path)
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made
