"""The erasure of a person as an operator runs it."""

from datetime import UTC, datetime

import pytest

from extproc.stores.mongo.documents import entry_document
from tests.cli.test_cli_request import WHO, entry

pytestmark = pytest.mark.system

NAME = WHO.service_account
ASKED = ("erase", "--tenant", "acme", "--sa", NAME, "--before", "2026-03-02")


@pytest.fixture
def ledger(database):
    database.token_ledger.insert_one(entry_document(entry(1)))
    day = {"tenant_id": "acme", "serviceAccount": NAME, "clientIP": "10.0.0.1", "date": "2026-03-01", "usage": 26}
    database.sa_ip_usage_daily.insert_one(day)
    database.token_migrations.insert_one({"_id": "daily_usage_by_tenant", "done": True})
    database.tenantLimitation.insert_one(
        {"tenant_id": "acme", "service_accounts": [{"name": NAME, "sa_limit": 5}]}
    )
    return database


def test_a_dry_run_says_what_would_be_erased(run, ledger):
    done = run(*ASKED, "--dry-run")
    assert done.code == 0
    assert done.out.startswith("Would erase the name in 1 ledger entries (26 tokens charged) of 1 dates")
    assert ledger.token_ledger.find_one({"serviceAccount": NAME}) is not None


def test_the_name_is_erased_and_the_limits_that_still_have_it_are_told_of(run, ledger):
    done = run(*ASKED, "--yes", "--note", "request 4711")
    assert done.code == 0
    assert "Sums are as before: 1 ledger entries (26 tokens charged) of 1 dates." in done.out
    assert done.err == "The tenant's limits still have the name: see `tokenweir tenant show`.\n"
    assert ledger.token_ledger.find_one()["serviceAccount"].startswith("erased-")
    assert run(*ASKED, "--yes").out == "No record of these dates has the name.\n"


def test_it_asks_first_and_without_an_answer_erases_nothing(process, ledger):
    done = process(*ASKED, stdin="n\n")
    assert done.code == 2
    assert "Would erase the name in 1 ledger entries" in done.err
    assert ledger.token_ledger.find_one()["serviceAccount"] == NAME


@pytest.mark.parametrize("names", [(), ("--sa", "a", "--ip", "10.0.0.1")])
def test_one_name_is_erased_at_a_time(run, database, names):
    done = run("erase", "--tenant", "acme", "--before", "2026-01-01", "--yes", *names)
    assert (done.code, done.err) == (2, "tokenweir: give either --service-account or --client-ip\n")


def test_days_that_are_not_over_can_not_be_erased(run, ledger):
    done = run(*ASKED[:-1], datetime.now(UTC).date().isoformat(), "--yes")
    assert done.code == 2
    assert "at the latest" in done.err
