"""`GET /v1/quota` through the gateway: what binds the caller, from its own token, and nothing about others."""

import asyncio

import pytest

from .callers import CHAT, Caller, chat
from .marks import SYSTEM
from .test_denied import bearer, error_of
from .test_outages import gated
from .test_passing_through import EVENTS
from .upstreams import ANSWER

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]


async def test_a_caller_sees_its_own_limits_and_no_others(scripted_caller, records, upstream):
    await scripted_caller.bind(sa_limit=9000, ip_limit=8000)
    other = Caller(scripted_caller.stack, records)
    await other.bind(sa_limit=70, ratelimitEachSAPerMinute=6)
    await scripted_caller.post(max_tokens=20)
    await scripted_caller.settled()
    own, others = await scripted_caller.quota(), await other.quota()
    assert (own["object"], own["tenant"], own["service_account"], own["client_ip"], own["suspended"]) == (
        "quota",
        scripted_caller.tenant,
        scripted_caller.account,
        "127.0.0.1",
        None,
    )
    told = {(row["scope"], row["unit"], row["window"], row["limit"], row["used"]) for row in own["limits"]}
    assert told == {
        ("service_account", "tokens", "day", 9000, USED),
        ("service_account+client_ip", "tokens", "day", 8000, USED),
    }
    for row in own["limits"]:
        assert row["remaining"] == row["limit"] - USED
        assert 0 < row["resets_in_s"] <= 86_400
        assert row["resets_at"].endswith("T00:00:00Z")
        assert (row["held"], row["mode"], row["model"], row["endpoints"]) == (0, "reserve", None, None)
    assert {(row["unit"], row["window"], row["limit"], row["used"]) for row in others["limits"]} == {
        ("tokens", "day", 70, 0),
        ("requests", "minute", 6, 0),
    }
    assert scripted_caller.tenant not in str(others)


async def test_what_is_in_flight_shows_as_held(scripted_caller, upstream):
    upstream.script, go = gated()
    async with (
        scripted_caller.http() as client,
        client.stream("POST", CHAT, json=chat(stream=True, max_tokens=50)) as answer,
    ):
        chunks = answer.aiter_raw()
        assert await anext(chunks) == EVENTS[0]
        row = await scripted_caller.row()
        assert (row["used"], row["held"] > 50) == (0, True)
        assert (
            row["remaining"] == row["limit"] - row["held"] == int(answer.headers["x-ratelimit-remaining-tokens"])
        )
        go.set()
        async for _ in chunks:
            pass
    (row,) = await scripted_caller.settled_all()
    assert (row["used"], row["held"]) == (USED, 0)


async def test_asking_is_free_and_reaches_no_upstream(scripted_caller, upstream):
    await scripted_caller.bind(sa_limit=9000, ratelimitEachSAPerMinute=1)
    for _ in range(3):
        quota = await scripted_caller.quota()
    assert {row["used"] for row in quota["limits"]} == {0}
    assert upstream.received == []
    assert await scripted_caller.nothing_recorded_but(0) == []


async def test_limits_on_models_are_told_for_the_model_that_is_asked_about(scripted_caller):
    large = {"scope": "service_account", "window": "day", "amount": 500, "model": "large-*"}
    each = {"scope": "service_account+model", "window": "day", "amount": 90, "unit": "requests"}
    await scripted_caller.bind(large, each, sa_limit=9000)
    await scripted_caller.post(chat(model="large-a", max_tokens=9))
    await scripted_caller.settled()

    async def used(query):
        rows = (await scripted_caller.quota(query))["limits"]
        return {row["limit"]: row["used"] for row in rows}

    assert await used("") == {9000: USED, 500: USED, 90: None}
    assert await used("?model=large-a") == {9000: USED, 500: USED, 90: 1}
    assert await used("?model=large-b") == {9000: USED, 500: USED, 90: 0}
    assert await used("?model=small") == {9000: USED, 90: 0}


async def test_without_a_token_of_its_own_nobody_is_told_anything(scripted_caller, upstream):
    async with scripted_caller.stranger() as client:
        error_of(await client.get("/v1/quota"), 401)
        forged = scripted_caller.stack.issuer.forge(scripted_caller.account, tenant=scripted_caller.tenant)
        assert error_of(await client.get("/v1/quota", headers=bearer(forged)), 401)["code"] == "invalid_api_key"
    assert upstream.received == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_than_get_are_refused(scripted_caller, upstream, method):
    async with scripted_caller.http() as client:
        answer = await client.request(method, "/v1/quota", json={} if method == "POST" else None)
    assert error_of(answer, 405)["message"] == "This endpoint takes GET only."
    assert answer.headers["allow"] == "GET"
    assert upstream.received == []


async def test_headers_of_a_client_do_not_show_it_anothers_limits(scripted_caller, records):
    other = Caller(scripted_caller.stack, records)
    async with scripted_caller.http() as client:
        claimed = {"oc_sa": other.account, "x-tenant": other.tenant, "x-forwarded-for": "10.1.2.3"}
        answer = await client.get(f"/v1/quota?tenant={other.tenant}", headers=claimed)
    assert (answer.json()["tenant"], answer.json()["client_ip"]) == (scripted_caller.tenant, "127.0.0.1")
    assert answer.headers["cache-control"] == "no-store"


async def test_many_may_ask_at_once(scripted_caller):
    answers = await asyncio.gather(*(scripted_caller.quota() for _ in range(40)))
    assert all(answer["tenant"] == scripted_caller.tenant for answer in answers)
