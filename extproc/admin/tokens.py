"""Issue, list and revoke the admin API's tokens for machines, and tell who bears one."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from extproc.admin.access import Caller, Grant, Role
from extproc.admin.change import Change
from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.names import named
from extproc.admin.paging import Page, checked_page, cursor_of, key_of
from extproc.ports.audit import Actor, ActorKind, AuditEntry
from extproc.ports.tokens import AdminToken, TokenPlace, TokenStore

PREFIX: Final = "twa_"
LONGEST: Final = timedelta(days=366)
_RANDOM_BYTES: Final = 32
_ID_DIGITS: Final = 16
_FORM: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """Hold a new token, and its text, which is nowhere else; None: it was a dry run."""

    token: AdminToken
    text: str | None


class AdminTokens:
    """Run the use cases. Stateless. Raises `AdminError` and `StoreError`.

    A token has 256 random bits. Nobody can guess them or try them all, so one SHA-256 keeps the text secret; the
    slow hashes that passwords need would only slow each request down.
    """

    def __init__(self, store: TokenStore, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def issue(
        self, name: str, role: Role, tenants: Sequence[str] | None, lifetime: timedelta, change: Change
    ) -> Issued:
        """Issue a token. Its text is returned once, and can't be read again."""
        named("name", name)
        grant = Grant.checked(role, tenants)
        if not timedelta(minutes=1) <= lifetime <= LONGEST:
            raise AdminError(f"a token must expire after 1 minute to {LONGEST.days} days")
        text = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now = self._now()
        token = AdminToken(
            id=_id_of(text),
            name=name,
            digest=_digest(text),
            role=role.value,
            tenants=tuple(sorted(grant.tenants)) if grant.tenants is not None else None,
            issued_at=now,
            issued_by=change.actor.name,
            expires_at=now + lifetime,
        )
        if change.dry_run:
            return Issued(token, None)
        await self._store.add(token, self._audit("token.issue", token, change))
        return Issued(token, text)

    async def page(self, at_most: int, cursor: str | None = None) -> Page[AdminToken]:
        """Return tokens, those issued last first; expired and revoked ones too."""
        checked_page(at_most)
        after = key_of(cursor, TokenPlace) if cursor is not None else None
        found = await self._store.tokens(at_most + 1, after)
        rows = tuple(found[:at_most])
        more = len(found) > at_most
        return Page(rows, cursor_of(TokenPlace(rows[-1].issued_at, rows[-1].id)) if more else None)

    async def revoke(self, token_id: str, change: Change) -> AdminToken:
        """Revoke a token: the next request that bears it is refused. Return the token.

        Raise `NotFoundError` if there is none, or if it is revoked already.
        """
        token = await self._store.token(named("token's id", token_id))
        if token is None or token.revoked_at is not None:
            raise NotFoundError(f"there is no token '{token_id}' that is in force")
        if change.dry_run:
            return token
        if not await self._store.revoke(token.id, self._now(), self._audit("token.revoke", token, change)):
            raise NotFoundError(f"there is no token '{token_id}' that is in force")
        return token

    async def caller(self, text: str, origin: str) -> Caller | None:
        """Return who bears the token; None if it is unknown, expired or revoked."""
        if _FORM.fullmatch(text) is None:
            return None
        token = await self._store.token(_id_of(text))
        now = self._now()
        if token is None or not hmac.compare_digest(token.digest, _digest(text)):
            return None
        if token.revoked_at is not None or token.expires_at <= now:
            return None
        hour = now.replace(minute=0, second=0, microsecond=0)
        if token.used_at is None or hour - token.used_at >= _HOUR:
            await self._store.note_use(token.id, hour)
        tenants = frozenset(token.tenants) if token.tenants is not None else None
        return Caller(Actor(token.id, ActorKind.TOKEN, origin), Grant(Role(token.role), tenants))

    def _audit(self, action: str, token: AdminToken, change: Change) -> AuditEntry:
        """Describe the change, without the digest."""
        about = {
            "name": token.name,
            "role": token.role,
            "tenants": list(token.tenants) if token.tenants is not None else None,
            "expires_at": token.expires_at,
        }
        issued = action == "token.issue"
        return AuditEntry(
            id=secrets.token_hex(16),
            at=self._now(),
            actor=change.actor,
            action=action,
            tenant=None,
            subject=token.id,
            before=None if issued else about,
            after=about if issued else None,
            note=change.note,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _id_of(text: str) -> str:
    """Return the token's id: a part of its digest, which tells nobody the text."""
    return _digest(text)[:_ID_DIGITS]
