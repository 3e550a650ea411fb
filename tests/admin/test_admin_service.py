from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.admin.change import Change
from extproc.admin.service import Admin, AdminError, NotFoundError
from extproc.core.quota.binding import bind
from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import MAX_AMOUNT
from extproc.core.quota.policies import Defaults, limits_from
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.audit import Actor, ActorKind
from extproc.ports.counters import Closing
from extproc.ports.ledger import UsageFilter
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.tenants import MemoryTenants

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHANGE = Change(Actor("ann", ActorKind.OS_USER, "desk"))
BERLIN = ZoneInfo("Europe/Berlin")
ANY = UsageFilter()


class Stored(MemoryTenants):
    """Tenants whose documents were written by somebody else."""

    def __init__(self, *documents):
        super().__init__()
        self._documents = {document.get("tenant_id", ""): document for document in documents}


class Setup:
    def __init__(self, *documents):
        self.tenants = Stored(*documents)
        self.ledger = MemoryLedger()
        self.counters = MemoryCounters()
        defaults = Defaults(limits_from({"sa_limit": 1000}), BERLIN)
        self.defaults = defaults
        self.admin = Admin(
            self.tenants, self.ledger, self.counters, defaults, lambda: NOW, audit=self.tenants.audit
        )

    async def used(self, account, ip, date, charge, *, tenant="acme", outcome=Outcome.SETTLED):
        denied = outcome is Outcome.DENIED
        await self.ledger.append(
            [
                Entry(
                    id=f"{account}{ip}{date}{charge}{outcome}",
                    request_id="r",
                    identity=Identity(tenant, account, ip),
                    date=date,
                    endpoint=Endpoint.CHAT_COMPLETIONS,
                    model="m",
                    stream=False,
                    outcome=outcome,
                    reason="usage",
                    held=0 if denied else charge,
                    charge=0 if denied else charge,
                    usage=Usage(0, 0) if denied else Usage(charge - 1, 1, total=charge),
                    status=200,
                    admitted_at=NOW,
                    ended_at=NOW + timedelta(seconds=charge),
                )
            ]
        )


# Limits.


async def test_a_tenant_that_nobody_configured_is_not_found():
    admin = Setup().admin
    with pytest.raises(NotFoundError, match="tenant 'acme' has no limits of its own; the defaults bind it"):
        await admin.limits.detail("acme")
    with pytest.raises(NotFoundError, match="'acme'"):
        await admin.limits.delete("acme", CHANGE)


async def test_the_first_set_creates_and_the_next_updates():
    admin = Setup().admin
    done = await admin.limits.set("acme", {"sa_limit": 12000}, CHANGE)
    view, new = done.view, done.created
    assert (view.tenant, view.sa_limit, view.ip_limit, view.problem, new) == ("acme", 12000, None, None, True)
    done = await admin.limits.set("acme", {"ip_limit": 400}, CHANGE)
    assert (done.view.sa_limit, done.view.ip_limit, done.created) == (12000, 400, False)


async def test_a_limit_set_to_none_no_longer_binds_and_the_other_stays():
    admin = Setup({"tenant_id": "acme", "sa_limit": 1, "ip_limit": 2}).admin
    view = (await admin.limits.set("acme", {"sa_limit": None}, CHANGE)).view
    assert (view.sa_limit, view.ip_limit) == (None, 2)


async def test_the_last_limit_can_not_be_removed():
    setup = Setup({"tenant_id": "acme", "sa_limit": 1})
    with pytest.raises(
        AdminError,
        match="at least one limit on tokens that binds all requests must stay; to use the defaults, delete the tenant",
    ):
        await setup.admin.limits.set("acme", {"sa_limit": None}, CHANGE)
    assert (await setup.tenants.document("acme"))["sa_limit"] == 1


@pytest.mark.parametrize("amount", [0, MAX_AMOUNT])
async def test_the_bounds_of_an_amount_can_be_set(amount):
    view = (await Setup().admin.limits.set("acme", {"sa_limit": amount}, CHANGE)).view
    assert view.sa_limit == amount


@pytest.mark.parametrize("amount", [-1, MAX_AMOUNT + 1, 2**70])
async def test_an_amount_out_of_bounds_is_refused_and_nothing_is_written(amount):
    setup = Setup()
    with pytest.raises(AdminError, match="'sa_limit' must be a whole number of tokens from 0 to 1000000000000"):
        await setup.admin.limits.set("acme", {"sa_limit": amount}, CHANGE)
    assert await setup.tenants.documents() == []


@pytest.mark.parametrize(
    ("changes", "message"), [({}, "nothing to set"), ({"limit": 1}, "'limit' is no field that can be set")]
)
async def test_a_change_of_nothing_or_of_no_limit_is_refused(changes, message):
    setup = Setup()
    with pytest.raises(AdminError, match=message):
        await setup.admin.limits.set("acme", changes, CHANGE)
    assert await setup.tenants.documents() == []


@pytest.mark.parametrize("name", ["", " acme", "a\nb", "\x1b[31m", "a" * 257, "\udcff", "a\u202eb"])
async def test_a_name_that_can_not_be_a_tenant_is_refused_everywhere(name):
    admin = Setup().admin
    for use in (
        admin.limits.detail(name),
        admin.limits.set(name, {"sa_limit": 1}, CHANGE),
        admin.limits.delete(name, CHANGE),
        admin.explain(name, "sa", "unknown"),
        admin.explain("acme", name, "unknown"),
        admin.daily(UsageFilter(tenant=name)),
    ):
        with pytest.raises(AdminError, match="must be a printable name of 1 to 256 characters"):
            await use


async def test_tenants_are_listed_by_name_those_with_bad_documents_too():
    setup = Setup({"tenant_id": "b", "sa_limit": 1.0}, {"tenant_id": "a", "sa_limit": -1}, {"sa_limit": 3})
    views = (await setup.admin.limits.views()).rows
    assert [(v.tenant, v.sa_limit, v.problem is None) for v in views] == [
        ("", 3, False),
        ("a", -1, False),
        ("b", 1, True),
    ]
    assert "'sa_limit' must be a whole number" in views[1].problem


class Int64(int):
    """As the MongoDB driver's own number types: an int, but no plain one."""


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (Int64(5_000_000_000), 5_000_000_000),
        (400.0, 400),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        ("12", "12"),
        (None, None),
    ],
)
async def test_a_stored_amount_is_shown_as_a_plain_number_or_as_the_text_of_what_it_is(stored, shown):
    setup = Setup({"tenant_id": "acme", "sa_limit": stored, "ip_limit": 1})
    (view,) = (await setup.admin.limits.views()).rows
    assert view.sa_limit == shown
    assert type(view.sa_limit) is type(shown)


@pytest.mark.parametrize("stored", [-1, 1.5, "12", True, 2**62])
async def test_setting_one_limit_beside_a_stored_one_that_is_none_asks_for_both(stored):
    # Dropping it would leave the service account unlimited; keeping it, the tenant on the defaults.
    setup = Setup({"tenant_id": "acme", "sa_limit": stored})
    with pytest.raises(AdminError, match=r"the stored 'sa_limit' can't be used .*: set it too"):
        await setup.admin.limits.set("acme", {"ip_limit": 5}, CHANGE)
    view = (await setup.admin.limits.set("acme", {"ip_limit": 5, "sa_limit": 7}, CHANGE)).view
    assert (view.sa_limit, view.ip_limit, view.problem) == (7, 5, None)


async def test_a_tenant_without_a_time_zone_is_shown_with_the_default_one():
    setup = Setup({"tenant_id": "a", "sa_limit": 1}, {"tenant_id": "b", "sa_limit": 1, "timezone": "Asia/Tokyo"})
    assert [view.timezone for view in (await setup.admin.limits.views()).rows] == ["Europe/Berlin", "Asia/Tokyo"]


async def test_a_deleted_tenant_is_gone():
    setup = Setup({"tenant_id": "acme", "sa_limit": 1})
    await setup.admin.limits.delete("acme", CHANGE)
    assert (await setup.admin.limits.views()).rows == ()


# Usage.


async def a_few_days():
    setup = Setup()
    await setup.used("sa1", "10.0.0.1", "2026-02-27", 10)
    await setup.used("sa1", "10.0.0.2", "2026-02-28", 20)
    await setup.used("sa2", "10.0.0.1", "2026-03-01", 25, tenant="other")
    await setup.used("sa2", "10.0.0.1", "2026-03-01", 1, tenant="other", outcome=Outcome.DENIED)
    return setup.admin


@pytest.mark.parametrize(
    ("wanted", "usages"),
    [
        (ANY, [25, 20, 10]),
        (UsageFilter(tenant="acme"), [20, 10]),
        (UsageFilter(service_account="sa2"), [25]),
        (UsageFilter(client_ip="10.0.0.1"), [25, 10]),
        (UsageFilter(client_ip="::ffff:10.0.0.2"), [20]),
        (UsageFilter(since="2026-02-28"), [25, 20]),
        (UsageFilter(until="2026-02-28"), [20, 10]),
        (UsageFilter(since="20260228", until="2026-W09-6"), [20]),
        (UsageFilter(tenant="nobody"), []),
    ],
)
async def test_daily_usage_is_what_the_filter_says_newest_first(wanted, usages):
    admin = await a_few_days()
    assert [day.usage for day in await admin.daily(wanted)] == usages


@pytest.mark.parametrize("date", ["2026-13-01", "2026-02-30", "yesterday", "", "2026", "\x1b[31m"])
async def test_a_date_that_is_none_is_refused_and_what_was_given_is_written_out(date):
    with pytest.raises(AdminError) as raised:
        await Setup().admin.daily(UsageFilter(since=date))
    assert str(raised.value) == f"'since' must be a date such as 2026-01-31, not {date!r}"
    with pytest.raises(AdminError, match="'until' must be a date"):
        await Setup().admin.daily(UsageFilter(until=date))


async def test_dates_the_wrong_way_round_are_refused():
    with pytest.raises(AdminError, match=r"'since' \(2026-03-02\) must not be after 'until' \(2026-03-01\)"):
        await Setup().admin.daily(UsageFilter(since="2026-03-02", until="2026-03-01"))


@pytest.mark.parametrize("ip", ["1.2.3", "localhost", "", "1.2.3.4.5", "10.0.0.0/8"])
async def test_an_address_that_is_none_is_refused(ip):
    admin = Setup().admin
    for use in (admin.daily(UsageFilter(client_ip=ip)), admin.explain("acme", "sa", ip)):
        with pytest.raises(AdminError, match="is no IP address"):
            await use


# Explain.


def a_reservation(setup, identity, cost):
    policy = setup.defaults.policy(identity.tenant)
    buckets = bind(policy, identity, NOW)
    return Reservation(
        f"r{cost}", "q", identity, Endpoint.CHAT_COMPLETIONS, "m", False, Cost(cost, 0), buckets, NOW, "d", 1e12
    )


async def test_explain_tells_used_held_and_remaining_of_each_limit_that_binds():
    setup = Setup()
    identity = Identity("acme", "sa", "10.0.0.1")
    first, second = a_reservation(setup, identity, 100), a_reservation(setup, identity, 30)
    await setup.counters.reserve(first)
    await setup.counters.reserve(second)
    await setup.counters.close([Closing(first, Outcome.SETTLED, (60,))])
    found = await setup.admin.explain("acme", "sa", "10.0.0.1")
    (state,) = found.states
    assert (found.known, found.problem, found.identity) == (False, None, identity)
    assert (state.count.used, state.count.held, state.remaining) == (60, 30, 910)
    assert datetime.fromtimestamp(state.bucket.interval.end, BERLIN) == datetime(2026, 3, 2, tzinfo=BERLIN)


async def test_explain_shows_a_tenants_own_limits():
    setup = Setup()
    await setup.tenants.update("acme", {"sa_limit": 12, "ip_limit": 4})
    found = await setup.admin.explain("acme", "sa", "10.0.0.1")
    assert found.known
    assert [(s.bucket.limit.scope.value, s.bucket.limit.amount) for s in found.states] == [
        ("service_account", 12),
        ("service_account+client_ip", 4),
    ]


async def test_explain_names_the_stored_fields_that_can_not_be_used_and_shows_their_defaults():
    found = await Setup({"tenant_id": "acme", "sa_limit": -1}).admin.explain("acme", "sa", "unknown")
    assert found.known
    assert found.problem.startswith("'sa_limit' must be")
    assert [state.bucket.limit.amount for state in found.states] == [1000]
