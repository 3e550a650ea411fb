"""Name the peer of a connection by its certificate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Peer:
    """Hold the alternative names of a verified certificate: its URIs and its DNS names."""

    uris: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


NOBODY: Final = Peer()
"""Stand for a peer that has shown no certificate."""


def peer_of(certificate: Mapping[str, Any] | None) -> Peer:
    """Read the names of a certificate in the form of `ssl.SSLSocket.getpeercert`; None is a peer without one."""
    if not certificate:
        return NOBODY
    names = certificate.get("subjectAltName", ())
    return Peer(
        tuple(value for kind, value in names if kind == "URI"),
        tuple(value for kind, value in names if kind == "DNS"),
    )
