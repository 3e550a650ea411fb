"""Make entries as a processor makes them: callers with names of a usual length, and 2 or 10 limits."""

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Entry, closed_entry
from extproc.core.quota.limits import Bucket, Limit, Scope, Subject, Unit, Window, interval_at
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount, TenantId

_UTC: Final = ZoneInfo("UTC")
_SUBJECT: Final = Subject("llama-3.3-70b-instruct", Endpoint.CHAT_COMPLETIONS)
_SOME: Final = (Scope.SERVICE_ACCOUNT, Scope.SERVICE_ACCOUNT_IP)
_MANY: Final = (
    *((scope, Window.DAY, Unit.TOKENS) for scope in _SOME),
    *((scope, Window.MINUTE, Unit.REQUESTS) for scope in _SOME),
    *((Scope.TENANT, window, Unit.TOKENS) for window in (Window.HOUR, Window.WEEK, Window.MONTH)),
    *((Scope.SERVICE_ACCOUNT, window, Unit.TOKENS) for window in (Window.HOUR, Window.WEEK, Window.MONTH)),
)


def limits(count: int) -> tuple[Limit, ...]:
    """Return 2 or 10 limits: the first ones are per day, for service account and client IP."""
    return tuple(Limit(scope, window, 10**9, unit) for scope, window, unit in _MANY[:count])


def reservation(bound_by: tuple[Limit, ...], caller: int) -> Reservation:
    """Return a new reservation of one of many callers. A hundred callers share a tenant."""
    now = datetime.now(UTC)
    who = Identity(
        TenantId(f"tenant{caller // 100:04}"),
        ServiceAccount(f"console@zone-{caller // 4:05}.example.com"),
        ClientIP(f"10.{caller >> 16 & 255}.{caller >> 8 & 255}.{caller & 255}"),
    )
    return Reservation(
        id=ReservationId(secrets.token_hex(16)),
        request_id=str(uuid.uuid4()),
        identity=who,
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model="llama-3.3-70b-instruct",
        stream=True,
        cost=Cost(812, 512),
        buckets=tuple(Bucket(x, x.scope.parts(who, _SUBJECT), interval_at(x.window, now, _UTC)) for x in bound_by),
        admitted_at=now,
        date=f"{now:%Y-%m-%d}",
        deadline=now.timestamp() + 900,
        replica="tokenweir-5d8f7c9b6d-x2x7p-0a1b2c3d",
    )


def entry(bound_by: tuple[Limit, ...], caller: int) -> Entry:
    """Return the entry of a request that was settled on its usage."""
    settlement = Settlement(Outcome.SETTLED, Usage(803, 391, total=1194), 1194, "usage", status=200)
    held = reservation(bound_by, caller)
    return closed_entry(held, settlement, held.admitted_at + timedelta(seconds=4))
