"""Tell when the certificates of a server end, from their PEM files as they are now: for a metric."""

import math
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from extproc.given import files

_MAX_FILE_BYTES: Final = 4 << 20
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Tags of DER (X.690): the version's, and those of the two kinds of time.
_VERSION, _UTC_TIME, _LONG_TIME = 0xA0, 0x17, 0x18
_CENTURY: Final = 50  # of a year with two digits: from 50 on it is 19xx (RFC 5280, 4.1.2.5.1)


class CertificateFile:
    """Follow the certificates in a PEM file. Its last known end stays while the file can't be read."""

    def __init__(self, path: Path, which: Callable[[list[float]], float] = min) -> None:
        """Choose by `which` among the ends of several certificates: the first one of a chain ends the chain."""
        self._path = path
        self._which = which
        self._seen: tuple[int, int, int] | None = None
        self._at = math.nan

    def expires_at(self) -> float:
        """Return the end in seconds since the epoch; NaN if it is not known. Raise nothing."""
        try:
            found = self._path.stat()
            seen = found.st_mtime_ns, found.st_ino, found.st_size
            if seen != self._seen:
                self._at = self._which(ends_of(files.read(self._path, _MAX_FILE_BYTES)))
                self._seen = seen
        except (OSError, ValueError, files.GivenFileError):
            return self._at
        return self._at


def ends_of(pem: bytes) -> list[float]:
    """Return the end of each certificate in a PEM text, in seconds since the epoch.

    Raise `ValueError` if there is none, or one of them can't be read.
    """
    found = [_end_of(ssl.PEM_cert_to_DER_cert(text)) for text in _PEM.findall(pem.decode("ascii", "replace"))]
    if not found:
        raise ValueError("there is no certificate in it")
    return found


def certificate_gauge(registry: CollectorRegistry) -> Gauge:
    """Create the metric of the ends of certificates. Its label is the setting that names the file."""
    return Gauge(
        "tokenweir_certificate_expiry_timestamp_seconds",
        "End of the certificate in the file of a setting, in seconds since the epoch.",
        ("setting",),
        registry=registry,
    )


def _end_of(der: bytes) -> float:
    """Return the field `notAfter`: Certificate, tbsCertificate, and of that what comes behind the issuer."""
    try:
        ((_, certificate),) = _elements(der)
        _, to_be_signed = next(_elements(certificate))
        _, _, _, validity = (content for tag, content in _fields(to_be_signed) if tag != _VERSION)
        _, (tag, text) = _elements(validity)
    except (IndexError, StopIteration):
        raise ValueError("a certificate is cut off") from None
    digits = text.decode("ascii")
    if tag == _UTC_TIME:
        digits = f"{'19' if int(digits[:2]) >= _CENTURY else '20'}{digits}"
    elif tag != _LONG_TIME:
        raise ValueError("a certificate has no end")
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _fields(to_be_signed: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the version, if there is one, serial number, algorithm, issuer and validity."""
    left = 4
    for tag, content in _elements(to_be_signed):
        yield tag, content
        left -= tag != _VERSION
        if not left:
            return


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of DER. Raise `IndexError` if one is cut off."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise IndexError
        yield tag, data[at : at + length]
        at += length
