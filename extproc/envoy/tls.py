"""mTLS of the gRPC channel: certificates that may be rotated, and the names that a client must have one of."""

import logging
import ssl
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from extproc.given.files import GivenFileError, check

_MAX_FILE_BYTES: Final = 4 << 20
# Of TLS 1.2, which Envoy's clients speak unless they are told otherwise, the suites that HTTP/2 allows.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
# A refused name is logged once, and no more of them than these: whoever is refused chooses it.
_REFUSALS_TOLD: Final = 100
REFUSED: Final = "This client's certificate is not let in."

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


@dataclass(frozen=True, slots=True)
class Pem:
    """Hold the contents of the files, and an OpenSSL context that was made of them."""

    certificate: bytes
    key: bytes
    client_ca: bytes
    context: ssl.SSLContext


class Certificates:
    """Hold the files as they are now. Ask before each handshake; open connections keep theirs."""

    def __init__(self, options: TLSOptions) -> None:
        """Raise `TLSFilesError`."""
        self._options = options
        self._seen = self._state()
        self._told: object = None
        self.pem = self._read()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next handshake: HTTP/2, and no client without a certificate of the CA."""
        self.refresh()
        return self.pem.context

    def refresh(self) -> bool:
        """Read the files if they have changed. Tell whether they can be used and have. Raise nothing."""
        try:
            state = self._state()
            if state == self._seen:
                return False
            fresh = self._read()
            if self._state() != state:
                return False  # they are being replaced: the next connection looks again
        except TLSFilesError as error:
            if self._told != str(error):
                self._told = str(error)
                _log.error("the certificates can't be used, the old ones stay", extra={"error": str(error)})
            return False
        self._seen, self._told, self.pem = state, None, fresh
        _log.info("certificates replaced")
        return True

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

    def _read(self) -> Pem:
        """Read the files, and try them: gRPC takes anything, and fails each handshake."""
        options = self._options
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0  # each connection shows its certificate
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(options.certificate, options.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise TLSFilesError(
                f"{options.certificate}, {options.key}: no certificate with its key ({_why(error)})"
            ) from None
        try:
            context.load_verify_locations(options.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise TLSFilesError(f"{options.client_ca}: no certificate of a CA ({_why(error)})") from None
        certificate, key, client_ca = options.certificate, options.key, options.client_ca
        return Pem(certificate.read_bytes(), key.read_bytes(), client_ca.read_bytes(), context)


class Callers:
    """Who may call: peers whose certificate has one of the names."""

    def __init__(self, allowed_sans: Iterable[str]) -> None:
        names = frozenset(allowed_sans)
        self._uris = frozenset(name for name in names if "://" in name)
        self._hosts = names - self._uris
        self._refused: set[str] = set()

    def allows(self, uris: Collection[str], hosts: Collection[str]) -> bool:
        """Tell whether a peer with these names may call. A DNS name that looks like a URI is none."""
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


def _why(error: OSError) -> str:
    # Of OpenSSL's own, the reason alone; a file that is missing has words of its own.
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
