"""The ledger out of the database, and replayed."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Entry
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.identity import Identity
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from tests.changing import replace

pytestmark = pytest.mark.system

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def made(number, tokens=10, *, tenant="acme", account="sa", outcome=Outcome.SETTLED, **further):
    denied = outcome is Outcome.DENIED
    at = START + timedelta(minutes=number)
    fields = {
        "id": f"r{number}",
        "request_id": f"q{number}",
        "identity": Identity(tenant, account, "10.0.0.1"),
        "date": "2026-03-01",
        "endpoint": "chat_completions",
        "model": "m",
        "stream": False,
        "outcome": outcome,
        "reason": "usage",
        "held": 0 if denied else tokens + 1,
        "charge": 0 if denied else tokens,
        "usage": NO_USAGE if denied else Usage(tokens - tokens // 2, tokens // 2, total=tokens),
        "status": 200,
        "admitted_at": at,
        "ended_at": at + timedelta(seconds=0 if denied else 1),
        "cost": Cost(tokens - tokens // 2, tokens // 2 + 1),
    }
    return Entry(**(fields | further))


PAST = [
    made(1, 60),
    made(2, 50, shadow=("tenant:day~shadow",), price=1_500_000_000),
    made(3, 30, account="other"),
    made(4, 40, outcome=Outcome.DENIED),
    made(5, 45, tenant="elsewhere", account="far"),
    made(6, 5),
]
LIMIT = {"tenant_id": "acme", "sa_limit": 100}


@pytest.fixture
def ledger(stores, database):
    """Puts entries into the database's ledger."""

    async def append(entries):
        mongo = Mongo(MongoOptions(stores.mongo, database.name))
        await MongoLedger(mongo).append(entries)
        await mongo.aclose()

    def call(entries=PAST):
        asyncio.run(append(entries))

    return call


@pytest.fixture
def file(tmp_path):
    def call(content, name="limits.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return call


SUMMARY = {
    "requests": 5,
    "tokens": 190,
    "denied": 1,
    "denied_tokens": 50,
    "newly_admitted": 0,
    "newly_admitted_tokens": 0,
}
DENIED = {
    "tenant": "acme",
    "service_account": "sa",
    "client_ip": "10.0.0.1",
    "limit": "service_account:day",
    "requests": 1,
    "tokens": 50,
    "first": "2026-03-01T12:02:00Z",
    "last": "2026-03-01T12:02:00Z",
}


def test_proposed_limits_are_tried_on_the_ledger(run, ledger, file):
    ledger()
    done = run("simulate", "--limits", file(LIMIT), "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json == {"summary": SUMMARY, "denied": [DENIED], "entries_gone_before": None}
    table = run("simulate", "--limits", file(LIMIT))
    assert table.rows == [
        [name.replace("_", " ") for name in SUMMARY],
        [str(value) for value in SUMMARY.values()],
        ["tenant", "service account", "client IP", "limit", "requests", "tokens", "first", "last"],
        [str(value) for value in DENIED.values()],
    ]


def test_who_was_denied_and_would_not_be_is_counted(run, ledger, file):
    ledger()
    summary = run("simulate", "--limits", file({"tenant_id": "acme", "sa_limit": 1000}), "--json").json["summary"]
    assert (summary["denied"], summary["newly_admitted"], summary["newly_admitted_tokens"]) == (0, 1, 41)


def test_tenants_without_a_proposal_keep_their_stored_limits_or_get_the_proposed_default(
    run, ledger, file, database
):
    ledger()
    # Proposed: nothing for `acme`, no room by default.
    database.tenantLimitation.insert_one(dict(LIMIT))
    done = run("simulate", "--limits", file({"default": {"sa_limit": 0}}), "--json").json
    assert {(row["tenant"], row["tokens"]) for row in done["denied"]} == {("acme", 50), ("elsewhere", 45)}
    named = {"default": {"sa_limit": 0}, "tenants": [LIMIT | {"sa_limit": 0}, LIMIT | {"tenant_id": "elsewhere"}]}
    done = run("simulate", "--limits", file(named), "--json").json
    assert {row["tenant"] for row in done["denied"]} == {"acme"}
    assert done["summary"]["denied"] == 4


def test_stored_limits_that_can_not_be_used_are_told_of(run, ledger, file, database):
    ledger()
    database.tenantLimitation.insert_one({"tenant_id": "elsewhere", "sa_limit": -1})
    done = run("simulate", "--limits", file(LIMIT))
    assert done.err.startswith(
        "Fields of the stored limits of tenant 'elsewhere' can't be used ('sa_limit' must be"
    )


@pytest.mark.parametrize(
    ("options", "requests"),
    [(["--tenant", "acme"], 4), (["--since", "2026-03-02"], 0), (["--until", "2026-03-01"], 5), ([], 5)],
)
def test_filters_choose_what_is_replayed_from_the_database_and_from_a_file(run, ledger, file, options, requests):
    ledger()
    exported = file(run("usage", "export").out, "ledger.jsonl")
    for source in ([], ["--ledger", exported]):
        done = run("simulate", "--limits", file(LIMIT), "--json", *options, *source)
        assert (done.code, done.json["summary"]["requests"]) == (0, requests)


def test_the_largest_come_first_and_top_bounds_them(run, ledger, file):
    ledger([made(n, n, account=f"sa{n}") for n in range(1, 8)])
    done = run("simulate", "--limits", file({"tenant_id": "acme", "sa_limit": 0}), "--top", "2", "--json")
    assert [row["service_account"] for row in done.json["denied"]] == ["sa7", "sa6"]
    assert done.err == "There is more: these are the first 2 of 7 rows. Use --top.\n"


def test_nobody_denied_is_no_failure(run, database, file):
    done = run("simulate", "--limits", file(LIMIT))
    assert (done.code, done.err) == (0, "Nobody would have been denied.\n")


def test_progress_is_shown_on_a_terminal_only(run, ledger, file, environment):
    ledger()
    environment.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    environment.setenv("TERM", "xterm")
    done = run("simulate", "--limits", file(LIMIT), "--json")
    assert "requests" in done.err
    assert done.json["summary"] == SUMMARY


# ---------------------------------------------------------------- files


def test_an_export_is_the_ledger_and_replays_alike_without_any_store(run, process, ledger, file):
    ledger()
    exported = run("usage", "export")
    assert (exported.code, exported.err) == (0, "")
    lines = [json.loads(line) for line in exported.out.splitlines()]
    assert [line["_id"] for line in lines] == [entry.id for entry in PAST]
    assert lines[1]["admitted_at"] == {"$date": "2026-03-01T12:02:00.000Z"}
    name = file(exported.out, "ledger.jsonl")
    nowhere = {"TOKENWEIR_MONGO__URL": "mongodb://127.0.0.1:1", "TOKENWEIR_REDIS__URL": "redis://127.0.0.1:1"}
    done = process("simulate", "--limits", file(LIMIT), "--ledger", name, "--json", **nowhere)
    assert (done.code, done.err) == (0, "")
    assert done.json == {"summary": SUMMARY, "denied": [DENIED], "entries_gone_before": None}


def test_lines_in_any_order_are_replayed_in_the_order_of_admission(run, ledger, file):
    ledger()
    lines = run("usage", "export").out.splitlines(keepends=True)
    # The other way round, the last but one would be the one that is denied.
    name = file("\n".join(reversed(lines)) + "\n\n", "ledger.jsonl")
    assert run("simulate", "--limits", file(LIMIT), "--ledger", name, "--json").json["denied"] == [DENIED]


@pytest.mark.parametrize(
    ("number", "date"),
    [
        (lambda n: n, lambda at: {"$date": at.isoformat()}),
        (
            lambda n: {"$numberLong": str(n)},
            lambda at: {"$date": {"$numberLong": str(round(at.timestamp() * 1000))}},
        ),
        (lambda n: {"$numberInt": str(n)}, lambda at: {"$date": round(at.timestamp() * 1000)}),
        (lambda n: {"$numberDouble": f"{n}.0"}, lambda at: at.isoformat()),
    ],
)
def test_every_form_of_extended_json_is_read(run, ledger, file, number, date):
    def line(entry):
        return {
            "_id": {"$oid": "6b02d5ca4a1b6096c97f05e4"},
            "tenant_id": entry.identity.tenant,
            "serviceAccount": entry.identity.service_account,
            "clientIP": entry.identity.client_ip,
            "date": entry.date,
            "endpoint": entry.endpoint,
            "model": entry.model,
            "state": entry.outcome.value,
            "reason": entry.reason,
            "held": number(entry.held),
            "charge": number(entry.charge),
            "usage": {part: number(getattr(entry.usage, part)) for part in ("input", "output", "total")},
            "cost": {"prompt": number(entry.cost.prompt), "output": number(entry.cost.output)},
            "admitted_at": date(entry.admitted_at),
            "ended_at": date(entry.ended_at),
            "unknown": {"$binary": {"base64": "AA==", "subType": "00"}},
        }

    name = file("\n".join(json.dumps(line(entry)) for entry in PAST), "ledger.jsonl")
    done = run("simulate", "--limits", file(LIMIT), "--ledger", name, "--json")
    assert (done.err, done.json) == ("", {"summary": SUMMARY, "denied": [DENIED], "entries_gone_before": None})


GOOD = (
    '{"tenant_id":"t","serviceAccount":"s","clientIP":"1","date":"2026-03-01","admitted_at":"2026-03-01T00:00:00Z",'
    '"ended_at":"2026-03-01T00:00:01Z","endpoint":"e","model":"m","state":"settled","reason":"usage","charge":1,"usage":{}}'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"charge":1', '"charge":"x"', "line 2 is no entry of the ledger: Expected"),
        ('"charge":1', '"charge":-1', "line 2 is no entry of the ledger: Expected"),
        ('"charge":1', '"charge":1.5', "line 2 is no entry of the ledger: Expected"),
        (
            '"charge":1',
            '"charge":{"$numberLong":"1.5"}',
            "line 2 is no entry of the ledger: '1.5' is no whole number",
        ),
        (
            '"charge":1',
            '"charge":{"$numberDouble":"NaN"}',
            "line 2 is no entry of the ledger: 'NaN' is no whole number",
        ),
        ('"charge":1', '"charge":{}', "line 2 is no entry of the ledger: '' is no whole number"),
        ('"settled"', '"eaten"', "line 2 is no entry of the ledger: Invalid enum value"),
        ('"model":"m",', "", "line 2 is no entry of the ledger: Object missing required field `model`"),
        ('"2026-03-01T00:00:00Z"', '"today"', "line 2 is no entry of the ledger: Invalid RFC3339"),
        ('"2026-03-01T00:00:00Z"', '{"$date":99999999999999999}', "line 2 is no entry of the ledger: a date"),
        ("}", "", "line 2 is no entry of the ledger: Input data was truncated"),
        (GOOD, "[" * 100_000, "line 2 is no entry of the ledger: "),
    ],
)
def test_a_bad_line_is_named(run, file, old, new, message):
    name = file(f"{GOOD}\n{GOOD.replace(old, new)}\n", "ledger.jsonl")
    done = run("simulate", "--limits", file(LIMIT), "--ledger", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {name}: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tenant_id": "t", "sa_limit": "x"}, "tenant 't': 'sa_limit' must be a whole number"),
        ({"tenant_id": "t", "sa_limits": 1}, "tenant 't': 'sa_limits' is no field here: use"),
        ([LIMIT, LIMIT], "tenant 'acme' is given twice"),
        ({"default": {"sa_limit": "x"}}, "'default': 'sa_limit' must be a whole number"),
        ({"default": {"top_ups": []}}, "'default.top_ups' is no field here"),
        ({"default": 5}, "'default' must be an object of limits"),
        ({"tenant": []}, "'tenant' is no field here: give 'tenant_id', or 'default' and 'tenants'"),
        ({"tenants": {}}, "'tenants' must be a list of documents"),
        ({"tenants": [5]}, "document 1: must be an object"),
        ({"tenants": []}, "no limits are proposed in it"),
        ([], "no limits are proposed in it"),
        ("5", "document 1: must be an object"),
    ],
)
def test_proposed_limits_that_can_not_be_are_wrong_use(run, file, content, message):
    done = run("simulate", "--limits", file(content), "--ledger", "/dev/null")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ledger", "/none"], "/none: can't be read: No such file or directory"),
        (["--ledger", "/tmp"], "/tmp: can't be read: Is a directory"),
        (["--since", "yesterday"], "'since' must be a date"),
        (["--tenant", ""], "the tenant must be a printable name"),
    ],
)
def test_what_can_not_be_replayed_is_wrong_use(run, file, options, message):
    done = run("simulate", "--limits", file(LIMIT), *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")


def test_a_store_that_is_down_is_exit_code_1(run, file, environment):
    environment.setenv("TOKENWEIR_MONGO__URL", "mongodb://127.0.0.1:1")
    environment.setenv("TOKENWEIR_MONGO__TIMEOUT_S", "0.3")
    done = run("simulate", "--limits", file(LIMIT))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("tokenweir: MongoDB can't be reached")


# ---------------------------------------------------------------- usage


def test_what_shadow_limits_counted_in_truth_has_the_same_form(run, ledger, file):
    ledger()
    expected = {
        "summary": {name: SUMMARY[name] for name in ("requests", "tokens", "denied", "denied_tokens")},
        "denied": [DENIED | {"limit": "tenant:day~shadow"}],
        "entries_gone_before": None,
    }
    assert run("usage", "shadow", "--json").json == expected
    exported = file(run("usage", "export").out, "ledger.jsonl")
    assert run("usage", "shadow", "--ledger", exported, "--json").json == expected
    assert run("usage", "shadow", "--sa", "other", "--json").json["summary"]["denied"] == 0


def test_entries_are_shown_the_last_one_first(run, ledger):
    ledger()
    rows = run("usage", "entries", "--json").json
    assert [row["id"] for row in rows] == [entry.id for entry in reversed(PAST)]
    assert rows[0] == {
        "admitted_at": "2026-03-01T12:06:00Z",
        "tenant": "acme",
        "service_account": "sa",
        "client_ip": "10.0.0.1",
        "endpoint": "chat_completions",
        "model": "m",
        "outcome": "settled",
        "count": 1,
        "reason": "usage",
        "held": 6,
        "charge": 5,
        "input": 3,
        "output": 2,
        "status": 200,
        "request_id": "q6",
        "id": "r6",
    }
    table = run("usage", "entries", "--limit", "1")
    assert table.rows[1][0] == "2026-03-01T12:06:00Z"
    assert table.err == "There is more: these are the first 1 rows. Use a filter or --limit.\n"
    assert run("usage", "entries", "--tenant", "nobody").err == "No request on record that fits.\n"


def test_denied_requests_that_were_counted_together_are_one_line_that_says_so(run, ledger, file):
    ledger([made(1, outcome=Outcome.DENIED, count=40, cost=Cost(400, 40))])
    listed = run("usage", "entries", "--json")
    assert [row["count"] for row in listed.json] == [40]
    assert listed.err == "A count above 1: requests that were denied like others of their minute, in one line.\n"
    assert [day["denied"] for day in run("usage", "daily", "--json").json] == [40]
    exported = file(run("usage", "export").out, "ledger.jsonl")
    for source in ([], ["--ledger", exported]):
        limits = file(json.dumps(LIMIT), "limits.json")
        summary = run("simulate", "--limits", limits, *source, "--json").json["summary"]
        assert summary["newly_admitted"] == 9


def test_usage_has_a_price_where_models_have_prices(run, ledger, environment):
    ledger()
    environment.setenv("TOKENWEIR_COST__CURRENCY", "EUR")
    assert run("usage", "daily").rows[0][-1] == "price (EUR)"
    costs = {row[2]: row[-1] for row in run("usage", "daily", "--tenant", "acme").rows[1:]}
    assert costs == {"sa": "1.50", "other": "0.00"}
    assert run("usage", "top", "--by", "tenant").rows[1][-1] == "1.50"
    assert run("usage", "daily", "--tenant", "elsewhere").rows[0][-1] == "estimated"
    (day,) = run("usage", "daily", "--sa", "sa", "--tenant", "acme", "--json").json
    assert (day["price_billionths"], day["price"], day["currency"]) == (1_500_000_000, "1.500000000", "EUR")
    top = run("usage", "top", "--json").json[0]
    assert (top["price_billionths"], top["price"], top["currency"]) == (1_500_000_000, "1.500000000", "EUR")


def test_a_price_of_a_billionth_is_not_lost(run, ledger):
    ledger([replace(PAST[0], price=1), replace(PAST[1], price=12_000_000_001)])
    assert run("usage", "top", "--json").json[0]["price"] == "12.000000002"


def test_a_reader_of_an_export_that_has_enough_is_no_fault(ledger, database, tmp_path):
    ledger([made(n, account="a" * 200) for n in range(500)])  # more than a pipe holds
    command = f"{sys.executable} -m extproc usage export | head -n 1"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["_id"] == "r0"
    assert done.stderr == ""
