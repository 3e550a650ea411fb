"""Store the admin API's tokens in `admin_tokens`: their SHA-256, never their text."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pymongo import DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession

from extproc.ports.audit import AuditEntry
from extproc.ports.base import StoreError
from extproc.ports.tokens import AdminToken, TokenPlace
from extproc.stores.mongo.audit import entry_document
from extproc.stores.mongo.client import AUDIT, TOKENS, WRITE, Mongo, Named, translated

_NEWEST = [("issued_at", DESCENDING), ("_id", DESCENDING)]


class MongoTokens:
    """Implement `ports.TokenStore`. Without transactions the audit entry is written first."""

    _tokens = Named(TOKENS)
    _entries = Named(AUDIT)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._transactions: bool | None = None

    async def create_indexes(self) -> None:
        """Create missing indexes. Raise `StoreError`."""
        async with translated():
            await self._tokens.create_index(_NEWEST)

    async def add(self, token: AdminToken, audit: AuditEntry) -> None:
        async def write(session: AsyncClientSession | None) -> bool:
            await self._entries.insert_one(entry_document(audit), session=session)
            await self._tokens.insert_one(_document(token), session=session)
            return True

        await self._together(write)

    async def token(self, token_id: str) -> AdminToken | None:
        async with translated():
            found = await self._tokens.find_one({"_id": {"$eq": token_id}})
        return _read(found) if found is not None else None

    async def tokens(self, at_most: int, after: TokenPlace | None = None) -> list[AdminToken]:
        behind: dict[str, Any] = {}
        if after is not None:
            behind = {"$or": [{"issued_at": {"$lt": after.at}}, {"issued_at": after.at, "_id": {"$lt": after.id}}]}
        async with translated():
            found = await self._tokens.find(behind).sort(_NEWEST).to_list(at_most)
        return [_read(document) for document in found]

    async def revoke(self, token_id: str, at: datetime, audit: AuditEntry) -> bool:
        in_force = {"_id": {"$eq": token_id}, "revoked_at": None}

        async def write(session: AsyncClientSession | None) -> bool:
            if await self._tokens.find_one(in_force, {"_id": 1}, session=session) is None:
                return False
            await self._entries.insert_one(entry_document(audit), session=session)
            made = await self._tokens.update_one(in_force, {"$set": {"revoked_at": at}}, session=session)
            return made.matched_count > 0

        return await self._together(write)

    async def note_use(self, token_id: str, at: datetime) -> None:
        async with translated():
            await self._tokens.update_one({"_id": {"$eq": token_id}}, {"$set": {"used_at": at}})

    async def _together(self, write: Callable[[AsyncClientSession | None], Awaitable[bool]]) -> bool:
        """Write a change and its audit entry in one transaction, where there are transactions."""
        if self._transactions is None:
            self._transactions = await self._mongo.has_transactions()
        async with translated():
            if not self._transactions:
                return await write(None)
            async with self._mongo.writing_session() as session:
                return await session.with_transaction(write, write_concern=WRITE)


def _document(token: AdminToken) -> dict[str, Any]:
    return {
        "_id": token.id,
        "name": token.name,
        "digest": token.digest,
        "role": token.role,
        "tenants": list(token.tenants) if token.tenants is not None else None,
        "issued_at": token.issued_at,
        "issued_by": token.issued_by,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
        "used_at": token.used_at,
    }


def _read(document: Mapping[str, Any]) -> AdminToken:
    """Return the token of a document. Raise `StoreError` if another program wrote it."""
    try:
        tenants = document["tenants"]
        return AdminToken(
            id=document["_id"],
            name=_text(document["name"]),
            digest=_text(document["digest"]),
            role=_text(document["role"]),
            tenants=tuple(tenants) if tenants is not None else None,
            issued_at=_instant(document["issued_at"]),
            issued_by=document["issued_by"],
            expires_at=_instant(document["expires_at"]),
            revoked_at=_instant(document["revoked_at"]) if document.get("revoked_at") is not None else None,
            used_at=_instant(document["used_at"]) if document.get("used_at") is not None else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        text = f"document {document['_id']!r} of the admin tokens is no token: {error!r}"
        raise StoreError(text, transient=False) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return value


def _instant(value: datetime) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError("a date is expected")
    return value.astimezone(UTC)
