"""Declare the store of the admin API's tokens for machines."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.ports.audit import AuditEntry


@dataclass(frozen=True, slots=True)
class AdminToken:
    """Describe a token without its text. `digest` is the SHA-256 of the text in hexadecimal.

    `role` and `tenants` (None: all) say what it may do. `used_at` is exact to the hour.
    """

    id: str
    name: str
    digest: str
    role: str
    tenants: tuple[str, ...] | None
    issued_at: datetime
    issued_by: str
    expires_at: datetime
    revoked_at: datetime | None = None
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Name the place of a token in the order of the list: by the instant of issue, then by id."""

    at: datetime
    id: str


class TokenStore(Protocol):
    """Store tokens (`admin_tokens`). A change and its audit entry are one transaction. Raises `StoreError`."""

    async def add(self, token: AdminToken, audit: AuditEntry) -> None:
        """Write a new token."""

    async def token(self, token_id: str) -> AdminToken | None:
        """Return one token, or None."""

    async def tokens(self, at_most: int, after: TokenPlace | None = None) -> list[AdminToken]:
        """Return tokens, those issued last first, those behind `after` only."""

    async def revoke(self, token_id: str, at: datetime, audit: AuditEntry) -> bool:
        """Mark a token as revoked. Return False, and write nothing, if there is none or it is revoked already."""

    async def note_use(self, token_id: str, at: datetime) -> None:
        """Note when a token was used last."""
