"""Declare what metering tells of buckets whose usage reached a threshold."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.quota.limits import Bucket


@dataclass(frozen=True, slots=True)
class Alert:
    """Report that `used` (0 or more, in the limit's unit) of a tenant's bucket reached `threshold` percent of its
    limit.

    `at` (an aware datetime) is the time of the check that found it.
    """

    tenant: str
    bucket: Bucket
    used: int
    threshold: int
    at: datetime


class AlertSink(Protocol):
    """Take alerts."""

    def put(self, alert: Alert) -> None:
        """Return at once; raise nothing."""
