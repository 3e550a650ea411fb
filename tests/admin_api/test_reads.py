"""What is read: usage, requests, why something is denied, the health of the stores."""

import asyncio
import csv
import io

import pytest

from extproc.admin.api.services import ReplayBounds
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
        f"/v1/tenants/{MINE}/explain?service_account=a",
    ):
        of(await client.get(path, params={"client_ip": "1.2.3", "service_account": "a"}), 400)


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
