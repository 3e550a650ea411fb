"""Compare ledger, daily usage and counters of a tenant with the requests that the upstream saw."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from tests.system.waiting import until

from .books import Count
from .excuses import may_be_charged, may_be_lost, may_count_late

# What a dead replica left behind is over by then; see books.LEFT_BEHIND_S for the longest of it.
QUIET_S = 90.0
TELLS_WITHIN_S = 20.0
# Two looks that agree, so far apart, are the end of it.
_AGAIN_S = 1.0
_POLL_S = 0.2


@dataclass
class Account:
    """Hold the books of one tenant, when all is quiet."""

    caller: object
    limit: int
    mode: str
    upstream: int
    ledger: int
    daily: int
    counters: list[Count]
    most: int
    """Holds the highest number of used tokens at any moment; 0 if nobody looked.

    Right after a rebuild, used and held together may be more than the limit: what ended is held in full until its end
    is counted again. Nothing is admitted meanwhile.
    """
    lost: list[str]
    unserved: list[str]
    """List requests that were served and are not in the ledger, and charged ones that were not served."""
    excused: Counter[str]
    """Counts the requests of both kinds that are excused, by reason; the lists do not have them."""
    excused_tokens: int
    late_tokens: int
    """Counts what requests took that the counters learnt of late: others may have got the same tokens meanwhile."""
    double: list[str]
    wrong: list[str]

    def failures(self):
        """Yield a sentence for each deviation from the promises."""
        who = f"tenant of {self.limit:,} ({self.mode})"
        for what, ids in (
            ("served and not in the ledger", self.lost),
            ("charged and never served", self.unserved),
            ("in the ledger more than once", self.double),
            ("neither charged as generated nor as held", self.wrong),
        ):
            if ids:
                yield f"{who}: {len(ids)} {what}: {', '.join(ids[:5])}"
        if self.counters != [Count(self.ledger, 0)] * len(self.counters) or self.daily != self.ledger:
            yield f"{who}: ledger {self.ledger:,}, daily {self.daily:,}, counters {self.counters}"
        reached = [self.ledger, self.most, self.upstream - self.excused_tokens]
        most = max([*reached, *(count.used + count.held for count in self.counters if count)])
        if most - self.late_tokens > self.limit:
            yield (
                f"{who}: over by {most - self.limit:,}: admitted {self.upstream:,}, ledger {self.ledger:,}, "
                f"counters {self.counters}, at any moment {self.most:,} used, {self.late_tokens:,} counted late"
            )


async def settled(books, caller, traffic):
    """Wait until ledger, daily usage and counters agree and nothing served is missing, at most `QUIET_S`."""
    deadline, before = time.monotonic() + QUIET_S, None
    while time.monotonic() < deadline:
        entries, daily = await books.entries(caller), await books.daily(caller)
        counters = await _counters(books, caller)
        ledger = sum(entry["charge"] for entry in entries)
        agree = daily == ledger and counters == [Count(ledger, 0)] * len(counters)
        missing = traffic.served(caller).keys() - {entry["request_id"] for entry in entries}
        now = (ledger, len(entries), len(missing))
        if agree and (not missing or now == before):
            return
        before = now if agree else None
        await asyncio.sleep(_AGAIN_S if agree else _POLL_S)


async def account(books, caller, limited, traffic):
    """Return the books of a caller. `limited` is the amount of the caller's limit, and its mode."""
    (limit, mode), timeline = limited, traffic.timeline
    entries, served = await books.entries(caller), traffic.served(caller)
    known = {asked.id: asked for asked in traffic.asked if asked.caller == caller}
    seen = Counter(entry["request_id"] for entry in entries)
    lost, excuses_lost = _sort_out((a for a in served.values() if a.id not in seen), may_be_lost, timeline)
    unknown = [e["request_id"] for e in entries if e["charge"] and e["request_id"] not in served]
    late = [asked for asked in served.values() if may_count_late(asked, timeline)]
    unserved, excuses_charged = _sort_out((known[each] for each in unknown), may_be_charged, timeline)
    return Account(
        caller=caller,
        limit=limit,
        mode=mode,
        upstream=sum(asked.tokens for asked in served.values()),
        ledger=sum(entry["charge"] for entry in entries),
        daily=await books.daily(caller),
        counters=await _counters(books, caller),
        most=traffic.most[caller],
        lost=[told(asked, timeline) for asked in lost],
        unserved=[told(asked, timeline) for asked in unserved],
        excused=Counter(excuses_lost.values())
        + Counter(excuses_charged.values())
        + Counter(may_count_late(asked, timeline) for asked in late),
        excused_tokens=sum(served[each].tokens for each in excuses_lost),
        late_tokens=sum(asked.tokens for asked in late),
        double=[each for each, times in seen.items() if times > 1],
        wrong=[
            f"{e['request_id']} ({e['charge']} charged, {served[e['request_id']].tokens} generated, {e['state']})"
            for e in entries
            if e["request_id"] in served and not _fits(e, served[e["request_id"]])
        ],
    )


def told(asked, timeline):
    """Return the text of a request, with its moments in seconds after the first fault."""
    moments = [("sent", asked.sent_at), ("decided", asked.decided_at), ("ended", asked.ended_at)]
    when = ", ".join(f"{what} {at - timeline.begun:+.2f} s" for what, at in moments if at is not None)
    return f"{asked.id} ({asked.outcome} by replica {asked.replica}; {when})"


async def _counters(books, caller):
    """Return the counters as each replica tells them; None if it does not within `TELLS_WITHIN_S`."""

    async def told(door):
        try:
            rows = await until(lambda: door.quota(caller), "a replica tells", within_s=TELLS_WITHIN_S)
        except AssertionError:
            return None
        (row,) = [
            row for row in rows if row["window"] == "month"
        ]  # a limit for one model stands beside the default
        return Count(row["used"], row["held"])

    return list(await asyncio.gather(*map(told, books.doors)))


def _sort_out(requests, reason_for, timeline):
    """Return the requests that nothing excuses, and the reason of each other one by id."""
    reasons = {asked: reason_for(asked, timeline) for asked in requests}
    return (
        [asked for asked, reason in reasons.items() if reason is None],
        {asked.id: reason for asked, reason in reasons.items() if reason is not None},
    )


def _fits(entry, asked):
    """Tell whether a request is charged as generated, or as held: a killed or paused replica can't know more."""
    return entry["charge"] == asked.tokens or (entry["charge"] == entry["held"] >= asked.tokens)
