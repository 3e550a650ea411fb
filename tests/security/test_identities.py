"""Who a caller is can't be chosen, and no name does anything but name: not in MongoDB, not in Redis, not in a log."""

import json
import secrets
from urllib.parse import quote

import pytest

from extproc.ports.ledger import UsageFilter
from tests.system import envoys
from tests.system.callers import CHAT, Caller, chat, scrape
from tests.system.marks import SYSTEM
from tests.system.upstreams import ANSWER
from tests.system.waiting import until

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]
OPERATORS = ['{"$ne": ""}', "$where", "a.b.c", "__proto__", "..", "*", "a/b", "%", "a:b}{c", "\\"]


@pytest.mark.parametrize("name", OPERATORS)
async def test_an_operator_as_a_name_is_a_name_through_to_mongodb(scripted_caller, records, name):
    tenant, account = f"{name}{secrets.token_hex(4)}", f"{secrets.token_hex(4)}{name}"
    odd = Caller(scripted_caller.stack, records, tenant, account)
    await odd.limit(sa_limit=9000)
    assert (await scripted_caller.post()).status_code == 200
    assert (await odd.post(user=name)).status_code == 200
    entry = await odd.entry()
    assert (entry["tenant_id"], entry["serviceAccount"], entry["charge"]) == (tenant, account, USED)
    (day,) = await records.daily(account)
    assert (day["serviceAccount"], day["usage"]) == (account, USED)
    # What an operator sees is this tenant's own, and no other's.
    seen = await records.admin.daily(UsageFilter(tenant, None, None, None, None), 100)
    assert {row.service_account for row in seen} == {account}
    assert await odd.settled() == USED
    assert await scripted_caller.settled() == USED


async def test_user_in_the_body_names_nobody(scripted_caller, upstream):
    other = scripted_caller.colleague(f"victim@{scripted_caller.tenant}")
    fields = {"user": other.account, "metadata": {"tenant": "x", "sub": other.account}, "safety_identifier": "v"}
    assert (await scripted_caller.post(**fields)).status_code == 200
    assert (await scripted_caller.entry())["serviceAccount"] == scripted_caller.account
    assert await scripted_caller.records.entries(other.account) == []


async def test_a_forged_token_beside_the_real_one_is_not_listened_to(scripted_caller, upstream):
    forged = scripted_caller.token.rpartition(".")[0] + ".c2lnbmF0dXJl"
    bare = scripted_caller.token.split(".")
    none = f"eyJhbGciOiJub25lIn0.{bare[1]}."
    async with scripted_caller.stranger() as client:
        for token in (forged, none, bare[1], "x"):
            answer = await client.post(CHAT, json=chat(), headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 401
        twice = [("authorization", f"Bearer {scripted_caller.token}"), ("authorization", f"Bearer {forged}")]
        answer = await client.post(CHAT, json=chat(), headers=twice)
    assert answer.status_code in {200, 401}
    served = int(answer.status_code == 200)
    assert len(upstream.received) == served
    assert len(await scripted_caller.nothing_recorded_but(served)) == served


async def test_equal_request_ids_are_two_requests(scripted_caller):
    same = {"x-request-id": "11111111-1111-4111-8111-111111111111", "idempotency-key": "1"}
    for _ in range(3):
        assert (await scripted_caller.post(headers=same)).status_code == 200
    entries = await scripted_caller.entries(3)
    assert len({entry["_id"] for entry in entries}) == len({entry["request_id"] for entry in entries}) == 3
    assert await scripted_caller.settled() == 3 * USED


# ---------------------------------------------------------------- addresses, where a proxy in front is trusted


ADDRESSES = {
    "2001:db8:7:1::1": "2001:db8:7:1::/64",
    "2001:db8:7:1:ffff:ffff:ffff:ffff": "2001:db8:7:1::/64",
    "2001:DB8:7:1:0:0:0:9": "2001:db8:7:1::/64",
    "2001:db8:7:2::1": "2001:db8:7:2::/64",
    "::ffff:192.0.2.7": "192.0.2.7",
    "::ffff:c000:207": "192.0.2.7",
    "192.0.2.7": "192.0.2.7",
    "2002:c000:207::1": "192.0.2.7",
    "64:ff9b::192.0.2.7": "192.0.2.7",
}


@pytest.mark.parametrize("forwarded", ADDRESSES)
async def test_an_address_has_one_spelling_through_a_trusted_proxy(trusted, records, forwarded):
    caller = Caller(trusted, records)
    assert (await caller.post(headers={"x-forwarded-for": f"10.0.0.1, {forwarded}"})).status_code == 200
    assert (await caller.entry())["clientIP"] == ADDRESSES[forwarded]
    (day,) = await records.daily(caller.account)
    assert day["clientIP"] == ADDRESSES[forwarded]


async def test_a_network_of_addresses_is_one_client_to_a_limit_by_ip(trusted, records):
    caller = Caller(trusted, records)
    await caller.bind({"scope": "client_ip", "window": "day", "amount": 2, "unit": "requests"}, sa_limit=9000)
    codes = [
        (await caller.post(headers={"x-forwarded-for": f"2001:db8:8:1::{number}"})).status_code
        for number in range(1, 5)
    ]
    assert codes == [200, 200, 429, 429]
    assert (await caller.post(headers={"x-forwarded-for": "2001:db8:8:2::1"})).status_code == 200
    async with caller.http(headers=caller.headers | {"x-forwarded-for": "2001:db8:8:1::77"}) as client:
        assert (await client.get("/v1/quota")).json()["client_ip"] == "2001:db8:8:1::/64"


@pytest.mark.parametrize(
    "forwarded",
    [
        "garbage",
        "10.0.0.1:99",
        "[2001:db8::1]:443",
        "192.0.2.7:80:80",
        "999.1.1.1",
        "",
        ",",
        "a, b",
        "127.0.0.1, x",
        "x" * 5000,
    ],
)
async def test_garbage_in_front_makes_no_new_client(trusted, records, forwarded):
    caller = Caller(trusted, records)
    answer = await caller.post(headers={"x-forwarded-for": forwarded})
    assert answer.status_code == 200
    # Envoy takes what it can read as an address; else its peer is the client. A port is never a part of it.
    assert (await caller.entry())["clientIP"] in {"127.0.0.1", "unknown", "10.0.0.1", "2001:db8::/64", "192.0.2.7"}


# ---------------------------------------------------------------- Redis


async def test_names_that_look_alike_once_they_are_joined_are_counted_apart(scripted_caller, records):
    salt = secrets.token_hex(4)
    twins = [
        (f"{salt}/b", "c"),
        (salt, "b/c"),
        (f"{salt}:b", "c"),
        (salt, "b:c"),
        (f"{salt}}}{{", "c"),
        (salt, "}{c"),
    ]
    callers = [Caller(scripted_caller.stack, records, tenant, f"{account}-{salt}") for tenant, account in twins]
    for count, each in enumerate(callers, start=1):
        for _ in range(count):
            assert (await each.post()).status_code == 200
    for count, each in enumerate(callers, start=1):
        assert await each.settled() == count * USED, (each.tenant, each.account)


# ---------------------------------------------------------------- logs, headers, labels


async def test_control_characters_in_names_reach_no_log_and_no_header(loud, before, records, upstream):
    """A name with them is refused; as the name of a model it is data, and escaped wherever it is shown."""
    escape, lines = "\x1b[31mred", "a\r\nx-injected: 1\r\n\r\nHTTP/1.1 200 OK"
    names = (escape, lines, "\x00", "\x9b31m", "\u202eevil", "\u2028")
    paths = (f"/v1/models/{quote(lines)}:predict", f"/v2/models/{quote(escape)}/infer")
    async with before(loud) as stack:
        caller = Caller(stack, records)
        for name in names:
            answer = await caller.post(model=name)
            assert answer.status_code == 400, name
            assert answer.json()["error"]["param"] == "model"
            assert "x-injected" not in answer.headers
            token = stack.issuer.issue(f"x{name}y", tenant=caller.tenant)
            answer = await caller.post(headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 403, name
        for path in paths:
            assert (await caller.post(path=path)).status_code == 400
        (processor,) = stack.processors
        requests = 2 * len(names) + len(paths)
        await until(lambda: len(envoys.access_log(stack)) == requests, "all are in the access log")
        raw = processor.log_path.read_bytes() + (stack.run_dir / "envoy.log").read_bytes()
    assert not [byte for byte in raw if byte < 0x20 and byte != 0x0A]
    assert b"\x1b" not in raw
    for line in processor.log_path.read_text(encoding="ascii").splitlines():
        json.loads(line)


async def test_a_flood_of_new_identities_and_models_makes_no_new_label(scripted, records):
    before = await series(scripted)
    callers = [Caller(scripted, records) for _ in range(20)]
    for number, each in enumerate(callers):
        await each.post(model=f"model-{number}-{secrets.token_hex(4)}")
        assert await each.settled() >= 0
    after = await series(scripted)
    by_tenant = ("tokenweir_usage_tokens", "tokenweir_tenant_decisions", "tokenweir_limit_")
    assert not [name for name in after if any(each.account in name for each in callers)]
    new = {name for name in after - before if not name.startswith(by_tenant)}
    assert not [name for name in new if any(each.tenant in name for each in callers)]
    assert len(new) < 20


async def series(stack):
    (metrics,) = await scrape(stack)
    return set(metrics)
