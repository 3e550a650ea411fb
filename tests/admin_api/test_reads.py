"""What is read: usage, requests, why something is denied, the health of the stores."""

import asyncio
import csv
import io
from dataclasses import replace

import pytest

from extproc.admin.access import Role
from extproc.admin.api.services import ReplayBounds
from extproc.admin.doctor import Doctor
from extproc.ports.base import StoreError
from extproc.ports.inspection import Inspection
from extproc.ports.reports import SlowReportError

from .api import MINE, OTHER, Running, entry, of


async def with_usage():
    running = Running()
    await running.ledger.append(
        [
            entry(name="r-1", price=1_500_000_001),
            entry(name="r-2", account="=cmd()", model="big"),
            entry(name="r-3", tenant=OTHER),
            entry(name="r-4", denied=True),
        ]
    )
    return running, await running.client()


async def test_a_report_has_tokens_and_exact_money_per_period_and_name():
    _, client = await with_usage()
    found = of(await client.get("/v1/usage/report", params={"by": "tenant", "grain": "month"}), 200)
    assert (found["incomplete"], found["cursor"]) == (False, None)
    assert [
        (row["period"], row["name"], row["usage"], row["requests"], row["denied"]) for row in found["rows"]
    ] == [
        ("2026-03", MINE, 52, 2, 1),
        ("2026-03", OTHER, 26, 1, 0),
    ]
    first = found["rows"][0]
    assert (first["price"], first["price_billionths"], first["currency"]) == ("1.500000001", 1_500_000_001, "EUR")


async def test_a_report_has_pages():
    _, client = await with_usage()
    names, cursor = [], None
    while True:
        params = {"by": "service-account", "at_most": 1} | ({"cursor": cursor} if cursor else {})
        page = of(await client.get("/v1/usage/report", params=params), 200)
        names += [(row["tenant"], row["name"]) for row in page["rows"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(names) == [(MINE, "=cmd()"), (MINE, "batch@zone"), (OTHER, "batch@zone")]


async def test_csv_has_no_formulas_exact_prices_and_its_next_page_in_a_header():
    _, client = await with_usage()
    params = {"by": "service-account", "tenant": MINE, "format": "csv", "at_most": 1}
    first = await client.get("/v1/usage/report", params=params)
    assert first.headers["content-type"].startswith("text/csv")
    rest = await client.get("/v1/usage/report", params=params | {"cursor": first.headers["x-next-cursor"]})
    assert "x-next-cursor" not in rest.headers
    rows = [row for answer in (first, rest) for row in csv.DictReader(io.StringIO(answer.text))]
    assert {row["name"] for row in rows} == {"'=cmd()", "batch@zone"}
    assert {row["price"] for row in rows} == {"1.500000001", "0.000000000"}


async def test_the_largest_are_ranked_by_any_sum():
    _, client = await with_usage()
    for measure, by, wanted in (("usage", "tenant", MINE), ("price", "model", "tiny"), ("denied", "tenant", MINE)):
        rows = of(await client.get("/v1/usage/top", params={"by": by, "measure": measure, "at_most": 1}), 200)[
            "rows"
        ]
        assert [row["name"] for row in rows] == [wanted]


async def test_what_a_tenant_uses_now():
    _, client = await with_usage()
    now = of(await client.get(f"/v1/tenants/{MINE}/usage"), 200)
    assert (now["date"], now["month"], now["today"]["usage"], now["this_month"]["usage"]) == (
        "2026-03-01", "2026-03", 52, 52,
    )  # fmt: skip
    assert {row["name"] for row in now["models"]} == {"tiny", "big"}
    one = of(await client.get(f"/v1/tenants/{MINE}/usage", params={"service_account": "batch@zone"}), 200)
    assert one["today"]["usage"] == 26


async def test_a_report_that_takes_too_long_says_so():
    running, client = await with_usage()

    async def slow(*args):
        raise SlowReportError(20)

    running.sums.report = slow
    problem = of(await client.get("/v1/usage/report"), 503, "too-slow")
    assert "took longer than 20 s" in problem["detail"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"by": "planet"}, "by"), ({"grain": "year"}, "grain"), ({"format": "xml"}, "format"),
        ({"endpoint": "x"}, "endpoint"), ({"since": "2026-03-02", "until": "2026-03-01"}, "since"),
        ({"at_most": "10001"}, "at_most"), ({"measure": "usage"}, "measure"),
    ],
)  # fmt: skip
async def test_a_report_that_can_not_be_is_refused_by_the_parameter(params, field):
    _, client = await with_usage()
    assert of(await client.get("/v1/usage/report", params=params), 400)["field"] == field


async def test_an_address_that_is_none_is_refused():
    _, client = await with_usage()
    for path in (
        "/v1/usage/report",
        "/v1/usage/top",
        "/v1/requests",
        f"/v1/tenants/{MINE}/explain?service_account=a",
    ):
        of(await client.get(path, params={"client_ip": "1.2.3", "service_account": "a"}), 400)


async def test_a_denied_request_is_found_by_the_id_that_its_client_saw():
    _, client = await with_usage()
    (story,) = of(await client.get("/v1/requests/q-r-4"), 200)["requests"]
    assert (story["outcome"], story["tenant"], story["service_account"]) == ("denied", MINE, "batch@zone")
    (limit,) = [each for each in story["limits"] if each["refused"]]
    assert (limit["amount"], limit["used"], limit["needed"]) == (30, 24, 50)
    problem = of(await client.get("/v1/requests/unheard-of"), 404, "not-found")
    assert "counted, but not stored by itself" in problem["detail"]


async def test_requests_are_listed_by_filters_and_pages():
    _, client = await with_usage()
    for params, wanted in (
        ({"outcome": "denied"}, ["r-4"]), ({"model": "big"}, ["r-2"]), ({"tenant": OTHER}, ["r-3"]),
        ({"since": "2026-03-01T12:00:01Z"}, []), ({"until": "2026-03-01T12:00:00Z"}, []),
        ({"service_account": "=cmd()"}, ["r-2"]),
    ):  # fmt: skip
        found = of(await client.get("/v1/requests", params=params), 200)
        assert [row["id"] for row in found["rows"]] == wanted
    first = of(await client.get("/v1/requests", params={"at_most": 3}), 200)
    rest = of(await client.get("/v1/requests", params={"cursor": first["cursor"]}), 200)
    assert sorted(row["id"] for row in first["rows"] + rest["rows"]) == ["r-1", "r-2", "r-3", "r-4"]


async def test_the_request_of_another_tenant_is_as_unknown_as_one_that_never_was():
    running, _ = await with_usage()
    lead = await running.client(Role.TEAM_LEAD, MINE)
    of(await lead.get("/v1/requests/r-1"), 200)
    details = {of(await lead.get(f"/v1/requests/{name}"), 404)["detail"] for name in ("r-3", "unheard-of")}
    assert len(details) == 1


async def test_a_verdict_names_the_limit_that_says_no_and_the_last_denials():
    running, client = await with_usage()
    await running.tenants.update(MINE, {"sa_limit": 100})
    url = f"/v1/tenants/{MINE}/explain"
    passes = of(
        await client.get(url, params={"service_account": "batch@zone", "tokens": 60, "output_tokens": 40}), 200
    )
    assert passes["verdict"]["passes"] is True
    assert [story["id"] for story in passes["denials"]] == ["r-4"]
    denied = of(await client.get(url, params={"service_account": "batch@zone", "tokens": 101}), 200)["verdict"]
    assert (denied["passes"], denied["obstacle"]["scope"], denied["obstacle"]["needed"]) == (
        False, "service_account", 101,
    )  # fmt: skip
    plain = of(await client.get(url, params={"service_account": "batch@zone"}), 200)
    assert plain["verdict"] is None
    (limit,) = plain["limits"]
    assert (limit["amount"], limit["topped_up"], limit["used"], limit["remaining"]) == (100, 0, 0, 100)


async def test_top_ups_are_shown_apart_from_the_amount():
    running, client = await with_usage()
    await running.tenants.update(MINE, {"sa_limit": 100})
    top_up = {"amount": 50, "until": "2026-03-02T00:00:00Z"}
    of(await client.post(f"/v1/tenants/{MINE}/top-ups", json=top_up, headers={"if-match": "*"}), 200)
    found = of(await client.get(f"/v1/tenants/{MINE}/explain", params={"service_account": "a"}), 200)
    (limit,) = found["limits"]
    assert (limit["amount"], limit["topped_up"], limit["remaining"]) == (100, 50, 150)


async def test_a_simulation_says_who_would_have_been_denied_and_changes_nothing():
    running, client = await with_usage()
    before = await running.tenants.documents()
    proposal = {"tenants": [{"tenant_id": MINE, "sa_limit": 1}]}
    found = of(await client.post("/v1/simulate", params={"tenant": MINE}, json=proposal), 200)
    assert found["requests"] == 2  # the third one was denied
    assert {each["service_account"] for each in found["denied_callers"]} == {"batch@zone", "=cmd()"}
    top = of(await client.post("/v1/simulate", params={"top": 1}, json=proposal), 200)
    assert (len(top["denied_callers"]), top["more_denied_callers"]) == (1, 1)
    assert await running.tenants.documents() == before


@pytest.mark.parametrize("body", [{}, {"tenants": []}, {"tenants": [{}]}, {"default": {"top_ups": []}}, {"x": 1}])
async def test_a_proposal_that_can_not_be_is_refused(body):
    _, client = await with_usage()
    of(await client.post("/v1/simulate", json=body), 400)


async def test_a_simulation_is_bounded_and_one_at_a_time():
    running = Running(replay=ReplayBounds(entries=2, seconds=5))
    await running.ledger.append([entry(name=f"r-{number}") for number in range(3)])
    client = await running.client()
    proposal = {"default": {"sa_limit": 5}}
    assert of(await client.post("/v1/simulate", json=proposal), 400)["field"] == "since"
    async with running.services.replaying:
        answer = await client.post("/v1/simulate", json=proposal)
    of(answer, 429, "busy")
    assert answer.headers["retry-after"] == "5"


async def test_a_simulation_that_takes_too_long_is_ended():
    running = Running(replay=ReplayBounds(seconds=0.01))
    client = await running.client()

    async def endless(wanted):
        while True:
            await asyncio.sleep(0.005)
            yield entry()

    running.admin.replay = endless
    assert of(await client.post("/v1/simulate", json={"default": {"sa_limit": 5}}), 400)["field"] == "since"


async def test_the_health_of_the_stores_is_for_those_who_see_all_tenants():
    running, client = await with_usage()
    found = of(await client.get("/v1/health"), 200)
    assert isinstance(found["sound"], bool)
    assert all(set(each) == {"level", "part", "what", "consequence", "fix"} for each in found["findings"])
    of(await (await running.client(Role.VIEWER, MINE)).get("/v1/health"), 403)


async def test_a_store_that_is_away_is_a_finding_and_no_error_of_the_api():
    running, client = await with_usage()

    async def away():
        raise StoreError("Redis can't be reached", transient=True)

    doctor = Doctor(Inspection(away, away), running.counters, running._now)
    running.api.services = replace(running.services, doctor=doctor)
    found = of(await client.get("/v1/health"), 200)
    assert found["sound"] is False


async def test_the_limits_of_all_tenants_are_listed_in_pages_and_a_team_lead_sees_those_of_its_own():
    running = Running()
    await running.tenants.update(OTHER, {"ratelimitIPPerMinute": 60})
    await running.tenants.update(
        MINE, {"sa_limit": 5, "limits": [{"scope": "tenant", "window": "day", "amount": 7}]}
    )
    client = await running.client()
    first = of(await client.get("/v1/limits", params={"at_most": 2, "own": "true"}), 200)
    assert [(each["tenant"], each["field"]) for each in first["rows"]] == [(MINE, "sa_limit"), (MINE, "limits[0]")]
    rest = of(await client.get("/v1/limits", params={"own": "true", "cursor": first["cursor"]}), 200)
    assert ([each["amount"] for each in rest["rows"]], rest["cursor"]) == ([60], None)
    lead = await running.client(Role.TEAM_LEAD, OTHER)
    assert {each["tenant"] for each in of(await lead.get("/v1/limits"), 200)["rows"]} == {OTHER}
    one = of(await client.get("/v1/limits", params={"scope": "tenant", "unit": "tokens"}), 200)["rows"]
    assert [each["field"] for each in one] == ["limits[0]"]
    of(await client.get("/v1/limits", params={"cursor": "x"}), 400)
