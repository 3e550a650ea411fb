"""The story of a request, wherever it is."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.request_story import Place, Reporter
from extproc.admin.requests import Requests
from extproc.core.quota.ledger import closed_entry, denied_entry
from extproc.core.quota.limits import Limit, Scope, Unit, Window
from extproc.core.quota.reservation import BucketState, Count, Denied
from extproc.core.quota.settlement import Outcome, Settlement, expiry, released
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing
from extproc.ports.requests import RequestFilter
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from tests.changing import replace
from tests.core.samples import NOW, reservation

LIMITS = (
    Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 12_000),
    Limit(Scope.TENANT, Window.MINUTE, 60, Unit.REQUESTS),
)
LATER = NOW + timedelta(seconds=3)
SETTLED = Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage", status=200)


class World:
    def __init__(self, **options):
        self.ledger = MemoryLedger()
        self.counters = MemoryCounters()
        self.requests = Requests(
            MemoryRequests(self.ledger), self.counters, self.counters, self.ledger, lambda: LATER, **options
        )


async def test_a_request_in_the_ledger_tells_its_limits_its_charge_and_who_reported_it():
    world = World()
    await world.ledger.append([closed_entry(reservation(limits=LIMITS, stream=True), SETTLED, LATER, price=7)])
    (story,) = await world.requests.show("q-1")
    assert await world.requests.show(" r-1 ") == (story,)
    assert (story.place, story.outcome, story.reported_by) == (Place.LEDGER, Outcome.SETTLED, Reporter.SERVER)
    assert (story.held, story.charged, story.usage.total, story.price) == (50, 26, 26, 7)
    assert (story.tenant, story.endpoint, story.model, story.stream) == (
        "zone-prod",
        "chat_completions",
        "tiny",
        True,
    )
    assert story.told == "The server reported its usage, and that was charged."
    of_tokens, of_requests = story.limits
    assert (of_tokens.scope, of_tokens.who, of_tokens.amount) == ("service_account", "console@zone-prod", 12_000)
    assert (of_tokens.charged, of_requests.charged, of_requests.amount) == (26, 1, 60)
    assert (of_requests.unit, of_requests.window) == ("requests", "minute")
    assert of_requests.resets_at - of_requests.window_started_at == timedelta(minutes=1)
    msgspec.json.encode(story)


async def test_a_denied_request_names_the_limit_that_said_no_with_its_counts():
    world = World()
    asked = reservation(limits=LIMITS)
    refusing = Denied(BucketState(asked.buckets[0], Count(11_990, 5)), 50)
    await world.ledger.append([denied_entry(asked, "service_account", refusing)])
    (story,) = await world.requests.show("q-1")
    (limit,) = story.limits
    assert (limit.refused, limit.amount, limit.used, limit.held, limit.needed) == (True, 12_000, 11_990, 5, 50)
    assert limit.charged is None
    assert (story.outcome, story.reported_by, story.usage) == (Outcome.DENIED, Reporter.NOBODY, None)
    assert story.told.startswith("A limit by service_account had no room for it")


@pytest.mark.parametrize(
    ("settlement", "reporter", "told"),
    [
        (expiry(reservation()), Reporter.HOLD, "the whole hold was charged"),
        (released("upstream_error"), Reporter.NOBODY, "answered with an error: nothing was charged"),
        (
            Settlement(Outcome.ESTIMATED, NO_USAGE, 9, "missing"),
            Reporter.ESTIMATE,
            "an estimate, because the server reported no usage",
        ),
        (Settlement(Outcome.ESTIMATED, NO_USAGE, 9, "new_reason"), Reporter.ESTIMATE, "because new_reason"),
    ],
)
async def test_the_story_says_how_it_ended(settlement, reporter, told):
    world = World()
    await world.ledger.append([closed_entry(reservation(), settlement, LATER)])
    (story,) = await world.requests.show("r-1")
    assert story.reported_by is reporter
    assert told in story.told


async def test_a_request_that_runs_is_shown_with_what_it_holds_and_one_that_waits_for_the_ledger_as_ended():
    world = World()
    running = reservation(limits=LIMITS)
    await world.counters.reserve(running)
    (story,) = await world.requests.show("q-1")
    assert (story.place, story.outcome, story.held, story.charged) == (Place.OPEN, None, 50, 0)
    assert [(limit.amount, limit.held) for limit in story.limits] == [(12_000, 50), (60, 1)]
    assert story.expires_at == NOW + timedelta(seconds=600)
    entry = closed_entry(running, SETTLED, LATER)
    await world.counters.close([Closing(running, Outcome.SETTLED, (26, 1), entry=entry)])
    (story,) = await world.requests.show("q-1")
    assert (story.place, story.outcome, story.charged) == (Place.WAITING, Outcome.SETTLED, 26)


async def test_an_unknown_id_is_explained():
    with pytest.raises(NotFoundError) as known:
        await World(singly_per_minute=3).requests.show("q-1")
    for part in ("counted, but not stored", "the first 3 of a minute", "from the start", "'q-1'"):
        assert part in str(known.value)
    with pytest.raises(NotFoundError, match="denied requests are not recorded here"):
        await World(denied_recorded=False).requests.show("q-1")


async def test_the_explanation_says_until_when_the_ledger_reaches_back():
    world = World()

    async def gone_before(_now):
        return datetime(2026, 1, 5, tzinfo=UTC)

    world.ledger.gone_before = gone_before
    with pytest.raises(NotFoundError, match="only since 2026-01-05T00:00:00Z"):
        await world.requests.show("q-1")
    assert await world.requests.gone_before(None) is not None
    assert await world.requests.gone_before(NOW) is None


async def test_without_redis_the_ledger_still_answers_and_says_what_was_not_looked_at():
    world = World()

    async def away(*_):
        raise StoreError("Redis can't be reached", transient=True)

    world.counters.waiting = away
    with pytest.raises(NotFoundError, match=r"could not be looked at \(Redis can't be reached"):
        await world.requests.show("q-1")
    await world.ledger.append([closed_entry(reservation(), SETTLED, LATER)])
    assert await world.requests.show("q-1")


async def test_a_list_has_a_bound_and_a_cursor_to_go_on_with():
    world = World()
    first = closed_entry(reservation(), SETTLED, LATER)
    made = [replace(first, id=f"r{n}", ended_at=LATER + timedelta(seconds=n)) for n in range(5)]
    await world.ledger.append(made)
    page = await world.requests.find(RequestFilter(), 2)
    assert [row.id for row in page.rows] == ["r4", "r3"]
    page = await world.requests.find(RequestFilter(), 2, page.cursor)
    assert [row.id for row in page.rows] == ["r2", "r1"]
    page = await world.requests.find(RequestFilter(), 2, page.cursor)
    assert ([row.id for row in page.rows], page.cursor) == (["r0"], None)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (RequestFilter(endpoint="nonsense"), "the endpoint must be one of"),
        (RequestFilter(since=LATER, until=NOW), "'since' must be before 'until'"),
        (RequestFilter(client_ip="nowhere"), "is no IP address"),
        (RequestFilter(tenant=""), "the tenant must be"),
    ],
)
async def test_a_filter_that_can_match_nothing_is_refused(wanted, message):
    with pytest.raises(AdminError, match=message):
        await World().requests.find(wanted)


async def test_a_cursor_of_something_else_and_a_bound_out_of_range_are_refused():
    with pytest.raises(AdminError, match="the cursor can't be read"):
        await World().requests.find(RequestFilter(), 2, "nonsense")
    with pytest.raises(AdminError, match="from 1 to 10000"):
        await World().requests.find(RequestFilter(), 0)
