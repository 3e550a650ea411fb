"""The story of a request by its id, and lists of requests."""

from datetime import UTC, datetime, timedelta

import pytest

from extproc.core.quota.ledger import Charge, Entry, RefusedBy
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.identity import Identity
from extproc.stores.mongo.documents import entry_document

pytestmark = pytest.mark.system

WHO = Identity("acme", "[red]sa", "10.0.0.1")


def entry(number, minutes_ago=0, **changes):
    ended_at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=minutes_ago)
    fields = {
        "id": f"{number:032x}",
        "request_id": f"request-{number}",
        "identity": WHO,
        "date": "2026-03-01",
        "endpoint": "chat_completions",
        "model": "tiny",
        "stream": False,
        "outcome": Outcome.SETTLED,
        "reason": "usage",
        "held": 50,
        "charge": 26,
        "usage": Usage(10, 16, total=26),
        "status": 200,
        "admitted_at": ended_at - timedelta(seconds=3),
        "ended_at": ended_at,
        "charges": (Charge("service_account:day:1:sa", 86_400, 26, 12_000),),
    }
    return Entry(**(fields | changes))


def refused(number, minutes_ago=0, **changes):
    nothing = {"held": 0, "charge": 0, "usage": NO_USAGE, "status": 0, "charges": ()}
    refused_by = RefusedBy("service_account:day:1:sa", 86_400, 45, 24, 3, 20)
    denial = {"outcome": Outcome.DENIED, "reason": "service_account", "refused_by": refused_by}
    return entry(number, minutes_ago, **(nothing | denial | changes))


@pytest.fixture
def ledger(database):
    made = [entry(1, 1), refused(2, 2), entry(3, 300, model="large"), refused(4, 5, count=7, request_id="")]
    database.token_ledger.insert_many([entry_document(each) for each in made])
    return database


def test_a_request_is_shown_with_its_limits_by_the_id_that_the_client_saw(run, ledger):
    done = run("request", "show", "request-1")
    assert (done.code, done.err) == (0, "")
    facts = {row[0]: row[1] for row in done.rows if len(row) == 2}
    assert facts["service account"] == "[red]sa"
    assert facts["charged"] == "26"
    assert facts["reported by"] == "server"
    assert facts["usage"] == "10 input, 16 output, 26 in all"
    limit = ["service_account", "day", "tokens", "sa", "12000", "-", "-", "-", "26", "1970-01-02T00:00:00Z", "-"]
    assert limit in done.rows
    (story,) = run("request", "show", f"{1:032x}", "--json").json
    assert (story["request_id"], story["held"], story["limits"][0]["amount"]) == ("request-1", 50, 12_000)


def test_a_denied_request_names_the_limit_that_refused_it(run, ledger):
    done = run("request", "show", "request-2")
    assert done.code == 0
    limit = [
        "service_account",
        "day",
        "tokens",
        "sa",
        "45",
        "24",
        "3",
        "20",
        "-",
        "1970-01-02T00:00:00Z",
        "refused it",
    ]
    assert limit in done.rows


def test_an_unknown_id_is_not_found_and_the_possible_reasons_are_told(run, ledger):
    done = run("request", "show", "nothing")
    assert (done.code, done.out) == (3, "")
    for part in ("counted, but not stored", "first 10 of a minute", "from the start"):
        assert part in done.err


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ([], [1, 2, 4, 3]),
        (["--outcome", "denied"], [2, 4]),
        (["--model", "large"], [3]),
        (["--since", "3m"], [1, 2]),
        (["--until", "3m", "--tenant", "acme"], [4, 3]),
        (["--sa", "[red]sa", "--ip", "10.0.0.1", "--endpoint", "chat_completions", "--limit", "4"], [1, 2, 4, 3]),
        (["--tenant", "$ne"], []),
    ],
)
def test_a_list_has_the_last_to_end_first(run, ledger, filters, numbers):
    done = run("request", "list", *filters, "--json")
    assert done.code == 0
    assert [int(row["id"], 16) for row in done.json["requests"]] == numbers


def test_a_list_goes_on_behind_its_cursor(run, ledger):
    first = run("request", "list", "--limit", "3", "--json").json
    rest = run("request", "list", "--limit", "3", "--cursor", first["cursor"], "--json").json
    assert [int(row["id"], 16) for row in first["requests"] + rest["requests"]] == [1, 2, 4, 3]
    assert rest["cursor"] is None
    done = run("request", "list", "--limit", "3")
    assert f"--cursor {first['cursor']}" in done.err
    assert "service_account:45/day" in done.rows[2]
    assert "A count above 1" in done.err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--outcome", "lost", "--outcome must be one of settled, estimated, released, expired, denied"),
        ("--since", "yesterday", "--since must be an instant such as"),
        ("--endpoint", "nonsense", "the endpoint must be one of"),
        ("--cursor", "nonsense", "the cursor can't be read"),
    ],
)
def test_a_wrong_value_is_named(run, database, option, value, message):
    done = run("request", "list", option, value)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
