"""Reports over a time whose entries are deleted say so. Old entries stand here as if MongoDB had not come to them."""

from datetime import UTC, datetime, timedelta

import pymongo
import pytest

pytestmark = pytest.mark.system

DAYS = 40
NOBODY = "Nobody would have been denied."  # beneath an empty table
_DAY_S = 24 * 3600


def day(age):
    return f"{datetime.now(UTC) - timedelta(days=age):%Y-%m-%d}"


def entry(age):
    at = datetime.now(UTC) - timedelta(days=age)
    return {
        "_id": f"r{age}", "tenant_id": "acme", "serviceAccount": "sa", "clientIP": "10.0.0.1", "date": day(age),
        "endpoint": "chat_completions", "model": "m", "stream": False, "state": "settled", "reason": "usage", "held": 5,
        "charge": 5, "usage": {"input": 2, "output": 3}, "status": 200, "request_id": "q", "cost": {"prompt": 2, "output": 3},
        "admitted_at": at, "ended_at": at,
    }  # fmt: skip


@pytest.fixture
def ledger(database):
    database.token_ledger.insert_many([entry(age) for age in (1, 2, 3)])
    database.sa_ip_usage_daily.insert_one(
        {"tenant_id": "acme", "serviceAccount": "sa", "clientIP": "10.0.0.1", "date": day(60), "usage": 5}
    )
    return database.token_ledger


@pytest.fixture
def kept(ledger):
    ledger.create_index(
        [("ended_at", pymongo.ASCENDING)], name="ledger_retention", expireAfterSeconds=DAYS * _DAY_S
    )
    return ledger


@pytest.fixture
def limits(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text('{"tenant_id": "acme", "sa_limit": 100}')
    return str(path)


def said(err):
    """The instant that the note names, which is the first line."""
    line, *rest = err.splitlines()
    assert rest in ([], [NOBODY])
    before, instant = "Entries before ", line.split()[2]
    assert line == f"{before}{instant} are gone by ledger retention: they are missing here."
    return datetime.fromisoformat(instant)


def is_right(instant):
    return abs(datetime.now(UTC) - timedelta(days=DAYS) - instant) < timedelta(minutes=10)


COMMANDS = [["entries"], ["entries", "--json"], ["export"], ["shadow"], ["shadow", "--json"]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("filters", [[], ["--tenant", "acme"], ["--since", day(DAYS)], ["--until", day(2)]])
def test_a_report_that_begins_before_what_is_left_says_so(run, kept, command, filters):
    done = run("usage", *command, *filters)
    assert done.code == 0
    assert is_right(said(done.err))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_on_days_that_are_whole_says_nothing(run, kept, command):
    done = run("usage", *command, "--since", day(DAYS - 2))
    assert done.code == 0
    assert done.err.splitlines() in ([], [NOBODY])


@pytest.mark.parametrize("command", COMMANDS)
def test_without_retention_nothing_is_said(run, ledger, command):
    assert run("usage", *command).err.splitlines() in ([], [NOBODY])


def test_a_list_that_is_cut_ends_before_what_is_gone(run, kept):
    assert run("usage", "entries", "--limit", "2").err.startswith("There is more")
    assert is_right(said(run("usage", "entries", "--limit", "3").err))


def test_a_replay_says_from_when_on_it_counts(run, kept, limits):
    done = run("simulate", "--limits", limits)
    assert is_right(said(done.err))
    done = run("simulate", "--limits", limits, "--json")
    assert datetime.fromisoformat(done.json["entries_gone_before"]) == said(done.err)
    assert run("usage", "shadow", "--json").json["entries_gone_before"] is not None
    done = run("simulate", "--limits", limits, "--since", day(5), "--json")
    assert (done.err, done.json["entries_gone_before"]) == ("", None)


def test_what_was_deleted_by_an_earlier_setting_is_said_too(run, ledger, database):
    gone = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    database.token_migrations.insert_one({"_id": "ledger_retention", "gone_before": gone})
    assert said(run("usage", "export").err) == gone


def test_daily_usage_is_whole(run, kept):
    done = run("usage", "daily", "--json")
    assert (done.err, [row["date"] for row in done.json]) == ("", [day(60)])
    assert run("usage", "top").err == ""
