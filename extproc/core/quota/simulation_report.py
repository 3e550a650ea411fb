"""Report what proposed limits would have denied: callers, times and tokens."""

from dataclasses import dataclass, field
from datetime import datetime

from extproc.core.quota.ledger import Entry
from extproc.core.quota.settlement import Outcome
from extproc.core.request.addresses import ClientIP
from extproc.core.request.identity import ServiceAccount, TenantId


@dataclass(frozen=True, slots=True)
class Who:
    """Name a denied caller and the limit that denied it: the limit's kind, or `suspended`."""

    tenant: TenantId
    service_account: ServiceAccount
    client_ip: ClientIP
    limit: str


@dataclass(slots=True)
class Toll:
    """Sum the denials: requests, the tokens that they really used, and the times of the first and the last."""

    first: datetime
    last: datetime
    requests: int = 0
    tokens: int = 0

    def add(self, tokens: int, at: datetime) -> None:
        self.requests += 1
        self.tokens += tokens
        self.first, self.last = min(self.first, at), max(self.last, at)


@dataclass(slots=True)
class Report:
    """Hold the result of a replay.

    `requests` and `tokens` were really admitted. `newly_admitted` requests were really denied and would be
    admitted. The usage of such a request is unknown, so `newly_admitted_tokens` counts its estimate.
    """

    requests: int = 0
    tokens: int = 0
    denied: int = 0
    denied_tokens: int = 0
    newly_admitted: int = 0
    newly_admitted_tokens: int = 0
    tolls: dict[Who, Toll] = field(default_factory=dict)


def shadow_report(report: Report, entry: Entry) -> None:
    """Add the verdicts that shadow limits gave at admission, in the same form, without a replay.

    A request that several limits would have denied counts once in the sums, and once per limit in the rows.
    """
    if entry.outcome is Outcome.DENIED:
        return
    report.requests += 1
    report.tokens += entry.charge
    if entry.shadow:
        report.denied += 1
        report.denied_tokens += entry.charge
    for limit in entry.shadow:
        add_toll(report.tolls, entry, limit)


def add_toll(tolls: dict[Who, Toll], entry: Entry, limit: str) -> None:
    """Count one request that a limit denied."""
    who = entry.identity
    key = Who(who.tenant, who.service_account, who.client_ip, limit)
    at = entry.admitted_at
    tolls.setdefault(key, Toll(at, at)).add(entry.charge, at)
