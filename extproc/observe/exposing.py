"""Answer Prometheus on an address."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server


def expose(address: str, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve `/metrics` on host:port, in a thread of its own. Return what ends it. Raise `OSError`."""
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]"), registry=registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
