"""Declare the erasure of a person's name from records of windows that have ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class NameKind(StrEnum):
    """Say which name of a caller is erased."""

    SERVICE_ACCOUNT = "service_account"
    CLIENT_IP = "client_ip"


@dataclass(frozen=True, slots=True)
class ErasureJob:
    """Describe an erasure that has begun: `name` becomes `pseudonym` in records of dates before `before`.

    The store keeps it until it is done, so that a second try goes on with the same pseudonym.
    """

    id: str
    tenant: str
    kind: NameKind
    name: str
    pseudonym: str
    before: str


@dataclass(frozen=True, slots=True)
class ErasableDates:
    """List the dates whose records can be erased, and those that stay, each with the end of a window that runs."""

    ended: tuple[str, ...]
    running: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class ErasureSums:
    """Sum what an erasure must not change: entries and charged tokens of the ledger, the same of daily usage.

    `others` is the number of documents that name the person elsewhere: the audit log and mended daily usage.
    """

    entries: int
    charge: int
    price: int
    requests: int
    usage: int
    others: int = 0


class ErasureStore(Protocol):
    """Rename a caller in stored records. Every call raises `StoreError`, and may be repeated."""

    async def is_possible(self) -> bool:
        """Return whether daily usage is kept by tenant: before that, a row may count for several tenants."""

    async def unfinished(self, tenant: str, kind: NameKind, name: str) -> ErasureJob | None:
        """Return the job of this name that was begun and not finished."""

    async def begin(self, job: ErasureJob) -> None:
        """Keep the job."""

    async def finish(self, job: ErasureJob) -> None:
        """Forget the job, and with it the name."""

    async def dates(self, job: ErasureJob, now: datetime) -> ErasableDates:
        """Return the dates before `job.before` with records of the name, or of its pseudonym."""

    async def sums(self, job: ErasureJob, dates: Sequence[str]) -> ErasureSums:
        """Sum the records of these dates that have the name or its pseudonym; in `others` the name alone."""

    async def rename(self, job: ErasureJob, dates: Sequence[str]) -> int:
        """Rename in ledger, daily usage and the audit log. Return how many documents were changed.

        A row of daily usage whose new name has a row already is added to it, in one transaction.
        """
