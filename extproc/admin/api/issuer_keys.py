"""Hold the public keys of a JWT issuer: a JWKS from a file or a URL, read again when it may have changed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import jwt
import msgspec

from extproc.given import files

MAX_KEYS: Final = 100
_MAX_BYTES: Final = 256 << 10
_FETCH_S: Final = 5.0
# A key that the issuer has withdrawn is no longer accepted after so long.
_MAX_AGE_S: Final = 600.0
# However many unknown keys are named by tokens, the issuer is asked no more often.
_PAUSE_S: Final = 60.0

_log = logging.getLogger(__name__)


class KeysError(Exception):
    """Report that the keys can't be read now. The message names the reason."""


class _Key(msgspec.Struct):
    kty: str
    kid: str | None = None
    use: str | None = None


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


@dataclass(slots=True)
class IssuerKeys:
    """Keep the keys by their id. `read` returns the JWKS as bytes, or raises `KeysError`."""

    read: Callable[[], Awaitable[bytes]]
    now_s: Callable[[], float]
    _keys: dict[str | None, jwt.PyJWK] = field(default_factory=dict)
    _asked_s: float | None = None
    _read_s: float | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key, or None if the issuer has no such key. Raise `KeysError` if none were ever read.

        An unknown id has the keys read again, at most once a minute. A token without an id is for the only key.
        """
        if self._stale() or self._find(key_id) is None:
            await self._renew(key_id)
        if self._read_s is None:
            raise KeysError("the keys of the issuer can't be read at the moment")
        return self._find(key_id)

    def _find(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _stale(self) -> bool:
        return self._read_s is None or self.now_s() - self._read_s >= _MAX_AGE_S

    async def _renew(self, key_id: str | None) -> None:
        async with self._turn:
            if not self._stale() and self._find(key_id) is not None:
                return  # another request has read them meanwhile
            now = self.now_s()
            if self._asked_s is not None and now - self._asked_s < _PAUSE_S:
                return
            self._asked_s = now
            try:
                self._keys = parsed_keys(await self.read())
            except KeysError as error:
                _log.error("the keys of the issuer can't be read: known ones stay", extra={"error": str(error)})
                return
            self._read_s = now


def parsed_keys(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the usable keys of a JWKS: asymmetric ones that sign. Raise `KeysError`."""
    try:
        listed = msgspec.json.decode(text, type=_KeySet).keys
    except (msgspec.MsgspecError, RecursionError):
        raise KeysError("no JWKS: a JSON object with 'keys' is expected") from None
    if len(listed) > MAX_KEYS:
        raise KeysError(f"a JWKS has at most {MAX_KEYS} keys")
    found: dict[str | None, jwt.PyJWK] = {}
    for each in listed:
        try:
            about = msgspec.json.decode(each, type=_Key)
            if about.kty == "oct" or about.use not in {None, "sig"}:
                continue  # whoever verifies with a symmetric key could also sign
            found[about.kid] = jwt.PyJWK(msgspec.json.decode(each))
        except (msgspec.MsgspecError, jwt.PyJWTError):
            continue  # a kind of key that is not supported here
    if not found:
        raise KeysError("the JWKS has no key that can be used")
    return found


def from_file(path: Path) -> Callable[[], Awaitable[bytes]]:
    """Read the JWKS of a file."""

    async def read() -> bytes:
        try:
            return await asyncio.to_thread(files.read, path, _MAX_BYTES)
        except files.GivenFileError as error:
            raise KeysError(f"{path}: {error}") from None

    return read


def from_url(url: str) -> Callable[[], Awaitable[bytes]]:
    """Fetch the JWKS of a URL, without redirects, at most 256 KiB, within 5 seconds."""

    async def read() -> bytes:
        try:
            async with asyncio.timeout(_FETCH_S), httpx.AsyncClient(timeout=_FETCH_S, trust_env=False) as client:
                return await _fetched(client, url)
        except (httpx.HTTPError, TimeoutError) as error:
            raise KeysError(f"{url}: {error or 'no answer in time'}") from None

    return read


async def _fetched(client: httpx.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url, headers={"accept": "application/json"}) as answer:
        if answer.status_code != httpx.codes.OK:
            raise KeysError(f"{url}: answered with status {answer.status_code}")
        text = bytearray()
        async for piece in answer.aiter_bytes():
            text += piece
            if len(text) > _MAX_BYTES:
                raise KeysError(f"{url}: more than {_MAX_BYTES} bytes")
        return bytes(text)
