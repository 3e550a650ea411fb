"""Listen on a TCP address."""

import socket


class ListenError(Exception):
    """Report an address that can't be listened on."""


def listen(address: str) -> socket.socket:
    """Return a socket that listens on `host:port`, IPv4 or IPv6; port 0 takes a free one. Raise `ListenError`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ListenError(f"can't listen on {address}: {error.strerror or error}") from error
    return listening


def port_of(listening: socket.socket) -> int:
    """Return the port of a socket that listens."""
    return int(listening.getsockname()[1])
