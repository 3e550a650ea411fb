"""What every request has in common: errors, bounds, pace, ids, logs."""

import asyncio
import json
import logging

import httpx
import pytest

from extproc.admin.access import Role
from extproc.admin.api.app import Bounds
from extproc.admin.api.pace import Pace
from extproc.ports.base import StoreError

from .api import MINE, Running, of

ANY = {"if-match": "*"}
NEW = {"if-none-match": "*"}


@pytest.mark.parametrize("path", ["/v1/tenants", "/v1/unheard-of", "/", "/v1/tenants/a/b/c/d"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dHc6dHc=", "twa_abc"])
async def test_without_a_token_nothing_is_said_but_how_to_send_one(path, header):
    headers = {"authorization": header} if header is not None else {}
    answer = await Running().bearing(None, **headers).get(path)
    of(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="tokenweir"'


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token", "token"])
async def test_a_machines_token_may_be_sent_so_that_no_gateway_takes_it_for_a_jwt(scheme):
    running = Running()
    token = await running.token(Role.ADMIN)
    of(await running.bearing(None, authorization=f"{scheme} {token}").get("/v1/me"), 200)


async def test_two_tokens_in_one_request_are_none():
    running = Running()
    token = await running.token(Role.ADMIN)
    headers = [(b"authorization", f"Bearer {token}".encode())] * 2
    answer = await running.bearing(None).get("/v1/me", headers=headers)
    assert of(answer, 400)["field"] == "authorization"


async def test_health_and_the_document_need_no_token():
    client = Running().bearing(None)
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/openapi.json")).json()["openapi"] == "3.1.0"


async def test_it_is_not_ready_while_its_store_is_away():
    running = Running()
    running.fault = StoreError("away", transient=True)
    assert (await running.bearing(None).get("/readyz")).status_code == 503
    assert (await running.bearing(None).get("/healthz")).status_code == 200


async def test_a_path_or_method_that_is_none_is_named():
    client = await Running().client()
    of(await client.get("/v1/nothing"), 404, "not-found")
    answer = await client.post("/v1/me")
    of(answer, 405, "method")
    assert answer.headers["allow"] == "GET"
    answer = await client.post("/v1/tenants/a")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "PUT", "PATCH", "DELETE"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("at_most=0", "at_most"), ("at_most=1001", "at_most"), ("at_most=x", "at_most"),
        ("at_most=", "at_most"), ("at_most=1&at_most=2", "at_most"), ("unknown=1", "unknown"), ("$where=1", "$where"),
        ("mode=hard", "mode"), ("suspended=perhaps", "suspended"), ("suspended=null", "suspended"), ("name=" + "x" * 300, "name"),
    ],
)  # fmt: skip
async def test_a_parameter_that_can_not_be_is_refused_by_its_name(query, field):
    problem = of(await (await Running().client()).get(f"/v1/tenants?{query}"), 400, "invalid")
    assert problem["field"] == field


@pytest.mark.parametrize("cursor", ["x", "%00", "bnVsbA", "W10", "ä", "e30", "A" * 5000])
async def test_a_cursor_that_is_none_is_refused(cursor):
    client = await Running().client()
    for path in ("/v1/tenants", "/v1/audit"):
        of(await client.get(path, params={"cursor": cursor}), 400, "invalid")


@pytest.mark.parametrize(
    "day",
    ["2026-02-30", "2026-1-1", "20260101", "yesterday", "2026-01-01T00:00:00Z", "'; drop", "=1+1", "2026-W01-1"],
)
async def test_a_date_that_is_none_is_refused_by_its_name(day):
    problem = of(await (await Running().client()).get("/v1/usage/report", params={"since": day}), 400)
    assert problem["field"] == "since"


@pytest.mark.parametrize(
    "at", ["2026-01-01", "2026-01-01T00:00:00", "now", "2026-13-01T00:00:00Z", "0.5", "1767225600"]
)
async def test_an_instant_that_is_none_or_has_no_zone_is_refused_by_its_name(at):
    problem = of(await (await Running().client()).get("/v1/audit", params={"since": at}), 400)
    assert problem["field"] == "since"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None), (b"{", None), (b"null", None), (b"[]", None), (b'"text"', None), (b"5", None), (b"{} {}", None),
        (b'{"sa_limit": NaN}', None), (b'{"labels": {"a": {"b": 1}}, "sa_limit": 5}', "labels[...]"), (b'{"sa_limit": Infinity}', None), (b'{"sa_limit": -Infinity}', None),
        (b'{"sa_limit": 1e400}', None), (b'{"sa_limit": 1.5}', "sa_limit"), (b'{"sa_limit": -1}', "sa_limit"),
        (b'{"sa_limit": "12"}', "sa_limit"), (b'{"sa_limit": true}', "sa_limit"), (b'{"sa_limit": 1e30}', "sa_limit"),
        (b'{"sa_limt": 5}', "sa_limt"), (b'{"$set": {"sa_limit": 5}}', "$set"), (b'{"a.b": 5}', "a.b"),
        (b'{"": 5}', ""), (b'{"tenant_id": "other", "sa_limit": 5}', "tenant_id"),
        (b'{"timezone": "Mars/Olympus", "sa_limit": 5}', "timezone"), (b'{"mode": "hard", "sa_limit": 5}', "mode"),
        (b'{"limits": [{"scope": "planet"}]}', "limits[0].scope"), (b'{"limits": {"$gt": 0}}', "limits"),
        (b"\xff\xfe", None), (b'{"suspended": "a\\u0000b", "sa_limit": 5}', "suspended"),
    ],
)  # fmt: skip
async def test_a_document_that_can_not_be_is_refused_and_nothing_is_written(body, field):
    running = Running()
    client = await running.client()
    answer = await client.put(
        f"/v1/tenants/{MINE}", content=body, headers={**NEW, "content-type": "application/json"}
    )
    problem = of(answer, 400, "invalid")
    if field:
        assert problem.get("field") == field, problem
    assert await running.tenants.documents() == []


async def test_json_that_is_deep_is_refused():
    client = await Running().client()
    for depth in (40, 300, 80_000):
        body = b'{"labels": ' * depth + b"1" + b"}" * depth
        headers = {**NEW, "content-type": "application/json"}
        of(await client.put(f"/v1/tenants/{MINE}", content=body, headers=headers), 400)


async def test_a_body_of_another_kind_or_where_none_belongs_is_refused():
    client = await Running().client()
    of(await client.put("/v1/tenants/a", content=b"{}", headers={**NEW, "content-type": "text/plain"}), 415)
    of(await client.put("/v1/tenants/a", content=b"{}", headers=NEW), 415)
    answer = await client.request("DELETE", "/v1/tenants/a", content=b"{}", headers=ANY)
    of(answer, 400)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused(announced):
    client = await Running().client()

    async def pieces():
        for _ in range(200):
            yield b" " * 10_000

    content = b" " * 10_000_000 if announced else pieces()
    headers = {**NEW, "content-type": "application/json"}
    problem = of(await client.put("/v1/tenants/a", content=content, headers=headers), 413, "too-large")
    assert problem["detail"] == "a body has at most 1048576 bytes"


async def test_a_body_that_does_not_arrive_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("extproc.admin.api.reading._BODY_S", 0.05)

    async def stalls():
        yield b"{"
        await asyncio.sleep(30)

    client = await Running().client()
    headers = {**NEW, "content-type": "application/json"}
    of(await client.put("/v1/tenants/a", content=stalls(), headers=headers), 408, "timeout")


@pytest.mark.parametrize("name", ["a%0ab", "%00", "%20a", "x" * 257, "a%1b[31m"])
async def test_a_name_that_is_none_is_refused(name):
    client = await Running().client()
    headers = {**NEW, "content-type": "application/json"}
    of(await client.put(f"/v1/tenants/{name}", content=b'{"sa_limit": 1}', headers=headers), 400)
    of(await client.get(f"/v1/tenants/{name}"), 400)


async def test_a_path_that_is_no_text_is_refused():
    of(await (await Running().client()).get("/v1/tenants/%ff"), 400)


@pytest.mark.parametrize(
    "name", ["$where", "a/b", "a.b", "=cmd()", "ä ö", "..%2f", "?x", "#", "%41", "{tenant}", "*"]
)
async def test_any_printable_name_is_a_name_and_nothing_else(name):
    running = Running()
    client = await running.client()
    url = httpx.URL(f"http://admin/v1/tenants/{quoted(name)}")
    assert of(await client.put(url, json={"sa_limit": 5}, headers=NEW), 200)["tenant"] == name
    assert of(await client.get(url), 200)["document"]["tenant_id"] == name
    url = httpx.URL(f"http://admin/v1/tenants/{quoted(name)}/service-accounts/{quoted(name)}/suspension")
    of(await client.put(url, json={"reason": "x"}, headers=ANY), 200)
    (document,) = await running.tenants.documents()
    assert document["service_accounts"] == [{"name": name, "suspended": "x"}]


def quoted(name):
    from urllib.parse import quote

    return quote(name, safe="")


async def test_a_caller_with_too_many_requests_waits_and_others_do_not():
    now = [0.0]
    running = Running(bounds=Bounds(requests_per_minute=3), clock=lambda: now[0])
    client, other = await running.client(), await running.client()
    for _ in range(3):
        of(await client.get("/v1/me"), 200)
    answer = await client.get("/v1/me")
    of(answer, 429, "too-many-requests")
    assert answer.headers["retry-after"] == "20"
    of(await other.get("/v1/me"), 200)
    now[0] += 20
    of(await client.get("/v1/me"), 200)


async def test_an_address_that_tries_tokens_waits_and_good_ones_behind_it_are_served():
    running = Running(bounds=Bounds(requests_per_minute=1000, failures_per_minute=5), clock=lambda: 0.0)
    known = await running.client()
    of(await known.get("/v1/me"), 200)
    guesser = running.bearing("twa_" + "x" * 43)
    for _ in range(5):
        of(await guesser.get("/v1/me"), 401)
    answer = await guesser.get("/v1/me")
    of(answer, 429, "too-many-requests")
    assert answer.headers["retry-after"]
    of(await known.get("/v1/me"), 200)


async def test_refused_tokens_are_counted_by_the_address_that_the_proxy_in_front_has_seen():
    running = Running(bounds=Bounds(failures_per_minute=1, hops=1), clock=lambda: 0.0)
    for sent, status in (("1.1.1.1, 192.0.2.7", 401), ("2.2.2.2, 192.0.2.7", 429), ("192.0.2.7, 192.0.2.8", 401)):
        client = running.bearing("twa_" + "x" * 43, **{"x-forwarded-for": sent})
        assert (await client.get("/v1/me")).status_code == status
    direct = Running(bounds=Bounds(failures_per_minute=1), clock=lambda: 0.0)
    for sent, status in (("192.0.2.7", 401), ("192.0.2.8", 429)):
        client = direct.bearing("twa_" + "x" * 43, **{"x-forwarded-for": sent})
        assert (await client.get("/v1/me")).status_code == status


def test_a_flood_of_callers_takes_bounded_memory():
    pace = Pace(10, lambda: 0.0, at_most=100)
    for number in range(10_000):
        pace.take(f"caller {number}")
    assert len(pace._buckets) == 100


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, None, "x" * 129, "a b", "a\x7f", ""])
async def test_every_answer_has_a_request_id_that_of_the_client_if_it_can_be_one(given):
    headers = {"x-request-id": given} if given is not None else {}
    answer = await Running().bearing(None, **headers).get("/v1/me")
    known = given in {"abc-123", "x" * 128}
    assert (answer.headers["x-request-id"] == given) is known
    assert answer.headers["x-request-id"]


async def test_no_answer_is_cached_or_open_to_other_origins():
    client = await Running().client()
    for answer in (await client.get("/v1/me"), await client.get("/v1/x")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    answer = await client.options(
        "/v1/me", headers={"origin": "https://x", "access-control-request-method": "GET"}
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_log_says_who_called_what_and_no_secret(caplog):
    caplog.set_level(logging.INFO)
    running = Running()
    token = await running.token(Role.ADMIN)
    client = running.bearing(token)
    await client.put(
        "/v1/tenants/a?note=hush-note",
        json={"sa_limit": 5, "note": "hush-body"},
        headers={**NEW, "x-secret": "hush"},
    )
    await running.bearing("twa_" + "x" * 43).get("/v1/me")
    lines = [
        json.dumps(vars(record), default=str) for record in caplog.records if record.name.startswith("extproc")
    ]
    (line,) = [each for each in caplog.records if getattr(each, "operation", None) == "putTenant"]
    (stored,) = await running.store.tokens(1)
    assert (line.method, line.caller, line.status) == ("PUT", stored.id, 200)
    for secret in (token, "hush", "x" * 43):
        assert not [each for each in lines if secret in each]


@pytest.mark.parametrize(("transient", "status"), [(True, 503), (False, 502)])
async def test_a_store_that_fails_is_a_problem_of_its_own(transient, status):
    running = Running()
    client = await running.client()

    async def document(tenant):
        raise StoreError("MongoDB can't be reached: no answer", transient=transient)

    running.tenants.document = document
    answer = await client.get("/v1/tenants/a")
    problem = of(answer, status)
    assert problem["detail"] == "MongoDB can't be reached: no answer"
    assert ("retry-after" in answer.headers) is transient


async def test_a_fault_of_the_program_is_logged_and_not_told(caplog):
    running = Running()
    client = await running.client()

    async def document(tenant):
        raise ZeroDivisionError("a secret detail")

    running.tenants.document = document
    problem = of(await client.get("/v1/tenants/a"), 500, "fault")
    assert "secret" not in json.dumps(problem)
    assert "a secret detail" in caplog.text
