"""Find free TCP ports on the loopback interface."""

import itertools
import random
import socket
from typing import Final

HOST = "127.0.0.1"

# Below the ports that Linux gives to outgoing connections: none of these takes a port before its server starts.
_FIRST: Final = 10_000
_PORTS: Final = 22_000
# Each process begins somewhere else and returns no port twice, so two of them hardly ever find the same one.
_candidates = itertools.count(random.randrange(_PORTS))


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` distinct ports that nobody listens on.

    Nothing reserves them: another process may take one before its server starts, which then ends with "address in
    use".

    Raises:
        OSError: the system has no free port left.
    """
    found: list[int] = []
    for candidate in itertools.islice(_candidates, _PORTS):
        if len(found) == count:
            break
        port = _FIRST + candidate % _PORTS
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
    if len(found) < count:
        raise OSError("no free port is left")
    return tuple(found)
