"""Keep the admin API's tokens in memory. Lost when the process ends."""

from dataclasses import replace
from datetime import datetime

from extproc.ports.audit import AuditEntry, AuditLog
from extproc.ports.tokens import AdminToken, TokenPlace


class MemoryTokens:
    """Implement `ports.TokenStore`."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._tokens: dict[str, AdminToken] = {}

    async def add(self, token: AdminToken, audit: AuditEntry) -> None:
        self._tokens[token.id] = token
        await self._audit.append(audit)

    async def token(self, token_id: str) -> AdminToken | None:
        return self._tokens.get(token_id)

    async def tokens(self, at_most: int, after: TokenPlace | None = None) -> list[AdminToken]:
        found = sorted(self._tokens.values(), key=lambda each: (each.issued_at, each.id), reverse=True)
        return [each for each in found if after is None or (each.issued_at, each.id) < (after.at, after.id)][
            :at_most
        ]

    async def revoke(self, token_id: str, at: datetime, audit: AuditEntry) -> bool:
        token = self._tokens.get(token_id)
        if token is None or token.revoked_at is not None:
            return False
        self._tokens[token_id] = replace(token, revoked_at=at)
        await self._audit.append(audit)
        return True

    async def note_use(self, token_id: str, at: datetime) -> None:
        if token_id in self._tokens:
            self._tokens[token_id] = replace(self._tokens[token_id], used_at=at)
