"""Writes: versions, dry runs, notes, keys; and what they change."""

import asyncio

import pytest

from extproc.admin.access import Role
from extproc.ports.audit import AuditFilter

from .api import MINE, OTHER, Running, of

ANY = {"if-match": "*"}
NEW = {"if-none-match": "*"}
URL = f"/v1/tenants/{MINE}"
WRITES = [
    ("PUT", URL, {"json": {"sa_limit": 6}}),
    ("PATCH", URL, {"json": {"sa_limit": 6}}),
    ("DELETE", URL, {}),
    ("PUT", URL + "/suspension", {"json": {"reason": "unpaid"}}),
    ("POST", URL + "/limits", {"json": {"scope": "tenant", "window": "month", "amount": 9}}),
    ("POST", URL + "/top-ups", {"json": {"amount": 5, "until": "2026-03-01T13:00:00Z"}}),
    ("PUT", URL + "/service-accounts/a/suspension", {"json": {"reason": "x"}}),
]


async def with_tenant(**fields):
    running = Running()
    await running.tenants.update(MINE, {"sa_limit": 5, **fields})
    return running, await running.client()


@pytest.mark.parametrize(("method", "url", "more"), WRITES)
async def test_a_write_needs_the_version_that_it_is_meant_for(method, url, more):
    running, client = await with_tenant()
    before = await running.tenants.document(MINE)
    of(await client.request(method, url, **more), 428, "precondition-required")
    of(await client.request(method, url, headers={"if-match": '"7"'}, **more), 412, "stale-version")
    of(await client.request(method, url, headers=NEW, **more), 412, "stale-version")
    for wrong in ('W/"1"', "1", '"1", "2"', '"x"', "", '"-1"'):
        of(await client.request(method, url, headers={"if-match": wrong}, **more), 400)
    of(await client.request(method, url, headers={"if-none-match": '"1"'}, **more), 400)
    of(await client.request(method, url, headers=ANY | NEW, **more), 400)
    assert await running.tenants.document(MINE) == before
    etag = (await client.get(URL)).headers["etag"]
    assert etag == '"1"'
    answer = await client.request(method, url, headers={"if-match": etag}, **more)
    done = of(answer, 200)
    assert done["changes"]
    if method != "DELETE":
        assert answer.headers["etag"] == (await client.get(URL)).headers["etag"] == '"2"'


@pytest.mark.parametrize(("method", "url", "more"), WRITES)
async def test_a_dry_run_shows_the_changes_and_writes_nothing(method, url, more):
    running, client = await with_tenant()
    before = await running.tenants.document(MINE)
    answer = await client.request(method, url, params={"dry_run": "true"}, **more)
    dry = of(answer, 200)
    assert dry["dry_run"] is True
    assert dry["changes"]
    assert "etag" not in answer.headers
    assert await running.tenants.document(MINE) == before
    assert await running.tenants.audit.entries(AuditFilter(tenant=MINE), 10) == []
    done = of(await client.request(method, url, headers=ANY, **more), 200)
    if "top-ups" not in url:  # each has an id of its own
        assert done["changes"] == dry["changes"]


@pytest.mark.parametrize(("method", "url", "more"), WRITES)
async def test_a_write_is_audited_with_who_from_where_and_why(method, url, more):
    running, client = await with_tenant()
    by_query = method != "DELETE"
    params = {"note": "ticket 7"} if by_query else {}
    headers = {} if by_query else {"x-tokenweir-note": "ticket 7"}
    of(await client.request(method, url, params=params, headers=ANY | headers, **more), 200)
    entry = (await running.tenants.audit.entries(AuditFilter(tenant=MINE), 1))[0]
    (token,) = await running.store.tokens(1)
    assert (entry.actor.name, entry.actor.kind, entry.actor.origin) == (token.id, "token", "192.0.2.1")
    assert entry.note == "ticket 7"
    assert entry.before is not None
    shown = of(await client.get("/v1/audit", params={"tenant": MINE}), 200)["rows"][0]
    assert (shown["id"], shown["note"]) == (entry.id, "ticket 7")
    assert of(await client.get(f"/v1/audit/{entry.id}"), 200) == shown


async def test_a_note_that_can_not_be_or_comes_twice_is_refused():
    _, client = await with_tenant()
    for note in ("", "a\nb", "x" * 1001):
        of(await client.patch(URL, params={"note": note}, json={"sa_limit": 7}, headers=ANY), 400)
    twice = await client.patch(
        URL, params={"note": "a"}, json={"sa_limit": 7}, headers={**ANY, "x-tokenweir-note": "a"}
    )
    assert of(twice, 400)["field"] == "note"


async def test_a_tenant_is_created_replaced_patched_and_deleted():
    running = Running()
    client = await running.client()
    of(await client.get(URL), 404, "not-found")
    of(await client.put(URL, json={"sa_limit": 5}, headers=ANY), 412)
    made = await client.put(URL, json={"sa_limit": 5, "ip_limit": 2, "labels": {"team": "a"}}, headers=NEW)
    assert of(made, 200)["created"] is True
    assert made.headers["etag"] == '"1"'
    of(await client.put(URL, json={"sa_limit": 5}, headers=NEW), 412)
    replaced = of(await client.put(URL, json={"sa_limit": 6}, headers={"if-match": '"1"'}), 200)
    assert [(c["field"], c["before"], c["after"]) for c in replaced["changes"]] == [
        ("ip_limit", 2, None), ("labels", {"team": "a"}, None), ("sa_limit", 5, 6),
    ]  # fmt: skip
    of(await client.patch(URL, json={"sa_limit": None}, headers=ANY), 400)  # nothing would bind any more
    patched = of(await client.patch(URL, json={"ip_limit": 3, "sa_limit": None}, headers=ANY), 200)
    assert {c["field"] for c in patched["changes"]} == {"ip_limit", "sa_limit"}
    shown = of(await client.get(URL), 200)
    assert {name: shown["document"][name] for name in ("tenant_id", "ip_limit", "version")} == {
        "tenant_id": MINE, "ip_limit": 3, "version": 3,
    }  # fmt: skip
    deleted = of(await client.delete(URL, headers=ANY), 200)
    assert deleted["view"] is None
    assert await running.tenants.documents() == []


async def test_what_get_returns_can_be_put_back_and_changes_nothing():
    running, client = await with_tenant(
        limits=[{"scope": "tenant", "window": "month", "amount": 7}], odd_field={"of": "another program"}
    )
    answer = await client.get(URL)
    done = of(
        await client.put(URL, json=answer.json()["document"], headers={"if-match": answer.headers["etag"]}), 200
    )
    assert done["changes"] == []
    assert (await running.tenants.document(MINE))["version"] == 1


async def test_of_two_admins_at_once_one_is_told_that_the_other_was_first():
    running, client = await with_tenant()
    other = await running.client()
    answers = await asyncio.gather(
        *(
            each.patch(URL, json={"sa_limit": n}, headers={"if-match": '"1"'})
            for n, each in ((7, client), (8, other))
        )
    )
    assert sorted(each.status_code for each in answers) == [200, 412]
    assert (await running.tenants.document(MINE))["version"] == 2


async def test_limits_are_added_listed_and_removed():
    _, client = await with_tenant()
    narrow = {"scope": "service_account", "window": "hour", "unit": "requests", "endpoint": ["embeddings"]}
    of(await client.post(URL + "/limits", json={**narrow, "amount": 9, "note": "trial"}, headers=ANY), 200)
    of(
        await client.post(URL + "/limits", json={"scope": "tenant", "window": "day", "amount": 50}, headers=ANY),
        200,
    )
    answer = await client.get(URL + "/limits", params={"at_most": 2})
    page = of(answer, 200)
    assert answer.headers["etag"] == '"3"'
    rest = of(await client.get(URL + "/limits", params={"cursor": page["cursor"]}), 200)
    found = [(row["field"], row["scope"], row["window"], row["amount"]) for row in page["rows"] + rest["rows"]]
    assert found == [
        ("sa_limit", "service_account", "day", 5),
        ("limits[0]", "service_account", "hour", 9),
        ("limits[1]", "tenant", "day", 50),
    ]
    of(
        await client.delete(URL + "/limits", params={"scope": "service_account", "window": "hour"}, headers=ANY),
        404,
    )
    of(await client.delete(URL + "/limits", params=narrow, headers=ANY), 200)
    assert len(of(await client.get(URL + "/limits"), 200)["rows"]) == 2


async def test_a_limit_that_can_not_be_is_refused_by_the_field():
    _, client = await with_tenant()
    good = {"scope": "tenant", "window": "day", "amount": 5}
    for change, field in (
        ({"scope": "planet"}, "scope"), ({"window": "year"}, "window"), ({"amount": -1}, "amount"),
        ({"amount": "10k"}, "amount"), ({"amount": 10**12 + 1}, "amount"), ({"unit": "euros"}, "unit"),
        ({"endpoint": ["quota"]}, "endpoint"), ({"endpoint": ["x"]}, "endpoint[0]"), ({"amuont": 1}, "amuont"),
        ({"service_account": ""}, "service_account"), ({"model": ""}, "model"),
    ):  # fmt: skip
        problem = of(await client.post(URL + "/limits", json={**good, **change}, headers=ANY), 400)
        assert problem["field"] == field
    missing = of(await client.post(URL + "/limits", json={"scope": "tenant", "window": "day"}, headers=ANY), 400)
    assert missing["field"] == "amount"


async def test_accounts_are_suspended_listed_and_resumed():
    _, client = await with_tenant()
    account = URL + "/service-accounts/batch@zone/suspension"
    of(await client.put(account, json={"reason": "runaway"}, headers=ANY), 200)
    page = of(await client.get(URL + "/service-accounts"), 200)
    assert page == {
        "rows": [{"service_account": "batch@zone", "unlimited": False, "suspended": "runaway"}], "cursor": None,
    }  # fmt: skip
    of(await client.delete(account, headers=ANY), 200)
    assert of(await client.get(URL + "/service-accounts"), 200)["rows"] == []
    of(await client.delete(account, headers=ANY), 400)


async def test_a_tenant_is_suspended_and_resumed():
    running, client = await with_tenant()
    of(await client.put(URL + "/suspension", json={"reason": "unpaid"}, headers=ANY), 200)
    assert (await running.tenants.document(MINE))["suspended"] == "unpaid"
    of(await client.delete(URL + "/suspension", headers=ANY), 200)
    assert "suspended" not in await running.tenants.document(MINE)


TOP_UP = {"amount": 50, "until": "2026-03-02T00:00:00+01:00"}


async def test_a_repeated_top_up_with_one_key_adds_once():
    running, client = await with_tenant()
    headers = {"if-match": '"1"', "idempotency-key": "order-7"}
    first = await client.post(URL + "/top-ups", json=TOP_UP, headers=headers)
    assert of(first, 200)["changes"]
    again = await client.post(URL + "/top-ups", json=TOP_UP, headers=headers)
    assert of(again, 200)["changes"] == []
    assert again.headers["etag"] == first.headers["etag"]
    listed = of(await client.get(URL + "/top-ups"), 200)["rows"]
    assert [(row["id"], row["amount"], row["until"]) for row in listed] == [
        ("order-7", 50, "2026-03-01T23:00:00Z")
    ]
    other = await client.post(URL + "/top-ups", json={**TOP_UP, "amount": 51}, headers=headers)
    assert of(other, 409, "key-used")["field"] == "Idempotency-Key"
    of(await client.post(URL + "/top-ups", json=TOP_UP, headers={**ANY, "idempotency-key": "a b"}), 400)
    assert len((await running.tenants.document(MINE))["top_ups"]) == 1


async def test_without_a_key_each_top_up_adds_and_has_an_id_to_cancel_it_by():
    _, client = await with_tenant()
    for _ in range(2):
        of(await client.post(URL + "/top-ups", json=TOP_UP, headers=ANY), 200)
    rows = of(await client.get(URL + "/top-ups"), 200)["rows"]
    assert len({row["id"] for row in rows}) == 2
    of(await client.delete(f"{URL}/top-ups/{rows[0]['id']}", headers=ANY), 200)
    assert of(await client.get(URL + "/top-ups"), 200)["rows"] == rows[1:]
    of(await client.delete(f"{URL}/top-ups/{rows[0]['id']}", headers=ANY), 404)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"until": "2026-03-02"}, "until"), ({"until": "2026-03-02T00:00:00"}, "until"),
        ({"until": "2026-02-28T00:00:00Z"}, "until"), ({"until": 5}, "until"), ({"amount": 0}, "amount"),
        ({"scope": "x"}, "scope"), ({"endpoint": ["quota"]}, "endpoint"),
    ],
)  # fmt: skip
async def test_a_top_up_that_can_not_be_is_refused_by_the_field(change, field):
    _, client = await with_tenant()
    problem = of(await client.post(URL + "/top-ups", json={**TOP_UP, **change}, headers=ANY), 400)
    assert problem["field"] == field


async def test_a_top_up_that_raises_nothing_is_refused():
    _, client = await with_tenant()
    of(await client.post(URL + "/top-ups", json={**TOP_UP, "window": "month"}, headers=ANY), 400)


async def test_tenants_are_listed_in_pages_and_by_filters():
    running = Running()
    client = await running.client()
    for number in range(5):
        fields = {"sa_limit": number, "labels": {"team": "ab"[number % 2]}}
        await running.tenants.update(f"t{number}", fields | ({"suspended": "x"} if number == 3 else {}))
    names, cursor = [], None
    while True:
        page = of(
            await client.get("/v1/tenants", params={"at_most": 2} | ({"cursor": cursor} if cursor else {})), 200
        )
        names += [row["tenant"] for row in page["rows"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert names == ["t0", "t1", "t2", "t3", "t4"]
    for params, wanted in (
        ({"name": "t[12]"}, ["t1", "t2"]), ({"label": "team=b"}, ["t1", "t3"]), ({"suspended": "true"}, ["t3"]),
    ):  # fmt: skip
        assert [row["tenant"] for row in (await client.get("/v1/tenants", params=params)).json()["rows"]] == wanted


async def test_pages_of_a_callers_own_tenants():
    running = Running()
    for name in ("a", "b", "c", OTHER):
        await running.tenants.update(name, {"sa_limit": 1})
    client = await running.client(Role.TEAM_LEAD, "a", "b", "c", "unheard-of")
    first = of(await client.get("/v1/tenants", params={"at_most": 2}), 200)
    assert [row["tenant"] for row in first["rows"]] == ["a", "b"]
    rest = of(await client.get("/v1/tenants", params={"at_most": 2, "cursor": first["cursor"]}), 200)
    assert ([row["tenant"] for row in rest["rows"]], rest["cursor"]) == (["c"], None)


async def test_scopes_are_taken_with_their_parts_in_any_order_and_stored_in_one():
    running, client = await with_tenant()
    limit = {"scope": "model+client_ip", "window": "month", "amount": 9}
    of(await client.post(URL + "/limits", json=limit, headers=ANY), 200)
    document = {"sa_limit": 5, "limits": [{"scope": "client_ip + service_account", "window": "day", "amount": 4}]}
    assert (await running.tenants.document(MINE))["limits"][0]["scope"] == "client_ip+model"
    of(await client.put(URL, json=document, headers=ANY), 200)
    assert (await running.tenants.document(MINE))["limits"][0]["scope"] == "service_account+client_ip"
    which = {"scope": "client_ip+service_account", "window": "day"}
    of(await client.delete(URL + "/limits", params=which, headers=ANY), 200)
    assert "limits" not in await running.tenants.document(MINE)
    of(await client.post(URL + "/limits", json=limit | {"scope": "planet"}, headers=ANY), 400)
