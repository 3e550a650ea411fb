import pytest

pytestmark = pytest.mark.system

DAILY = [
    "date", "tenant", "service account", "client IP", "usage", "input", "output", "cached", "requests", "denied",
    "estimated",
]  # fmt: skip


@pytest.fixture
def usage(database):
    def day(account, ip, date, usage, **more):
        return {"serviceAccount": account, "clientIP": ip, "date": date, "usage": usage} | more

    whole = {
        "tenant_id": "acme",
        "input": 60,
        "output": 40,
        "cached": 10,
        "requests": 3,
        "denied": 2,
        "estimated": 1,
    }
    database.sa_ip_usage_daily.insert_many(
        [
            day("sa1", "10.0.0.1", "2026-01-01", 100, **whole),
            day("sa1", "10.0.0.2", "2026-01-02", 50, tenant_id="acme"),
            day("sa2", "10.0.0.1", "2026-01-02", 70.0, tenant_id="other"),
            day("[red]old", "10.0.0.3", "2025-12-31", 5),  # as the talk wrote them: no tenant
        ]
    )
    return database


def test_daily_usage_is_a_table_with_the_newest_and_largest_first(run, usage):
    done = run("usage", "daily")
    assert (done.code, done.err) == (0, "")
    assert done.rows == [
        DAILY,
        ["2026-01-02", "other", "sa2", "10.0.0.1", "70", "0", "0", "0", "0", "0", "0"],
        ["2026-01-02", "acme", "sa1", "10.0.0.2", "50", "0", "0", "0", "0", "0", "0"],
        ["2026-01-01", "acme", "sa1", "10.0.0.1", "100", "60", "40", "10", "3", "2", "1"],
        ["2025-12-31", "-", "[red]old", "10.0.0.3", "5", "0", "0", "0", "0", "0", "0"],
    ]


@pytest.mark.parametrize(
    ("filters", "usages"),
    [
        (["--tenant", "acme"], [50, 100]),
        (["--service-account", "sa2"], [70]),
        (["--sa", "[red]old"], [5]),
        (["--client-ip", "10.0.0.1"], [70, 100]),
        (["--ip", "::ffff:10.0.0.1"], [70, 100]),
        (["--since", "2026-01-01"], [70, 50, 100]),
        (["--until", "2026-01-01"], [100, 5]),
        (["--since", "20260101", "--until", "2026-01-01"], [100]),
        (["--tenant", "acme", "--ip", "10.0.0.2", "--since", "2026-01-01"], [50]),
        (["--tenant", '{"$ne": ""}'], []),
    ],
)
def test_every_filter_of_daily_usage_filters(run, usage, filters, usages):
    done = run("usage", "daily", *filters, "--json")
    assert done.code == 0
    assert [day["usage"] for day in done.json] == usages


def test_daily_json_has_the_documented_keys(run, usage):
    (day,) = run("usage", "daily", "--until", "2026-01-01", "--tenant", "acme", "--json").json
    assert day == {
        "tenant": "acme",
        "service_account": "sa1",
        "client_ip": "10.0.0.1",
        "date": "2026-01-01",
        "usage": 100,
        "input": 60,
        "output": 40,
        "cached": 10,
        "requests": 3,
        "denied": 2,
        "estimated": 1,
        "price": "0.000000000",
        "price_billionths": 0,
        "currency": "USD",
    }


def test_daily_says_when_there_is_more_than_it_shows(run, usage):
    done = run("usage", "daily", "--limit", "2")
    assert len(done.rows) == 3
    assert done.err == "There is more: these are the first 2 rows. Use a filter or --limit.\n"
    assert len(run("usage", "daily", "--limit", "3", "--json").json) == 3
    assert run("usage", "daily", "--limit", "4").err == ""


@pytest.mark.parametrize("command", ["daily", "top", "report"])
def test_no_usage_is_an_empty_result_and_a_note_on_stderr(run, database, command):
    done = run("usage", command)
    assert (done.code, done.out, done.err) == (0, "", "No usage on record that fits.\n")
    assert run("usage", command, "--json").json == []


@pytest.mark.parametrize("command", ["daily", "top", "report"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--since", "2026-13-01"], "'since' must be a date such as 2026-01-31, not '2026-13-01'"),
        (["--until", "\x1b[31m"], r"'until' must be a date such as 2026-01-31, not '\x1b[31m'"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "'since' (2026-01-02) must not be after 'until'"),
        (["--ip", "1.2.3"], "'1.2.3' is no IP address"),
        (["--ip", "\n"], r"'\n' is no IP address"),
        (["--tenant", ""], "the tenant must be a printable name"),
        (["--sa", "\udcff"], "the service account must be a printable name"),
    ],
)
def test_a_filter_that_can_not_be_is_one_line_and_exit_code_2(run, database, command, options, message):
    done = run("usage", command, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["daily", "top", "report"])
@pytest.mark.parametrize("limit", ["0", "-1", "x", "10001", str(2**70)])
def test_a_number_of_rows_that_can_not_be_is_exit_code_2(run, database, command, limit):
    done = run("usage", command, "--limit", limit)
    assert (done.code, done.out) == (2, "")
    assert "Invalid value for '--limit'" in done.err


def test_a_foreign_document_in_the_ledger_is_one_line_and_no_traceback(run, database):
    database.token_ledger.insert_one({"_id": "theirs", "ended_at": 1})
    done = run("usage", "entries")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("tokenweir: document 'theirs' of the ledger is no entry: KeyError(")
    assert done.err.count("\n") == 1
