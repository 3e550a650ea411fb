"""Compress answers, so that each piece of a stream can be read as soon as it is sent."""

import zlib
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

_GZIP_FORMAT, _ZLIB_FORMAT = 31, 15  # zlib's names for them

# Encodings that need a package, and the package.
PACKAGES = {"br": "brotli", "zstd": "zstandard"}
ENCODINGS = ("gzip", "deflate", *PACKAGES)


class Encoder(Protocol):
    """Compress one body."""

    def feed(self, data: bytes) -> bytes:
        """Return compressed bytes from which everything fed so far can be read."""

    def finish(self) -> bytes:
        """Return the end of the body."""


def missing_package(encoding: str) -> str | None:
    """Return the package that an encoding needs, if it is not installed."""
    package = PACKAGES.get(encoding)
    return package if package is not None and find_spec(package) is None else None


def encoder(encoding: str) -> Encoder:
    """Return a new encoder.

    Raises:
        ImportError: its package is missing; see `missing_package`.
    """
    if encoding == "br":
        return _Brotli()
    if encoding == "zstd":
        return _Zstandard()
    return _Zlib(_GZIP_FORMAT if encoding == "gzip" else _ZLIB_FORMAT)


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._compressor = zlib.compressobj(wbits=wbits)

    def feed(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._compressor.flush()


class _Brotli:
    def __init__(self) -> None:
        # Servers use level 5 when they compress a stream.
        self._compressor: Any = import_module("brotli").Compressor(quality=5)

    def feed(self, data: bytes) -> bytes:
        fed: bytes = self._compressor.process(data) + self._compressor.flush()
        return fed

    def finish(self) -> bytes:
        end: bytes = self._compressor.finish()
        return end


class _Zstandard:
    def __init__(self) -> None:
        self._package: Any = import_module("zstandard")
        self._compressor: Any = self._package.ZstdCompressor().compressobj()

    def feed(self, data: bytes) -> bytes:
        fed: bytes = self._compressor.compress(data)
        flushed: bytes = self._compressor.flush(self._package.COMPRESSOBJ_FLUSH_BLOCK)
        return fed + flushed

    def finish(self) -> bytes:
        end: bytes = self._compressor.flush()
        return end
