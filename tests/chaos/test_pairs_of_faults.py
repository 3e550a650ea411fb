"""R11: two or three faults at a distance of seconds: nothing lost, nothing charged unserved, service soon back."""

import asyncio
import statistics
import time
from collections import Counter

import pytest

from tests.system.waiting import until

from .accounts import account, settled
from .marks import CHAOS
from .outages import outages, slowest_refusal
from .pairs import begin_anew, carry_out, cases
from .sizes import FULL, SLACK, seed, size
from .timeline import StoreWatch, Timeline
from .traffic import COST, Traffic

pytestmark = CHAOS

AGAIN_WITHIN_S = 2.0
REFUSED_WITHIN_S = 0.1
# A process may wait for its turn on a processor while the control request has one.
_TURN_S = 0.02
UNREACHED = 10**9
# Each is reached in the middle of a run.
REACHED = size("PAIR_LIMIT", full=40, short=10) * COST
# The counters of the last one are read all the time.
LIMITS = [(UNREACHED, "reserve"), (UNREACHED, "strict"), (REACHED, "reserve"), (REACHED, "strict")]
# Less than any request needs.
PROBED = [(1, "reserve"), (1, "reserve"), (1, "strict")]
BEFORE_S = 1.0
AFTER_S = size("PAIR_AFTER_S", full=3.0, short=1.0)
# If service does not come back in this time, the run goes on, and the outage is at least this long.
LONGEST_S = 30.0


def _of_each_plant():
    drawn = sorted(cases(), key=lambda case: (case.plant, case.number))
    return [pytest.param(case, case.plant, id=f"{case.name}-{case.plant}") for case in drawn]


@pytest.mark.parametrize(("case", "plant"), _of_each_plant(), indirect=["plant"], scope="session")
async def test_books_are_exact_and_service_is_back_after(case, plant, rng, figure):
    callers, traffic = await _begin(plant, case, rng)
    over_at = await _carry_out_under(traffic, plant, case)
    await asyncio.gather(*(settled(plant.books, caller, traffic) for caller in callers))
    limited = zip(callers, (*LIMITS, *PROBED), strict=True)
    accounts = [await account(plant.books, caller, limit, traffic) for caller, limit in limited]
    again = outages(traffic, over_at)
    refusal = slowest_refusal(traffic)
    median_s, worst = statistics.median(o.lasted_s for o in again), max(again, key=lambda o: o.lasted_s)
    failures = [failure for each in accounts for failure in each.failures()]
    if FULL:
        failures += _too_slow(worst, refusal)
    figure("R11", _line(case, traffic, accounts, (median_s, worst), refusal))
    figure.served_again(median_s, worst.lasted_s)
    assert not failures, "\n".join([f"{case}; again by {_repeated(case)}", *failures])


async def _begin(plant, case, rng):
    """Begin with an empty Redis. Return tenants that every replica serves, and their traffic: it is not started."""
    await begin_anew(plant, case)
    # No replica remembers that a limit for one model is used up: each denial comes from Redis.
    clients, probed = await plant.tenants(*LIMITS), await plant.tenants(*PROBED, model="m")
    callers = [*clients, *probed]
    await asyncio.gather(*(plant.serving(caller) for caller in callers))
    prompt = await plant.prompt_cost(clients[0])
    return callers, Traffic(plant.doors, rng, prompt, clients, probed, Timeline(), watched=clients[-1:])


async def _carry_out_under(traffic, plant, case):
    """Carry out all faults under traffic. Return the moment at which the traffic was over."""
    watch = StoreWatch(plant, traffic.timeline)
    async with asyncio.TaskGroup() as all_of_it:
        all_of_it.create_task(watch.run())
        asking = all_of_it.create_task(traffic.run())
        await _all_decide(traffic, time.monotonic())
        await asyncio.sleep(BEFORE_S)
        await carry_out(plant, case, traffic.timeline)
        await _all_decide(traffic, time.monotonic())
        await asyncio.sleep(AFTER_S)
        over_at = time.monotonic()
        traffic.over = True
        await asking
        watch.over = True
    return over_at


async def _all_decide(traffic, since):
    """Wait until each replica has decided for each tenant that is probed, at most `LONGEST_S`."""
    waiting = {(number, caller) for number in range(len(traffic.doors)) for caller in traffic.probed}

    def none_waits():
        waiting.difference_update([each for each in waiting if traffic.decides(*each, since)])
        return not waiting or time.monotonic() > since + LONGEST_S

    await until(none_waits, "all decide", poll_s=0.05)


def _too_slow(worst, refusal):
    if worst.lasted_s > AGAIN_WITHIN_S * SLACK:
        yield f"replica {worst.replica} served again {worst.lasted_s:.2f} s after the last needed store"
    if refusal[1] > REFUSED_WITHIN_S * SLACK + _TURN_S:
        yield f"a 503 took {refusal[0] * 1000:.0f} ms, {refusal[1] * 1000:.0f} ms beyond a control request"


def _repeated(case):
    """Return the command that carries out this case again. The two forms draw different cases."""
    only = f"'pairs_of_faults and {case.name}-'"
    return f"SEED={seed()} " + (f"make chaos ONLY={only}" if FULL else f"pytest tests/chaos -k {only}")


def _line(case, traffic, accounts, again, refusal):
    median_s, worst = again
    outcomes = Counter(asked.outcome for asked in traffic.asked)
    excused = sum((each.excused for each in accounts), Counter())
    counts = {what: sum(len(getattr(each, what)) for each in accounts) for what in ("lost", "unserved", "double")}
    strict = [f"{each.ledger:,} of {each.limit:,}" for each in accounts if each.mode == "strict"]
    return (
        f"{case.name}: {case}: {len(traffic.asked):,} requests {dict(outcomes)}; {counts['lost']} lost, "
        f"{counts['unserved']} charged unserved, {counts['double']} double, excused {dict(excused) or 'none'}; "
        f"strict {' and '.join(strict)}; serving again {median_s:.2f} s (median), {worst.lasted_s:.2f} s "
        f"(worst: replica {worst.replica}); slowest 503: {refusal[0] * 1000:.0f} ms, {refusal[1] * 1000:.0f} ms beyond a "
        "control request"
    )
