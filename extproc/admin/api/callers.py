"""Tell who calls, by the token of a request."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from extproc.admin.access import Caller
from extproc.admin.api.issuer_keys import KeysError
from extproc.admin.api.jwts import JWTs, NoRoleError, TokenError
from extproc.admin.api.pace import Pace
from extproc.admin.api.problems import Problem
from extproc.admin.tokens import PREFIX, AdminTokens

# Where Envoy verifies JWTs in front, it takes every `Bearer` for one; a machine's token is then sent as `Token`.
_SCHEMES: Final = frozenset({"bearer", "token"})
_MAX_TOKEN_CHARS: Final = 8192
_KNOWN: Final = 1000
_KNOWN_S: Final = 900.0
_log = logging.getLogger(__name__)


class Callers:
    """Check tokens. Failures are counted by address.

    An address with too many failures gets 429 for tokens that were not good lately, and nothing is asked for them.
    Others behind the same address, such as a gateway's, are served on.
    """

    def __init__(self, tokens: AdminTokens, jwts: JWTs | None, failures: Pace, now_s: Callable[[], float]) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._failures = failures
        self._now_s = now_s
        self._good: OrderedDict[bytes, float] = OrderedDict()

    async def caller(self, authorization: str | None, address: str) -> Caller:
        """Return who calls. Raise `Problem`: 401, 403 for a token without a role, 429, 503."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() not in _SCHEMES or not token:
            raise self._refused(address, "send a token: Authorization: Bearer ...", count=False)
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        wait = self._failures.wait_s(address)
        if wait is not None and not self._was_good(digest):
            raise too_many(wait, "too many tokens from this address were refused")
        try:
            caller = await self._checked(token, address)
        except TokenError as error:
            raise self._refused(address, str(error)) from None
        except NoRoleError as error:
            raise Problem(HTTPStatus.FORBIDDEN, "no-role", str(error)) from None
        except KeysError as error:
            headers = {"retry-after": "60"}
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "issuer-unavailable", str(error), headers=headers
            ) from None
        self._remember(digest)
        return caller

    async def _checked(self, token: str, address: str) -> Caller:
        if len(token) > _MAX_TOKEN_CHARS:
            raise TokenError("the token is too long")
        if token.startswith(PREFIX):
            caller = await self._tokens.caller(token, address)
            if caller is None:
                raise TokenError("the token is unknown, expired or revoked")
            return caller
        if self._jwts is None:
            raise TokenError("the token is unknown")
        return await self._jwts.caller(token, address)

    def _refused(self, address: str, detail: str, *, count: bool = True) -> Problem:
        if count:
            self._failures.take(address)
            _log.warning("refused a token", extra={"address": address, "reason": detail})
        challenge = 'Bearer realm="tokenweir"' + (', error="invalid_token"' if count else "")
        headers = {"www-authenticate": challenge}
        return Problem(HTTPStatus.UNAUTHORIZED, "unauthenticated", detail, headers=headers)

    def _was_good(self, digest: bytes) -> bool:
        at = self._good.get(digest)
        return at is not None and self._now_s() - at < _KNOWN_S

    def _remember(self, digest: bytes) -> None:
        self._good[digest] = self._now_s()
        self._good.move_to_end(digest)
        while len(self._good) > _KNOWN:
            self._good.popitem(last=False)


def too_many(wait_s: int, detail: str) -> Problem:
    """Return the problem of a caller that asks too often."""
    headers = {"retry-after": str(wait_s)}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", detail, headers=headers)
