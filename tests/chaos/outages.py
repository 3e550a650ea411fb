"""Measure the time without decisions once all stores are back, and how long refusals take."""

import itertools
from dataclasses import dataclass

# A control request counts as one of the same moment if it was in flight so shortly before.
_SAME_MOMENT_S = 0.1


@dataclass(frozen=True)
class Outage:
    """Hold the longest time in which a replica decided nothing for a tenant although it had all that it needs."""

    tenant: str
    replica: int
    lasted_s: float
    until: float


def outages(traffic, ended_at):
    """Return the longest outage of each pair of tenant and replica. The traffic was over at `ended_at`."""
    decided = {}
    for asked in traffic.asked:
        if asked.probe and asked.decided:
            decided.setdefault((asked.caller.tenant, asked.replica), []).append(asked.decided_at)
    pairs = itertools.product([caller.tenant for caller in traffic.probed], range(len(traffic.doors)))
    return [
        _longest(tenant, replica, decided.get((tenant, replica), []), traffic.timeline, ended_at)
        for tenant, replica in pairs
    ]


def _longest(tenant, replica, moments, timeline, ended_at):
    assert moments, f"replica {replica} never decided for {tenant}"
    gaps = itertools.pairwise([*sorted(moments), ended_at])
    return max(
        (
            Outage(tenant, replica, until - available(since, until, replica, timeline), until)
            for since, until in gaps
        ),
        key=lambda outage: outage.lasted_s,
    )


def available(since, until, replica, timeline):
    """Return the moment within a time from which on, up to its end, nothing that a replica needs was away.

    It needs to be alive, and not paused; it needs Redis. If counters were lost in that time, it needs MongoDB too.
    """
    needed = [*timeline.not_running(replica), *timeline.redis_away]
    lost = [moment for moment in timeline.new_epochs if since - _SAME_MOMENT_S <= moment <= until]
    if lost:
        needed += timeline.mongo_away
    ends = [min(window.end, until) for window in needed if window.begin <= until and window.end >= since]
    return max([since, *lost, *ends])


def slowest_refusal(traffic):
    """Return the duration of the refusal (503) that is the longest beyond a control request, and the time beyond.

    Both are in seconds; both are 0 if nothing was refused.
    """
    controls = {}
    for control in traffic.controls:
        controls.setdefault(control.replica, []).append(control)
    refused = [asked for asked in traffic.asked if asked.outcome == "unavailable"]
    beyond = [
        (asked.took_s, asked.took_s - _control_s(asked, controls.get(asked.replica, []))) for asked in refused
    ]
    return max(beyond, key=lambda both: both[1], default=(0.0, 0.0))


def _control_s(asked, controls):
    """Return the longest duration of the control requests in flight at the same moment; 0 if there is none."""
    begin, end = asked.sent_at - _SAME_MOMENT_S, asked.decided_at
    same = [c.took_s for c in controls if c.sent_at <= end and c.sent_at + c.took_s >= begin]
    return max(same, default=0.0)
