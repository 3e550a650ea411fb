"""The doctor against real stores."""

import asyncio

import pytest

from extproc import app as composition
from extproc.settings.load import load

pytestmark = pytest.mark.system


def prepare(_database):
    async def go():
        stores = composition.build_stores(load())
        await stores.prepare()
        await stores.aclose()

    asyncio.run(go())


def findings(done):
    return {(each["level"], each["part"]): each for each in done.json["findings"]}


def test_what_is_missing_is_an_error_with_its_fix_and_goes_away_once_it_is_there(run, database):
    done = run("doctor", "--json")
    assert (done.code, done.err, done.json["sound"]) == (1, "", False)
    missing = findings(done)["error", "mongodb"]
    for index in ("token_ledger (request_id)", "token_bucket_usage (until)"):
        assert index in missing["what"]
    assert "the right to create indexes" in missing["fix"]
    prepare(database)
    done = run("doctor", "--json")
    assert (done.code, done.json["sound"]) == (0, True)
    assert ("error", "mongodb") not in findings(done)
    assert findings(done)["warning", "replicas"]["what"] == "no replica of Tokenweir runs on these stores"
    table = run("doctor")
    assert table.code == 0
    assert "ok       redis: maxmemory-policy is noeviction" in table.out
    assert "         fix: set appendonly yes, or add a replica" in table.out


def test_nothing_is_changed_by_looking(run, database):
    run("doctor")
    assert database.list_collection_names() == []


def test_settings_that_can_not_be_used_are_findings(run, database, environment):
    environment.setenv("TOKENWEIR_REDIS__ULR", "redis://127.0.0.1")
    environment.setenv("TOKENWEIR_DENIED__SINGLY_PER_MINUTE", "-3")
    done = run("doctor", "--json")
    assert done.code == 1
    whats = [each["what"] for each in done.json["findings"]]
    assert whats[0] == "TOKENWEIR_REDIS__ULR: no such setting; see docs/settings.md"
    assert whats[1].startswith("denied.singly_per_minute")
    assert {each["level"] for each in done.json["findings"]} == {"error"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("SERVER__ADDRESS=0.0.0.0:50051", "is open to others, in plaintext"),
        ("IDENTITY__SERVICE_ACCOUNT_HEADER=oc_sa", "identity.service_account_header is oc_sa"),
        ("DENIED__RECORD=false", "denied requests can't be looked up"),
        ("COST__REFUSE_UNBOUNDED=false", "cost.refuse_unbounded is false"),
        ("LIMITS__DEFAULT__ON_STORE_FAILURE=allow", "spool.directory is not set"),
        ("REDIS__MAX_CONNECTIONS=5", "has no effect any more"),
        ("REDIS__URL=redis://192.0.2.1:6379", "redis.url: no user or password"),
        ("MONGO__URL=mongodb://192.0.2.1:27017", "mongo.url: the connection is in plaintext"),
    ],
)
def test_settings_that_are_not_safe_are_told(run, database, environment, setting, words):
    environment.setenv("TOKENWEIR_MONGO__TIMEOUT_S", "0.2")
    name, _, value = setting.partition("=")
    environment.setenv(f"TOKENWEIR_{name}", value)
    of_settings = [each for each in run("doctor", "--json").json["findings"] if each["part"] == "settings"]
    assert any(words in each["what"] + each["consequence"] for each in of_settings)


def test_stores_that_are_away_are_told_and_all_else_is_still_checked(run, database, environment):
    environment.setenv("TOKENWEIR_REDIS__URL", "redis://127.0.0.1:1")
    done = run("doctor", "--json")
    assert done.code == 1
    assert findings(done)["error", "redis"]["fix"]
    assert ("ok", "mongodb") in findings(done)


@pytest.mark.parametrize("url", ["nonsense", "file:///etc/passwd", "http://"])
def test_an_admin_port_is_a_url(run, database, url):
    done = run("doctor", "--envoy-admin", url)
    assert (done.code, done.out) == (2, "")
    assert "--envoy-admin must be a URL such as" in done.err


def test_an_admin_port_that_does_not_answer_is_an_error(run, database):
    done = run("doctor", "--envoy-admin", "http://127.0.0.1:1", "--json")
    assert findings(done)["error", "envoy"]["what"].startswith("its admin port does not answer as one")
