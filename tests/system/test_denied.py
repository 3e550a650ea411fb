"""Who gets no answer from the model: over the limit, without a token, with another's."""

import re

import httpx
import openai
import pytest

from .callers import CHAT, Caller, chat, total
from .marks import SYSTEM

pytestmark = SYSTEM

MESSAGES = [{"role": "user", "content": "1 + 1 =?"}]


def error_of(answer, status):
    """OpenAI's error object, and nothing beside it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]


async def test_a_denied_answer_tells_all_that_is_needed_to_wait(scripted_caller, upstream):
    await scripted_caller.limit(sa_limit=9000, ip_limit=10)
    answer = await scripted_caller.post(max_tokens=16)
    error = error_of(answer, 429)
    assert (error["type"], error["param"], error["code"]) == ("tokens", None, "rate_limit_exceeded")
    assert re.fullmatch(
        r"Usage over limit -- serviceAccount \+ IP\. Limit 10 tokens per day: 0 used, this request needs up to "
        r"\d+\. Resets at \d{4}-\d\d-\d\dT00:00:00Z, in (\d+h)?(\d+m)?\d+s\. "
        r"That is more than the whole limit: shorten the prompt or lower max_tokens\.",
        error["message"],
    )
    assert "retry-after" not in answer.headers  # to wait does not help
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-ratelimit-limit-tokens"] == "10"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "10"
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", answer.headers["x-ratelimit-reset-tokens"])
    assert upstream.received == []


async def test_the_tightest_limit_that_does_not_fit_is_named(scripted_caller):
    await scripted_caller.limit(sa_limit=10, ip_limit=400)
    error = error_of(await scripted_caller.post(max_tokens=16), 429)
    assert error["message"].startswith("Usage over limit -- serviceAccount. ")


async def test_a_denied_request_costs_nothing_and_is_on_record(scripted_caller):
    await scripted_caller.limit(sa_limit=9000, ip_limit=10)
    await scripted_caller.post(max_tokens=16)
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"], entry["held"]) == ("denied", 0, 0)
    assert await scripted_caller.settled() == 0
    (day,) = await scripted_caller.records.daily(scripted_caller.account)
    assert (day["usage"], day["denied"]) == (0, 1)


async def test_the_openai_client_raises_rate_limit_error_and_does_not_ask_again(caller):
    await caller.limit(ip_limit=10)
    async with caller.openai(max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=caller.model, messages=MESSAGES, max_tokens=16)
    assert caught.value.code == "rate_limit_exceeded"
    # The ledger is written in order: had it asked again, there would be more than this one and the next.
    await caller.post(max_tokens=16)
    assert [entry["state"] for entry in await caller.entries(2)] == ["denied", "denied"]


async def test_another_address_has_a_limit_of_its_own(caller):
    await caller.limit(sa_limit=9000, ip_limit=60)
    count = 0
    while (await caller.post(max_tokens=16)).status_code == 200:
        count += 1
    async with caller.http(transport=httpx.AsyncHTTPTransport(local_address="127.0.0.2")) as client:
        answer = await client.post(CHAT, json=chat(max_tokens=16))
    assert answer.status_code == 200
    entries = await caller.entries(count + 2)
    *here, denied, there = [(entry["clientIP"], entry["state"]) for entry in entries]
    assert set(here) == {("127.0.0.1", "settled")}
    assert (denied, there) == (("127.0.0.1", "denied"), ("127.0.0.2", "settled"))
    counts = await caller.counts("127.0.0.2")
    assert counts["service_account+client_ip"].used == entries[-1]["charge"]
    assert counts["service_account"].used == sum(entry["charge"] for entry in entries)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"sa_limit": 9000, "ip_limit": 10}, b"Usage over limit -- serviceAccount + IP."),
        ({"sa_limit": 10, "ip_limit": 400}, b"Usage over limit -- serviceAccount."),
        ({"sa_limit": 10}, b"Usage over limit -- serviceAccount."),
    ],
)
async def test_a_switch_gives_the_talks_answer_to_the_letter(loud, records, upstream, limits, text):
    caller = Caller(loud, records)
    await caller.limit(**limits)
    answer = await caller.post(max_tokens=16)
    assert (answer.status_code, answer.content) == (400, text)
    assert answer.headers["content-type"] == "text/plain"
    assert upstream.received == []
    assert (await caller.entry())["state"] == "denied"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


STRANGERS = {
    "none": (lambda _: {}, 401),
    "empty": (lambda _: {"authorization": "Bearer"}, 401),
    "garbage": (lambda _: bearer("a.b.c"), 401),
    "basic": (lambda _: {"authorization": "Basic YTpi"}, 401),
    "forged": (lambda c: bearer(c.stack.issuer.forge(c.account, tenant=c.tenant)), 401),
    "expired": (lambda c: bearer(c.stack.issuer.issue(c.account, tenant=c.tenant, ttl_s=-600)), 401),
    "unsigned": (lambda c: bearer(f"{c.token.rpartition('.')[0]}."), 401),
    "wrong audience": (lambda c: bearer(c.stack.issuer.issue(c.account, tenant=c.tenant, audience="else")), 403),
}


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/foo"])
async def test_strangers_are_refused_in_openais_shape(scripted_caller, upstream, who, path):
    headers, status = STRANGERS[who]
    async with scripted_caller.stranger() as client:
        answer = await client.request(
            "POST" if path == CHAT else "GET",
            path,
            headers=headers(scripted_caller),
            content=b"{}" if path == CHAT else None,
        )
    error = error_of(answer, status)
    assert error["code"] == ("invalid_api_key" if status == 401 else "permission_denied")
    assert error["type"] == "invalid_request_error"
    assert upstream.received == []


async def test_strangers_raise_the_openai_clients_own_errors(caller):
    for token, kind in (
        (caller.stack.issuer.forge(caller.account), openai.AuthenticationError),
        (caller.stack.issuer.issue(caller.account, audience="else"), openai.PermissionDeniedError),
    ):
        async with caller.openai(token=token) as client:
            with pytest.raises(kind):
                await client.chat.completions.create(model=caller.model, messages=MESSAGES)


async def test_strangers_do_not_fill_the_ledger_and_are_no_faults(scripted_caller):
    async with scripted_caller.stranger() as client:
        await client.post(CHAT, json=chat())
    assert await scripted_caller.nothing_recorded_but(0) == []
    assert await total(scripted_caller.stack, "tokenweir_stream_faults_total") == 0


CLAIMED = {
    "oc_sa": "admin@zone.example.com",
    "OC_SA": "admin@zone.example.com",
    "x-forwarded-for": "10.1.2.3",
    "x-real-ip": "10.1.2.3",
    "forwarded": "for=10.1.2.3",
    "x-envoy-external-address": "10.1.2.3",
    "x-envoy-internal": "true",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-retry-on": "5xx",
    "x-envoy-original-path": "/free",
    "x-request-id": "11111111-1111-1111-1111-111111111111",
}


async def test_headers_of_a_client_change_nothing_about_who_it_is(scripted_caller, upstream):
    answer = await scripted_caller.post(headers=CLAIMED)
    assert answer.status_code == 200
    entry = await scripted_caller.entry()
    assert (entry["serviceAccount"], entry["clientIP"], entry["tenant_id"]) == (
        scripted_caller.account,
        "127.0.0.1",
        scripted_caller.tenant,
    )
    assert entry["request_id"] != CLAIMED["x-request-id"]
    (received,) = upstream.received
    assert received.header("oc_sa") == []
    assert received.header("x-request-id") == [entry["request_id"]]
    # Envoy appends the peer, or for a loopback peer its own address: never only what the client wrote.
    (forwarded,) = received.header("x-forwarded-for")
    assert re.fullmatch(r"10\.1\.2\.3,[0-9.]+", forwarded)
    # Those that Envoy writes itself say what Envoy knows.
    own = {name: value for name, value in received.headers if name.startswith("x-envoy-")}
    assert own.pop("x-envoy-external-address") == "127.0.0.1"
    assert own == {"x-envoy-original-host": scripted_caller.stack.gateway.removeprefix("http://")}


async def test_a_token_in_the_query_does_not_count(scripted_caller, upstream):
    async with scripted_caller.stranger() as client:
        answer = await client.post(f"{CHAT}?access_token={scripted_caller.token}", json=chat())
    error_of(answer, 401)
    assert upstream.received == []


@pytest.mark.parametrize("claims", [{"sub": ""}, {"sub": "a\nb"}, {"sub": "x" * 300}, {"tenant": " t"}])
async def test_a_token_that_names_nobody_is_refused(scripted_caller, upstream, claims):
    named = {"sub": scripted_caller.account, "tenant": scripted_caller.tenant} | claims
    token = scripted_caller.stack.issuer.issue(named["sub"], tenant=named["tenant"])
    error = error_of(await scripted_caller.post(headers=bearer(token)), 403)
    (name,) = claims
    assert (error["param"], error["code"]) == (name, "unusable_identity")
    assert upstream.received == []


async def test_a_token_without_a_tenant_shares_the_limits_of_the_nameless(scripted_caller):
    token = scripted_caller.stack.issuer.issue(scripted_caller.account)
    assert (await scripted_caller.post(headers=bearer(token))).status_code == 200
    assert (await scripted_caller.entry())["tenant_id"] == "anonymous"
