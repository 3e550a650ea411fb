"""View the limits that bind an identity now, with the counts in their buckets."""

from datetime import datetime

from extproc.core.quota.binding import Policy, limits_of
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import NO_SUBJECT, Bucket, Limit, Subject, interval_at, matches
from extproc.core.quota.reservation import BucketState
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.request.identity import Identity
from extproc.ports.counters import Counters


async def insight_into(
    counters: Counters,
    policy: Policy,
    identity: Identity,
    now: datetime,
    subject: Subject = NO_SUBJECT,
    *,
    route: Route = NO_ROUTE,
) -> Insight:
    """Return the limits that bind an identity, with the counts in their buckets. Raise `StoreError`.

    The limits of the `route` that the question came by are included. A limit that counts by model or endpoint has
    no counts unless `subject` names one.
    """
    limits = [limit for limit in limits_of(policy, identity, now) if _concerns(limit, subject)]
    buckets: list[Bucket | None] = []
    for limit in limits:
        parts = limit.scope.parts(identity, subject)
        known = Bucket(limit, parts, interval_at(limit.window, now, policy.zone)) if parts is not None else None
        buckets.append(known)
    of_the_route = list(route.buckets(identity, now, policy.zone))
    limits += [bucket.limit for bucket in of_the_route]
    buckets += of_the_route
    asked = [bucket for bucket in buckets if bucket is not None]
    counts = iter(await counters.read(identity.tenant, asked) if asked else ())
    states = [BucketState(bucket, next(counts)) if bucket is not None else None for bucket in buckets]
    return Insight(identity, tuple(zip(limits, states, strict=True)), policy.suspension(identity))


def _concerns(limit: Limit, subject: Subject) -> bool:
    """Tell whether a limit may bind the subject: limits for other models or endpoints do not."""
    if limit.endpoints and subject.endpoint is not None and subject.endpoint not in limit.endpoints:
        return False
    return limit.model is None or subject.model is None or matches(limit.model, subject.model)
