"""Declare what metering tells of buckets: their usage reached a threshold, or they deny requests."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from extproc.core.quota.limits import Bucket


class AlertReason(StrEnum):
    """List the reasons of alerts."""

    THRESHOLD = "threshold"  # the usage reached a part of its limit
    DENIED = "denied"  # a request did not fit, though the limit is not used up
    LOCKED_OUT = "locked_out"  # the limit is used up: nothing is admitted until it resets
    SUSPENDED = "suspended"  # somebody suspended the caller, who goes on asking


@dataclass(frozen=True, slots=True)
class Alert:
    """Report that `used` (0 or more, in the limit's unit) of a tenant's bucket reached `threshold` percent of its
    limit; or, with another `reason`, that a request was denied, with what was `held` and what it `needed`.

    `at` (an aware datetime) is the time of the check that found it. `told` is the reason of a suspension; its
    bucket is the account's day, or the tenant's, with a limit of 0.
    """

    tenant: str
    bucket: Bucket
    used: int
    threshold: int
    at: datetime
    reason: AlertReason = AlertReason.THRESHOLD
    held: int = 0
    needed: int = 0
    told: str = ""


class AlertSink(Protocol):
    """Take alerts."""

    def put(self, alert: Alert) -> None:
        """Return at once; raise nothing."""


class AlertNotes(Protocol):
    """Share among replicas which alerts on denials were told."""

    async def is_first(self, alert: Alert) -> bool:
        """Note the alert. Return whether no replica did before, in its window. Raise `StoreError`."""
