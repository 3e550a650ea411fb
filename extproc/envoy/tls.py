"""mTLS of the gRPC channel: certificates that may be rotated, and the names that a client must have one of."""

import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from extproc.given.files import GivenFileError, check

_MAX_FILE_BYTES: Final = 4 << 20
# A refused name is logged once, and no more of them than these: whoever is refused chooses it.
_REFUSALS_TOLD: Final = 100

_log = logging.getLogger(__name__)


class TLSFilesError(Exception):
    """The files are no usable certificate, key and CA. The message names the file."""


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """Paths of PEM files, and the names that are let in: SPIFFE URIs, or DNS names."""

    certificate: Path
    key: Path
    client_ca: Path
    allowed_sans: frozenset[str]


class Certificates:
    """The files as they are now. gRPC asks before each handshake; open connections keep theirs."""

    def __init__(self, options: TLSOptions) -> None:
        """Raises `TLSFilesError`."""
        self._options = options
        self._seen = self._state()
        self._told: object = None
        self._initial = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a server that takes no client without a certificate of the CA."""
        return grpc.dynamic_ssl_server_credentials(self._initial, self._fetch, require_client_authentication=True)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed, None where nothing has. Called on a thread of gRPC's, where nothing may be raised."""
        try:
            state = self._state()
            if state == self._seen:
                return None
            fresh = self._read()
            if self._state() != state:
                return None  # they are being replaced: the next connection looks again
        except TLSFilesError as error:
            if self._told != str(error):
                self._told = str(error)
                _log.error("the certificates can't be used, the old ones stay", extra={"error": str(error)})
            return None
        self._seen, self._told = state, None
        _log.info("certificates replaced")
        return fresh

    def _state(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in (self._options.certificate, self._options.key, self._options.client_ca):
            try:
                check(path, _MAX_FILE_BYTES)
                stat = path.stat()
            except GivenFileError as error:
                raise TLSFilesError(f"{path}: {error}") from None
            except OSError as error:
                raise TLSFilesError(f"{path}: {error.strerror}") from None
            found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return tuple(found)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """GRPC takes anything and fails each handshake: so they are tried first, by OpenSSL."""
        options = self._options
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            trial.load_cert_chain(options.certificate, options.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise TLSFilesError(
                f"{options.certificate}, {options.key}: no certificate with its key ({_why(error)})"
            ) from None
        try:
            trial.load_verify_locations(options.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise TLSFilesError(f"{options.client_ca}: no certificate of a CA ({_why(error)})") from None
        pair = (options.key.read_bytes(), options.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], options.client_ca.read_bytes())


class Callers:
    """Who may call: peers whose certificate has one of the names."""

    def __init__(self, allowed_sans: Iterable[str]) -> None:
        names = frozenset(allowed_sans)
        self._uris = frozenset(name for name in names if "://" in name)
        self._hosts = names - self._uris
        self._refused: set[str] = set()

    def allows(self, context: "grpc.aio.ServicerContext[Any, Any]") -> bool:
        """Whether this call's peer may. A DNS name that looks like a URI is none."""
        peer = context.auth_context()
        uris, hosts = _texts(peer, "peer_uri"), _texts(peer, "peer_dns")
        if not (self._uris.isdisjoint(uris) and self._hosts.isdisjoint(hosts)):
            return True
        names = ", ".join([*uris, *hosts])[:256]
        if names not in self._refused and len(self._refused) < _REFUSALS_TOLD:
            self._refused.add(names)
            _log.warning(
                "refused a client: no name in its certificate is in server.tls.allowed_sans",
                extra={"names": names},
            )
        return False


def _texts(peer: Any, name: str) -> list[str]:
    return [value.decode("utf-8", "replace") for value in peer.get(name, ())]


def _why(error: OSError) -> str:
    # Of OpenSSL's own, the reason alone; a file that is missing has words of its own.
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
