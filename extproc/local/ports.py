"""Find free TCP ports on the loopback interface."""

import contextlib
import socket

HOST = "127.0.0.1"


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` distinct ports that nobody listens on.

    Nothing reserves them: another process may take one before its server starts, which then ends with "address in
    use". All are held until the last one is found, so that none is returned twice.

    Raises:
        OSError: the system has no free port left.
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return tuple(each.getsockname()[1] for each in sockets)
