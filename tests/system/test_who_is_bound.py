"""Which limits bind whom, as an operator's document says it; each through the gateway, and effective at once."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import openai
import pytest

from .callers import Caller, chat
from .marks import SYSTEM
from .test_denied import error_of
from .upstreams import ANSWER
from .waiting import until

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]


async def test_a_suspended_tenant_reads_why(scripted_caller, upstream):
    await scripted_caller.bind(sa_limit=9000, suspended="the contract ended; ask Ada")
    error = error_of(await scripted_caller.post(), 403)
    assert error["message"] == "Access is suspended: the contract ended; ask Ada."
    assert (error["type"], error["code"]) == ("permission_error", "suspended")
    async with scripted_caller.openai() as client:
        with pytest.raises(openai.PermissionDeniedError, match="ask Ada"):
            await client.chat.completions.create(**chat())
    assert upstream.received == []
    entries = await scripted_caller.entries(2)
    assert {(entry["state"], entry["reason"], entry["charge"]) for entry in entries} == {
        ("denied", "suspended", 0)
    }
    assert (await scripted_caller.quota())["suspended"] == "the contract ended; ask Ada"
    await scripted_caller.bind(sa_limit=9000)
    assert (await scripted_caller.post()).status_code == 200


async def test_one_suspended_account_leaves_the_others_alone(scripted_caller, upstream):
    await scripted_caller.bind(
        sa_limit=9000, service_accounts=[{"name": scripted_caller.account, "suspended": "replaced"}]
    )
    assert "replaced" in error_of(await scripted_caller.post(), 403)["message"]
    other = scripted_caller.colleague(f"other@{scripted_caller.tenant}")
    assert (await other.post()).status_code == 200
    assert len(upstream.received) == 1


async def test_an_account_with_limits_of_its_own_has_those(scripted_caller):
    await scripted_caller.bind(
        sa_limit=60, ip_limit=9000, service_accounts=[{"name": scripted_caller.account, "sa_limit": 8000}]
    )
    assert (await scripted_caller.post(max_tokens=500)).status_code == 200
    assert {row["limit"] for row in (await scripted_caller.quota())["limits"]} == {8000, 9000}
    other = scripted_caller.colleague(f"other@{scripted_caller.tenant}")
    assert "Limit 60 tokens per day" in error_of(await other.post(max_tokens=500), 429)["message"]


async def test_an_unlimited_account_is_still_bound_by_what_counts_the_whole_tenant(scripted_caller):
    everybody = {"scope": "tenant", "window": "day", "amount": 2000}
    free = scripted_caller.colleague(f"free@{scripted_caller.tenant}")
    await scripted_caller.bind(
        everybody, sa_limit=60, service_accounts=[{"name": free.account, "unlimited": True}]
    )
    error_of(await scripted_caller.post(max_tokens=500), 429)
    assert (await free.post(max_tokens=500)).status_code == 200
    assert "Limit 2000 tokens per day" in error_of(await free.post(max_tokens=2500), 429)["message"]
    # What one used is gone for the others.
    await free.settled()
    row = await scripted_caller.row(scope="tenant")
    assert (row["used"], row["remaining"]) == (USED, 2000 - USED)


async def test_an_unlimited_tenant_is_metered_all_the_same(scripted_caller):
    await scripted_caller.bind(unlimited=True)
    answer = await scripted_caller.post(max_tokens=1_000_000)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert (await scripted_caller.entry())["charge"] == USED
    assert (await scripted_caller.quota())["limits"] == []


async def test_accounts_that_nobody_named_have_terms_of_their_own(scripted_caller, upstream):
    await scripted_caller.bind(
        sa_limit=9000,
        service_accounts=[{"name": scripted_caller.account}],
        unknown_service_accounts={"suspended": "ask the platform team for access"},
    )
    assert (await scripted_caller.post()).status_code == 200
    stranger = scripted_caller.colleague(f"stranger@{scripted_caller.tenant}")
    assert "ask the platform team" in error_of(await stranger.post(), 403)["message"]
    await scripted_caller.bind(sa_limit=9000, unknown_service_accounts={"sa_limit": 40})
    assert "Limit 40 tokens" in error_of(await stranger.post(max_tokens=100), 429)["message"]
    assert len(upstream.received) == 1


async def test_a_limit_on_models_binds_those_that_match_together(scripted_caller):
    large = {"scope": "service_account", "window": "day", "amount": 70, "model": "large-*"}
    await scripted_caller.bind(large, sa_limit=9000)

    async def ask(model):
        return await scripted_caller.post(chat(model=model, max_tokens=30))

    assert (await ask("large-a")).status_code == 200
    await scripted_caller.settled_all()
    assert (await ask("large-b")).status_code == 200
    await scripted_caller.settled_all()
    await scripted_caller.bind(large | {"amount": 2 * USED + 1}, sa_limit=9000)
    assert (
        f"Limit {2 * USED + 1} tokens per day: {2 * USED} used" in error_of(await ask("large-c"), 429)["message"]
    )
    answer = await ask("small-a")
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "9000"


async def test_a_limit_by_model_has_a_bucket_for_each(scripted_caller):
    each = {"scope": "service_account+model", "window": "day", "amount": 1, "unit": "requests"}
    await scripted_caller.bind(each, sa_limit=9000)
    statuses = [(await scripted_caller.post(chat(model=model))).status_code for model in ("a", "b", "a", "b", "c")]
    assert statuses == [200, 200, 429, 429, 200]


async def test_several_windows_count_at_once_and_the_tightest_is_told(scripted_caller):
    amounts = {"minute": 5000, "hour": 4000, "day": 3000, "week": 2000, "month": 1000}
    limits = [{"scope": "service_account", "window": window, "amount": n} for window, n in amounts.items()]
    await scripted_caller.bind(*limits)
    answer = await scripted_caller.post(max_tokens=20)
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    await scripted_caller.settled_all()
    rows = (await scripted_caller.quota())["limits"]
    assert {row["window"]: row["limit"] for row in rows} == amounts
    assert {row["used"] for row in rows if row["window"] != "minute"} == {USED}
    ends = [row["resets_at"] for row in sorted(rows, key=lambda row: list(amounts).index(row["window"]))]
    minute, hour, day, week, month = ends
    assert minute <= hour <= day <= min(week, month)
    denied = await scripted_caller.post(max_tokens=4500)
    assert denied.status_code == 429
    # Of those that do not fit, the one that keeps it out the longest: in a month's last days that is the week's.
    assert f"per {'month' if month >= week else 'week'}" in denied.json()["error"]["message"]
    for window in ("hour", "day", "week", "month"):
        assert (await scripted_caller.row(window=window))["used"] == USED


async def test_input_and_output_may_be_limited_apart(scripted_caller):
    units = {"input_tokens": 100, "output_tokens": 10}
    limits = [
        {"scope": "service_account", "window": "day", "amount": n, "unit": unit} for unit, n in units.items()
    ]
    await scripted_caller.bind(*limits, sa_limit=9000)
    assert (await scripted_caller.post(max_tokens=8)).status_code == 200
    await scripted_caller.settled_all()
    assert (await scripted_caller.row(unit="input_tokens"))["used"] == 5
    assert (await scripted_caller.row(unit="output_tokens"))["used"] == 2
    assert "output tokens per day: 2 used" in error_of(await scripted_caller.post(max_tokens=9), 429)["message"]
    assert (
        "input tokens per day: 5 used"
        in error_of(await scripted_caller.post(chat("x" * 900, max_tokens=1)), 429)["message"]
    )


async def test_a_top_up_counts_at_once_and_no_longer_than_it_says(scripted_caller):
    await scripted_caller.bind(sa_limit=100)
    error_of(await scripted_caller.post(max_tokens=500), 429)
    tenants = scripted_caller.records.database["tenantLimitation"]

    async def limit():
        return (await scripted_caller.row())["limit"]

    async def served_meanwhile(lasts_s):
        """Top up for so long. Return its end, or None where the machine was too busy to see it before."""
        # In whole seconds: the store keeps milliseconds only.
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=lasts_s)
        top_up = {"amount": 1000, "until": ends, "note": "launch"}
        await tenants.update_one({"tenant_id": scripted_caller.tenant}, {"$set": {"top_ups": [top_up]}})
        while datetime.now(UTC) < ends:
            if await limit() == 1100:
                return ends if (await scripted_caller.post(max_tokens=500)).status_code == 200 else None
        return None

    for lasts_s in (2.5, 7, 25):
        if ends := await served_meanwhile(lasts_s):
            break

    async def ended():
        return await limit() == 100

    await until(ended, "the top-up has ended")
    # Replicas go by Redis' clock, as it is read over a connection.
    assert datetime.now(UTC) >= ends - timedelta(milliseconds=20)
    error_of(await scripted_caller.post(max_tokens=500), 429)
    # What was used of it stays used.
    assert await scripted_caller.settled() == USED


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu"])
async def test_days_begin_and_end_at_the_tenants_midnight(scripted_caller, zone):
    await scripted_caller.bind(sa_limit=9000, timezone=zone)

    def midnight_after(now):
        tomorrow = now.astimezone(ZoneInfo(zone)).date() + timedelta(days=1)
        return datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)

    asked = datetime.now(UTC)
    assert (await scripted_caller.post(max_tokens=20)).status_code == 200
    entry = await scripted_caller.entry()
    answered = datetime.now(UTC)
    days = {moment.astimezone(ZoneInfo(zone)).date().isoformat() for moment in (asked, answered)}
    assert entry["date"] in days
    assert (await scripted_caller.row())["resets_at"] in {
        f"{midnight_after(moment):%Y-%m-%dT%H:%M:%SZ}" for moment in (asked, datetime.now(UTC))
    }
    denied = await scripted_caller.post(max_tokens=9000)
    (told,) = re.findall(r"Resets at (\S+),", denied.json()["error"]["message"])
    assert told in {f"{midnight_after(moment):%Y-%m-%dT%H:%M:%SZ}" for moment in (asked, datetime.now(UTC))}
    (day,) = await scripted_caller.records.daily(scripted_caller.account)
    assert day["date"] in days


async def test_a_tenant_that_nobody_configured_is_bound_by_all_defaults(loud, records, upstream):
    """The defaults of `loud`, which denies in the style of the talk."""
    caller = Caller(loud, records)
    assert (await caller.post(max_tokens=800)).status_code == 400
    for _ in range(3):
        assert (await caller.post(max_tokens=8)).status_code == 200
    colleague = caller.colleague(f"other@{caller.tenant}")
    assert (await colleague.post(max_tokens=8)).status_code == 400
    assert (await Caller(loud, records).post(max_tokens=8)).status_code == 200
    rows = await caller.settled_all()
    told = {(row["scope"], row["unit"], row["window"], row["limit"], row["used"]) for row in rows}
    assert told == {("service_account", "tokens", "day", 700, 3 * USED), ("tenant", "requests", "month", 3, 3)}
    assert all(row["resets_at"].endswith("T15:00:00Z") for row in rows)


async def test_requests_of_the_talk_are_counted_by_the_minute(scripted_caller, upstream):
    await scripted_caller.bind(sa_limit=9000, ratelimitEachSAPerMinute=2, ratelimitIPPerMinute=500)
    answers = [await scripted_caller.post(max_tokens=8) for _ in range(5)]
    assert answers[0].status_code == 200
    denied = next(answer for answer in answers if answer.status_code == 429)
    error = error_of(denied, 429)
    assert error["message"].startswith("Usage over limit -- serviceAccount. Limit 2 requests per minute: ")
    assert error["type"] == "requests"
    assert "x-should-retry" not in denied.headers
    assert 0 < int(denied.headers["retry-after"]) <= 60
    served = [answer for answer in answers if answer.status_code == 200]
    assert await scripted_caller.settled_all()
    row = await scripted_caller.row(unit="tokens")
    assert row["used"] == USED * len(served) == USED * len(upstream.received)
