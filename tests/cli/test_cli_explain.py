import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from extproc.core.quota.binding import bind
from extproc.core.quota.costs import Cost
from extproc.core.quota.limits import interval_at
from extproc.core.quota.policies import Defaults, policy_from
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.counters import Closing
from extproc.stores.redis import RedisCounters, RedisOptions

pytestmark = pytest.mark.system

ACCOUNT = "console@zone-prod.example.com"


def hold_and_settle(redis, document, identity, *, held, settled):
    """One reservation that is still open, and one that was settled."""

    async def go():
        now = datetime.now(UTC)
        buckets = bind(policy_from(document, Defaults((), UTC)), identity, now)
        counters = RedisCounters(RedisOptions(redis))
        made = [
            Reservation(
                uuid.uuid4().hex, "q", identity, Endpoint.CHAT_COMPLETIONS, "m", False, Cost(cost, 0), buckets, now,
                now.date().isoformat(), now.timestamp() + 60,
            )
            for cost in (held, settled)
        ]  # fmt: skip
        for epoch in await counters.epochs():
            await counters.register(epoch, "r")
        for each in made:
            await counters.reserve(each)
        await counters.close([Closing(made[1], Outcome.SETTLED, (settled,) * len(buckets))])
        await counters.aclose()

    asyncio.run(go())


@pytest.fixture
def tenant(stores, database):
    """A tenant of the test's own, in whose buckets something is."""
    document = {"tenant_id": f"t-{uuid.uuid4().hex[:8]}", "sa_limit": 12000, "ip_limit": 400}
    database.tenantLimitation.insert_one(dict(document))
    identity = Identity(document["tenant_id"], ACCOUNT, "15.65.196.24")
    hold_and_settle(stores.redis, document, identity, held=30, settled=100)
    return document["tenant_id"]


def next_midnight():
    # A test that runs across midnight would see the next one.
    end = datetime.fromtimestamp(interval_at("day", datetime.now(UTC), UTC).end, UTC)
    return {(end + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (-1, 0)}


def test_explain_shows_used_held_remaining_and_reset_of_each_limit(run, tenant):
    done = run("explain", tenant, ACCOUNT, "::ffff:15.65.196.24")
    assert (done.code, done.err) == (0, "")
    head, by_account, by_ip = done.rows
    assert head == [
        "limit", "window", "amount", "top-ups", "used", "held", "remaining", "resets at", "unit", "mode", "model",
        "endpoint",
    ]  # fmt: skip
    assert by_account[:7] == ["service_account", "day", "12000", "-", "100", "30", "11870"]
    assert by_ip[:7] == ["service_account+client_ip", "day", "400", "-", "100", "30", "270"]
    assert {by_account[7], by_ip[7]} <= next_midnight()
    assert by_account[8:] == by_ip[8:] == ["tokens", "reserve", "-", "-"]


def test_another_ip_has_its_own_bucket(run, tenant):
    _, by_account, by_ip = run("explain", tenant, ACCOUNT, "15.65.196.25").rows
    assert (by_account[4], by_ip[4]) == ("100", "0")


def test_without_an_address_limits_by_address_have_no_counts_rather_than_0(run, tenant):
    done = run("explain", tenant, ACCOUNT)
    assert done.code == 0
    _, by_account, by_ip = done.rows
    assert by_account[4:7] == ["100", "30", "11870"]
    assert by_ip[2:8] == ["400", *"-----"]
    assert done.err == "Limits by client IP have no counts without one: give the client IP.\n"


def test_a_verdict_says_whether_a_request_would_pass_and_by_which_limit_not(run, tenant):
    passes = run("explain", tenant, ACCOUNT, "--ip", "15.65.196.24", "--tokens", "0.2k+70")
    assert (passes.code, passes.out.splitlines()[0]) == (0, "It would pass.")
    denied = run("explain", tenant, ACCOUNT, "15.65.196.24", "--tokens", "271")
    assert denied.code == 5
    assert denied.out.startswith(
        "It would be denied by the limit service_account+client_ip/day: 400 tokens, 100 used, 30 held, 271 needed. "
    )
    verdict = run("explain", tenant, ACCOUNT, "15.65.196.24", "--tokens", "271", "--json").json["verdict"]
    assert (verdict["passes"], verdict["provisional"]) == (False, False)
    assert 0 < verdict["obstacle"]["retry_after_s"] <= 86_400
    assert run("explain", tenant, ACCOUNT, "--tokens", "271", "--json").json["verdict"]["provisional"]


@pytest.mark.parametrize("text", ["", "many", "1.5", "-1", "1+2+3", "1+", "9" * 12])
def test_tokens_that_are_no_number_are_refused(run, database, text):
    done = run("explain", "t", "sa", "--tokens", text)
    assert (done.code, done.out) == (2, "")
    assert "tokens must be" in done.err


def test_json_has_the_documented_keys(run, tenant):
    done = run("explain", tenant, ACCOUNT, "--json").json
    limits = done.pop("limits")
    assert done == {
        "tenant": tenant,
        "service_account": ACCOUNT,
        "client_ip": "unknown",
        "limits_of_its_own": True,
        "problem": None,
        "suspended": None,
        "on_store_failure": "deny",
        "verdict": None,
        "denials": [],
    }
    assert [list(limit) for limit in limits] == [
        [
            "limit", "window", "amount", "topped_up", "used", "held", "remaining", "resets_at", "unit", "mode",
            "shadow", "model", "endpoints",
        ]
    ] * 2  # fmt: skip
    assert limits[0]["used"] == 100


def test_a_tenant_that_nobody_configured_is_shown_the_defaults_and_told_so(run, database):
    done = run("explain", "no-body", "sa", "10.0.0.1")
    assert done.code == 0
    assert done.err == "Tenant 'no-body' has no limits of its own: the defaults bind.\n"
    assert done.rows[1][:3] == ["service_account", "day", "100000"]


def test_limits_that_can_not_be_used_are_told_of(run, database):
    database.tenantLimitation.insert_one({"tenant_id": "bad", "sa_limit": 5, "timezone": "Mars/Olympus"})
    done = run("explain", "bad", "sa")
    assert done.code == 0
    assert done.err.startswith("Fields of the stored limits can't be used ('timezone' is no IANA time zone")
    assert run("explain", "bad", "sa", "--json").json["problem"].startswith("'timezone' is no IANA")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t", "sa", "1.2.3"], "'1.2.3' is no IP address"),
        (["t", "sa", "\x1b[31m"], r"'\x1b[31m' is no IP address"),
        (["t\n", "sa"], "the tenant must be a printable name"),
        (["t", ""], "the service account must be a printable name"),
    ],
)
def test_an_identity_that_can_not_be_is_one_line_and_exit_code_2(run, database, arguments, message):
    done = run("explain", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")


def test_limits_that_need_a_model_or_endpoint_have_counts_once_it_is_named(run, database):
    limits = [
        {"scope": "model", "window": "day", "amount": 7, "mode": "shadow", "shadows": "strict"},
        {
            "scope": "tenant",
            "window": "hour",
            "amount": 8,
            "unit": "requests",
            "endpoint": ["embeddings", "score"],
        },
        {"scope": "tenant", "window": "hour", "amount": 9, "model": "big-*", "mode": "soft"},
    ]
    database.tenantLimitation.insert_one({"tenant_id": "acme", "sa_limit": 5, "limits": limits})

    def known(*options):
        return {
            (row["amount"], row["mode"], row["shadow"]): row["used"]
            for row in run("explain", "acme", "sa", "--json", *options).json["limits"]
        }

    sa, model, endpoint, big = (
        (5, "reserve", False),
        (7, "strict", True),
        (8, "reserve", False),
        (9, "soft", False),
    )
    assert known() == {sa: 0, model: None, endpoint: 0, big: 0}
    assert known("--model", "big-1") == {sa: 0, model: 0, endpoint: 0, big: 0}
    assert known("--model", "small", "--endpoint", "score") == {sa: 0, model: 0, endpoint: 0}
    assert known("--endpoint", "completions") == {sa: 0, model: None, big: 0}
    table = run("explain", "acme", "sa")
    assert table.err == "Limits without counts depend on what is asked for: give --model or --endpoint.\n"
    assert table.rows[2] == ["model", "day", "7", *"-----", "tokens", "shadow of strict", "-", "-"]
    assert table.rows[3][8:] == ["requests", "reserve", "-", "embeddings, score"]
    assert run("explain", "acme", "sa", "--model", "m", "--endpoint", "score").err == ""


def test_who_is_suspended_is_told_so(run, database):
    database.tenantLimitation.insert_one({"tenant_id": "acme", "sa_limit": 5, "suspended": "unpaid"})
    done = run("explain", "acme", "sa")
    assert (done.code, done.err) == (0, "Suspended, nothing is admitted: unpaid\n")
    assert run("explain", "acme", "sa", "--json").json["suspended"] == "unpaid"


@pytest.mark.parametrize(
    "options", [["--endpoint", "nonsense"], ["--endpoint", "quota"], ["--model", "\x1b[31m"], ["--model", ""]]
)
def test_a_subject_that_can_not_be_is_exit_code_2(run, database, options):
    done = run("explain", "t", "sa", *options)
    assert (done.code, done.out) == (2, "")
    assert "\x1b" not in done.err
