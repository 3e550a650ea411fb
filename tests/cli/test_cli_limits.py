"""Editing tenants' documents: single fields, lists, whole documents."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = pytest.mark.system


@pytest.fixture
def stored(database):
    """Puts a document there, or gives back the one that is."""

    def call(tenant="t", **fields):
        if fields:
            database.tenantLimitation.insert_one({"tenant_id": tenant, **fields})
        kept = {"_id": 0, "version": 0, "updated_at": 0, "updated_by": 0, "tenant_id": 0}
        return database.tenantLimitation.find_one({"tenant_id": tenant}, kept)

    return call


@pytest.fixture
def file(tmp_path):
    def call(content, name="limits.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return call


# ---------------------------------------------------------------- set


def test_every_option_of_set_writes_its_field_and_no_other(run, stored):
    stored(sa_limit=5, note="kept", theirs=[1])
    done = run(
        "tenant", "set", "t", "--each-sa-per-minute", "60", "--ip-per-minute", "100", "--mode", "shadow",
        "--shadows", "strict", "--timezone", "Europe/Berlin", "--min-output-tokens", "20", "--unlimited",
        "--on-store-failure", "allow",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert stored() == {
        "sa_limit": 5,
        "note": "kept",
        "theirs": [1],
        "ratelimitEachSAPerMinute": 60,
        "ratelimitIPPerMinute": 100,
        "mode": "shadow",
        "shadows": "strict",
        "timezone": "Europe/Berlin",
        "min_output_tokens": 20,
        "unlimited": True,
        "on_store_failure": "allow",
    }
    undone = run(
        "tenant", "set", "t", "--each-sa-per-minute", "none", "--ip-per-minute", "none", "--mode", "soft",
        "--timezone", "none", "--min-output-tokens", "none", "--limited",
        "--on-store-failure", "none",
    )  # fmt: skip
    assert (undone.code, undone.err) == (0, "")
    # A mode that is none of shadow takes with it what it shadowed.
    assert stored() == {"sa_limit": 5, "note": "kept", "theirs": [1], "mode": "soft"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timezone", "Mars/Olympus"], "'timezone' is no IANA time zone"),
        (["--shadows", "soft"], "'shadows' needs 'mode: shadow' beside it"),
        (
            ["--each-sa-per-minute", "-1"],
            "--each-sa-per-minute must be a whole number of requests (12000, 12k, 1.5M) or 'none'",
        ),
        (["--ip-per-minute", "9" * 20], "'ratelimitIPPerMinute' must be a whole number of requests"),
        (["--on-store-failure", "perhaps"], "'on_store_failure' must be one of deny, allow"),
        (["--min-output-tokens", "9" * 20], "'min_output_tokens' must be a whole number of tokens"),
        (
            ["--sa-limit", "none"],
            "at least one limit on tokens that binds all requests must stay; to use the defaults, delete the tenant",
        ),
    ],
)
def test_what_would_make_the_document_unusable_is_refused_and_nothing_is_written(run, stored, options, message):
    stored(sa_limit=5)
    done = run("tenant", "set", "t", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")
    assert stored() == {"sa_limit": 5}


def test_a_new_tenant_needs_something_to_be_set(run, stored):
    done = run("tenant", "set", "new", "--sa-limit", "none")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tokenweir: nothing would be set; to use the defaults")
    assert stored("new") is None


def test_what_was_unusable_before_is_reported_and_does_not_stop_an_edit(run, stored):
    stored(sa_limit=5, limits=[{"scope": "nonsense"}])
    done = run("tenant", "set", "t", "--sa-limit", "6", "--json")
    assert done.code == 0
    assert done.err.startswith("Other fields of the document can't be used ('limits[0].scope' must be one of")
    assert (done.json["view"]["sa_limit"], stored()["sa_limit"]) == (6, 6)
    assert done.json["view"]["problem"].startswith("'limits[0].scope'")


def test_the_last_limit_on_tokens_may_go_where_the_tenant_is_unlimited(run, stored):
    stored(sa_limit=5)
    assert run("tenant", "set", "t", "--unlimited", "--sa-limit", "none").code == 0
    assert stored() == {"unlimited": True}


@pytest.mark.parametrize(
    "edit",
    [
        ["set", "t", "--sa-limit", "none"],
        ["set", "t", "--sa-limit", "none", "--each-sa-per-minute", "5"],
    ],
)
@pytest.mark.parametrize(
    "beside",
    [
        {"endpoint": "score"},
        {"model": "m"},
        {"unit": "requests"},
        {"mode": "shadow"},
    ],
)
def test_the_last_limit_on_tokens_that_binds_all_requests_stays_as_the_defaults_would_come_back(
    run, stored, edit, beside
):
    item = {"scope": "tenant", "window": "day", "amount": 9}
    stored(sa_limit=5, limits=[item | beside])
    done = run("tenant", *edit)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tokenweir: at least one limit on tokens that binds all requests must stay; to use")
    assert stored() == {"sa_limit": 5, "limits": [item | beside]}
    stored("general", sa_limit=5, limits=[item])
    assert run("tenant", "set", "general", *edit[2:]).code == 0


def test_a_limit_that_is_tried_out_sets_tokens_where_the_whole_document_is(run, stored):
    item = {"scope": "tenant", "window": "day", "amount": 9, "mode": "shadow"}
    stored(limits=[item], mode="shadow")
    refused = run("tenant", "set", "t", "--mode", "soft")
    assert (refused.code, stored()["mode"]) == (2, "shadow")
    assert "must stay" in refused.err


@pytest.fixture
def defaults(environment):
    environment.setenv("TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT", "1000")
    environment.setenv("TOKENWEIR_LIMITS__DEFAULT__IP_LIMIT", "300")


BESIDE = "These defaults bind beside its own limits"
STAY = "It has no limits of its own; the defaults stay"
BOTH = "service_account:1000/day, service_account+client_ip:300/day"


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["suspend", "t", "--reason", "unpaid"], f"{STAY}: {BOTH}.\n"),
        (["suspend", "t", "--reason", "unpaid", "--sa", "a"], f"{STAY}: {BOTH}.\n"),
        (["top-up", "t", "--amount", "1", "--until", "+1h"], f"{STAY}: {BOTH}.\n"),
        (["limit", "add", "t", "tenant:9/day", "--model", "m"], f"{BESIDE}: {BOTH}.\n"),
        (["limit", "add", "t", "tenant:9/day", "--unit", "requests"], f"{BESIDE}: {BOTH}.\n"),
        (["set", "t", "--ip-per-minute", "9"], f"{BESIDE}: {BOTH}.\n"),
        (["limit", "add", "t", "tenant:9/day"], ""),
        (["set", "t", "--sa-limit", "9"], ""),
        (["set", "t", "--unlimited"], ""),
    ],
)
def test_a_tenant_that_an_edit_creates_is_told_with_the_defaults_that_bind_it(run, stored, defaults, words, note):
    done = run("tenant", *words)
    assert (done.code, done.err) == (0, note)
    assert done.out.startswith("Created tenant 't' (version 1).\n")
    # What is told is what binds.
    shown = [row["limit"] for row in run("explain", "t", "sa", "--json").json["limits"]]
    assert ({"service_account", "service_account+client_ip"} <= set(shown)) is bool(note)


def test_what_the_defaults_are_beside_is_told_with_what_narrows_them(run, stored, environment):
    narrow = [
        {
            "scope": "tenant",
            "window": "hour",
            "amount": 7,
            "unit": "requests",
            "endpoint": ["score", "embeddings"],
        },
        {"scope": "client_ip", "window": "day", "amount": 8, "model": "big-*", "mode": "shadow"},
    ]
    environment.setenv("TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT", "1000")
    environment.setenv("TOKENWEIR_LIMITS__DEFAULT__IP_LIMIT", "null")
    environment.setenv("TOKENWEIR_LIMITS__DEFAULT__LIMITS", json.dumps(narrow))
    done = run("tenant", "suspend", "t", "--reason", "unpaid", "--json")
    assert done.json["view"]["defaults"] == [
        "service_account:1000/day",
        "tenant:7/hour requests endpoint embeddings, score",
        "client_ip:8/day model big-* shadow",
    ]


# ---------------------------------------------------------------- suspend, resume, top-up


def test_a_tenant_is_suspended_and_resumed(run, stored):
    stored(sa_limit=5)
    assert run("tenant", "suspend", "t", "--reason", "unpaid").code == 0
    assert stored() == {"sa_limit": 5, "suspended": "unpaid"}
    assert run("tenant", "list", "--json").json[0]["suspended"] == "unpaid"
    assert run("tenant", "resume", "t").code == 0
    assert stored() == {"sa_limit": 5}
    again = run("tenant", "resume", "t")
    assert (again.code, again.err) == (2, "tokenweir: the tenant is not suspended\n")


def test_one_service_account_is_suspended_and_resumed_beside_the_others_terms(run, stored):
    terms = [{"name": "a", "sa_limit": 9, "note": "kept"}, {"name": "b", "unlimited": True}]
    stored(sa_limit=5, service_accounts=terms)
    assert run("tenant", "suspend", "t", "--sa", "a", "--reason", "runaway").code == 0
    assert run("tenant", "suspend", "t", "--service-account", "new", "--reason", "gone").code == 0
    assert stored()["service_accounts"] == [
        {**terms[0], "suspended": "runaway"},
        terms[1],
        {"name": "new", "suspended": "gone"},
    ]
    assert run("tenant", "resume", "t", "--sa", "a").code == 0
    assert run("tenant", "resume", "t", "--sa", "new").code == 0
    assert stored()["service_accounts"] == terms
    assert "'b' is not suspended" in run("tenant", "resume", "t", "--sa", "b").err


@pytest.mark.parametrize("reason", ["", "\x1b[31m", "x" * 257])
def test_a_reason_that_callers_could_not_read_is_refused(run, stored, reason):
    done = run("tenant", "suspend", "t", "--reason", reason)
    assert (done.code, done.err) == (2, "tokenweir: the reason must be printable text of 1 to 256 characters\n")
    assert stored() is None


def test_who_is_not_there_can_not_be_resumed(run, database):
    assert run("tenant", "resume", "nobody").code == 3


def test_a_top_up_is_added_and_the_ones_that_are_over_go(run, stored):
    over = {"amount": 1, "until": "2020-01-01T00:00:00Z"}
    lasting = {"amount": 2, "until": "2099-01-01T00:00:00Z", "note": "kept"}
    stored(sa_limit=5, top_ups=[over, lasting])
    before = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    done = run("tenant", "top-up", "t", "--amount", "70", "--until", "+2h", "--sa", "a")
    assert (done.code, done.err) == (0, "")
    kept, new = stored()["top_ups"]
    assert kept == lasting
    assert len(new.pop("id")) == 8
    assert timedelta(0) <= new.pop("until") - before - timedelta(hours=2) < timedelta(minutes=1)
    assert new == {
        "scope": "service_account",
        "window": "day",
        "unit": "tokens",
        "amount": 70,
        "service_account": "a",
    }


NARROW = {"scope": "tenant", "window": "day", "amount": 5, "endpoint": ["embeddings", "score"]}


def test_a_limit_on_some_endpoints_is_topped_up_by_naming_all_of_them(run, stored):
    stored(sa_limit=5, limits=[NARROW])
    words = ["tenant", "top-up", "t", "--amount", "7", "--until", "2099-01-01", "--scope", "tenant"]
    for options in ([], ["--endpoint", "score"]):
        done = run(*words, *options)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            "tokenweir: no limit of that scope, window, unit, model and endpoint: there is nothing to top up\n"
        )
    assert run(*words, "--endpoint", "score", "--endpoint", "embeddings").code == 0
    (made,) = stored()["top_ups"]
    assert made["endpoint"] == ["embeddings", "score"]
    limits = run("explain", "t", "sa", "--endpoint", "score", "--json").json["limits"]
    assert [(row["amount"], row["topped_up"], row["remaining"]) for row in limits] == [(5, 0, 5), (5, 7, 12)]


def test_a_top_up_for_one_account_has_to_raise_a_limit_that_binds_it(run, stored):
    monthly = {"scope": "service_account", "window": "month", "amount": 9}
    stored(sa_limit=5, service_accounts=[{"name": "a", "limits": [monthly]}, {"name": "free", "unlimited": True}])
    words = ["tenant", "top-up", "t", "--amount", "7", "--until", "2099-01-01"]
    assert run(*words, "--window", "month", "--sa", "b").code == 2
    assert run(*words, "--sa", "free").code == 2
    assert run(*words, "--window", "month", "--sa", "a").code == 0
    assert run(*words, "--sa", "b").code == 0
    assert run(*words, "--window", "month").code == 0


def test_every_edit_drops_top_ups_that_are_over(run, stored):
    stored(sa_limit=5, top_ups=[{"amount": 1, "until": "2020-01-01T00:00:00Z"}])
    assert run("tenant", "set", "t", "--sa-limit", "6").code == 0
    assert stored() == {"sa_limit": 6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--until", "+2h", "--scope", "tenant"], "no limit of that scope, window, unit, model and endpoint: "),
        (["--until", "+2h", "--window", "month"], "no limit of that scope, window, unit, model and endpoint: "),
        (["--until", "+2h", "--model", "m"], "no limit of that scope, window, unit, model and endpoint: "),
        (["--until", "+2h", "--endpoint", "score"], "no limit of that scope, window, unit, model and endpoint: "),
        (["--until", "+2h", "--endpoint", "quota"], "--endpoint must be one of chat_completions, "),
        (["--until", "2020-01-01"], "'until' must be in the future"),
        (["--until", "tomorrow"], "--until must be an instant such as"),
        (["--until", "+999999w"], "--until must be an instant such as"),
        (
            ["--until", "\x1b[31m"],
            r"--until must be an instant such as 2026-03-01T00:00Z, or a time from now such as +2h",
        ),
    ],
)
def test_a_top_up_that_would_do_nothing_is_refused(run, stored, options, message):
    stored(sa_limit=5)
    done = run("tenant", "top-up", "t", "--amount", "1", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")
    assert stored() == {"sa_limit": 5}


# ---------------------------------------------------------------- limits in their general form


def test_a_limit_is_added_changed_and_removed(run, stored):
    stored(sa_limit=5)
    options = ["--unit", "requests", "--model", "big-*", "--endpoint", "score", "--endpoint", "embeddings"]
    assert run("tenant", "limit", "add", "t", "tenant:100/month", *options).code == 0
    item = {
        "scope": "tenant",
        "window": "month",
        "amount": 100,
        "unit": "requests",
        "model": "big-*",
        "endpoint": ["embeddings", "score"],
    }
    assert stored()["limits"] == [item]
    assert run("tenant", "limit", "add", "t", "tenant:200/month", *options, "--mode", "soft").code == 0
    assert stored()["limits"] == [item | {"amount": 200, "mode": "soft"}]
    assert run("tenant", "limit", "remove", "t", "tenant/month").code == 3
    assert run("tenant", "limit", "remove", "t", "tenant/month", *options).code == 0
    assert stored() == {"sa_limit": 5}


def test_limits_are_listed_by_tenant_as_a_table_and_as_json_in_pages(run, stored):
    stored("a", limits=[{"scope": "client_ip+service_account", "window": "hour", "amount": 9}], sa_limit=5)
    stored("b", ratelimitIPPerMinute=60)
    table = run("limit", "list", "--own", "--limit", "2")
    assert table.code == 0
    assert [row[:3] for row in table.rows[1:]] == [
        ["a", "all", "service_account"], ["a", "all", "service_account+client_ip"],
    ]  # fmt: skip
    cursor = table.err.split("--cursor ")[1].strip()
    page = run("limit", "list", "--own", "--limit", "2", "--cursor", cursor, "--json").json
    assert page == {
        "limits": [
            {"tenant": "b", "scope": "client_ip", "window": "minute", "amount": 60, "unit": "requests",
             "mode": "reserve", "shadow": False, "model": None, "endpoint": [], "service_account": None,
             "field": "ratelimitIPPerMinute"}
        ],
        "cursor": None,
    }  # fmt: skip
    one = run("tenant", "limit", "list", "a", "--scope", "client_ip service_account", "--json").json["limits"]
    assert [each["field"] for each in one] == ["limits[0]"]
    with_defaults = run("limit", "list", "b", "--json").json["limits"]
    assert None in [each["field"] for each in with_defaults]


def test_a_list_of_limits_that_is_empty_says_why(run, stored):
    everybody = run("limit", "list")
    assert (everybody.code, everybody.out, everybody.err) == (0, "", "No tenant has limits of its own.\n")
    stored(sa_limit=5)
    assert run("limit", "list", "--scope", "endpoint").err == "No limit fits.\n"
    missing = run("limit", "list", "nobody")
    assert (missing.code, missing.out) == (3, "")
    assert run("limit", "list", "--scope", "planet").code == 2


def test_a_shadow_stands_beside_the_limit_and_the_mode_tells_them_apart(run, stored):
    stored(sa_limit=5)
    assert run("tenant", "limit", "add", "t", "tenant:100/day").code == 0
    shadow = ["--mode", "shadow", "--shadows", "strict"]
    assert run("tenant", "limit", "add", "t", "tenant:50/day", *shadow).code == 0
    assert [item.get("mode") for item in stored()["limits"]] == [None, "shadow"]
    several = run("tenant", "limit", "remove", "t", "tenant/day")
    assert (several.code, several.err) == (
        2,
        "tokenweir: there are several in different modes: name the mode too\n",
    )
    assert run("tenant", "limit", "remove", "t", "tenant/day", "--mode", "reserve").code == 0
    assert [item.get("mode") for item in stored()["limits"]] == ["shadow"]


def test_a_service_account_has_limits_of_its_own(run, stored):
    stored(sa_limit=5, mode="soft")
    assert run("tenant", "limit", "add", "t", "service_account:9/day", "--sa", "a").code == 0
    assert stored()["service_accounts"] == [
        {"name": "a", "limits": [{"scope": "service_account", "window": "day", "amount": 9}]}
    ]
    assert run("tenant", "limit", "remove", "t", "service_account/day", "--sa", "a", "--mode", "soft").code == 0
    assert stored() == {"sa_limit": 5, "mode": "soft"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "t", "tenant:100"], "a limit is SCOPE:AMOUNT/WINDOW"),
        (
            ["add", "t", "tenant:-1/day"],
            "AMOUNT must be a whole number of tokens or requests (12000, 12k, 1.5M), not '-1'",
        ),
        (["add", "t", "planet:1/day"], "SCOPE must be one of tenant, service_account"),
        (["add", "t", "tenant:1/year"], "WINDOW must be one of minute, hour"),
        (["add", "t", f"tenant:{10**13}/day"], "'limits[0].amount' must be a whole number of tokens"),
        (["add", "t", "service_account:1/day"], "'limits' must not add a second limit"),
        (["add", "t", "tenant:1/day", "--shadows", "soft"], "'limits[0].shadows' needs 'mode: shadow'"),
        (["remove", "t", "tenant:1"], "name the limit as SCOPE/WINDOW"),
    ],
)
def test_a_limit_that_can_not_be_is_one_line_and_exit_code_2(run, stored, words, message):
    stored(sa_limit=5)
    done = run("tenant", "limit", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message}")
    assert stored() == {"sa_limit": 5}


# ---------------------------------------------------------------- show


def test_show_tells_every_limit_that_binds_and_where_it_is_from(run, stored):
    stored(
        ip_limit=3,
        limits=[{"scope": "tenant", "window": "month", "amount": 9, "mode": "shadow", "shadows": "soft"}],
        service_accounts=[{"name": "a", "sa_limit": 7, "suspended": "unpaid"}],
        unknown_service_accounts={"ratelimitEachSAPerMinute": 2},
        top_ups=[
            {"amount": 1, "until": "2099-01-01T00:00:00Z", "scope": "service_account+client_ip"},
            {
                "amount": 2,
                "until": "2099-01-01T00:00:00Z",
                "scope": "tenant",
                "window": "month",
                "unit": "requests",
                "model": "m*",
                "endpoint": ["score", "embeddings"],
                "service_account": "a",
                "id": "sale",
                "note": "why",
            },
        ],
    )
    done = run("tenant", "show", "t")
    assert (done.code, done.err) == (0, "")
    rows = done.rows[2:]
    assert rows == [
        ["binds", "scope", "unit", "window", "amount", "mode", "model", "endpoint", "from"],
        ["all", "service_account+client_ip", "tokens", "day", "3", "reserve", "-", "-", "ip_limit"],
        ["all", "tenant", "tokens", "month", "9", "shadow of soft", "-", "-", "limits[0]"],
        ["a", "service_account", "tokens", "day", "7", "reserve", "-", "-", "service_accounts[0].sa_limit"],
        ["(others)", "service_account", "requests", "minute", "2", "reserve", "-", "-",
         "unknown_service_accounts.ratelimitEachSAPerMinute"],
        ["service account", "unlimited", "suspended"],
        ["a", "-", "unpaid"],
        ["(others)", "-", "-"],
        ["top-up for", "scope", "unit", "window", "amount", "model", "endpoint", "until", "id", "note"],
        ["all", "service_account+client_ip", "tokens", "day", "1", "-", "-", "2099-01-01T00:00:00Z", "-", "-"],
        ["a", "tenant", "requests", "month", "2", "m*", "embeddings, score", "2099-01-01T00:00:00Z", "sale", "why"],
    ]  # fmt: skip


def test_show_tells_of_defaults_that_bind_beside(run, stored):
    stored(ratelimitIPPerMinute=5)
    assert [row[-1] for row in run("tenant", "show", "t").rows[3:]] == ["ratelimitIPPerMinute", "(default)"]


def test_show_as_json_is_the_document_that_apply_reads(process, run, stored, database, tmp_path):
    whole = {
        "sa_limit": 5.0,
        "limits": [{"scope": "tenant", "window": "day", "amount": 9}],
        "top_ups": [{"amount": 1, "until": datetime(2099, 1, 1, tzinfo=UTC)}],
        "theirs": {"a": [1]},
    }
    stored(**whole)
    shown = process("tenant", "show", "t", "--json")
    assert (shown.code, shown.err) == (0, "")
    assert shown.json["tenant_id"] == "t"
    assert shown.json["top_ups"][0]["until"] == "2099-01-01T00:00:00Z"
    same = process("tenant", "apply", "-f", "-", stdin=shown.out)
    assert (same.code, same.err) == (0, "")
    assert same.out == "0 created, 0 changed, 0 deleted, 1 unchanged.\n"
    database.tenantLimitation.delete_many({})
    # Nobody's own field is there any more: it could be a misspelled one of ours.
    file = tmp_path / "t.json"
    file.write_text(shown.out)
    assert "'theirs' is no field" in run("tenant", "apply", "-f", str(file)).err
    file.write_text(json.dumps({name: value for name, value in shown.json.items() if name != "theirs"}))
    assert run("tenant", "apply", "-f", str(file)).rows[1][1] == "created"
    assert run("tenant", "show", "t", "--json").json.items() >= {"sa_limit": 5, "limits": whole["limits"]}.items()


def test_a_document_that_can_not_be_used_is_shown_with_a_note(run, stored):
    stored(sa_limit=-1)
    done = run("tenant", "show", "t", "--json")
    assert done.code == 0
    assert done.json["sa_limit"] == -1
    assert done.err.startswith("Fields of the document can't be used ('sa_limit' must be")


# ---------------------------------------------------------------- apply


def test_apply_says_what_it_does_to_each_tenant(run, stored, file):
    stored("same", sa_limit=5)
    stored("other", sa_limit=5, ip_limit=1, theirs="kept")
    documents = [
        {"tenant_id": "same", "sa_limit": 5},
        {"tenant_id": "other", "sa_limit": 6},
        {"tenant_id": "new", "unlimited": True},
    ]
    expected = [
        ["tenant", "verdict", "field", "before", "after"],
        ["other", "changed", "ip_limit", "1", "-"],
        ["other", "changed", "sa_limit", "5", "6"],
        ["new", "created", "unlimited", "-", "true"],
        ["1 created, 1 changed, 0 deleted, 1 unchanged."],
    ]
    dry = run("tenant", "apply", "-f", file(documents), "--dry-run")
    assert (dry.code, dry.rows, dry.err) == (2, expected, "Nothing was written: --dry-run.\n")
    assert (stored("other")["sa_limit"], stored("new")) == (5, None)
    done = run("tenant", "apply", "-f", file(documents))
    assert (done.code, done.rows, done.err) == (0, expected, "")
    assert stored("other") == {"sa_limit": 6, "theirs": "kept"}
    assert stored("new") == {"unlimited": True}
    again = run("tenant", "apply", "-f", file(documents), "--json").json
    summary = {"created": 0, "changed": 0, "deleted": 0, "unchanged": 3}
    assert again == {"dry_run": False, "summary": summary, "tenants": []}
    unchanged = run("apply", "-f", file(documents), "--check")
    assert (unchanged.code, unchanged.err) == (0, "Nothing was written: --dry-run.\n")


def test_apply_reads_yaml_of_one_document_or_several(run, stored, file):
    text = "tenant_id: a\nsa_limit: 1\n---\n- tenant_id: b\n  sa_limit: 2\n- tenant_id: c\n  sa_limit: 3\n"
    assert run("tenant", "apply", "-f", file(text)).code == 0
    assert [stored(name)["sa_limit"] for name in "abc"] == [1, 2, 3]
    assert run("tenant", "apply", "-f", file("tenant_id: a\nsa_limit: 4\n")).code == 0
    assert stored("a") == {"sa_limit": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"tenant_id": "ok", "sa_limit": 1}, {"tenant_id": "b", "sa_limit": -1}],
            "tenant 'b': 'sa_limit' must be",
        ),
        ([{"tenant_id": "ok", "sa_limit": 1}, {"sa_limit": 1}], "document 2: 'tenant_id' must be"),
        ([{"tenant_id": "ok", "sa_limit": 1}, 5], "document 2: must be an object"),
        ([{"tenant_id": "ok", "sa_limit": 1}, {"tenant_id": "ok"}], "tenant 'ok' is given twice"),
        ([{"tenant_id": "ok", "sa_limits": 1}], "tenant 'ok': 'sa_limits' is no field; use"),
        ([], "{file}: there is no document in it"),
        ("", "{file}: there is no document in it"),
        ("a: [", "{file}: not valid YAML at line 2, column 1"),
        ("\x07", "{file}: not valid YAML: it must be printable UTF-8 text"),
        (
            '{"tenant_id": "ok", "limits": [' + "[" * 50_000 + "]" * 50_000 + "]}",
            "{file}: not valid YAML at line 1, column 130: nested more than 100 deep",
        ),
    ],
)
def test_where_one_document_can_not_be_used_none_is_written(run, database, file, content, message):
    name = file(content)
    done = run("tenant", "apply", "-f", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"tokenweir: {message.replace('{file}', name)}")
    assert database.tenantLimitation.count_documents({}) == 0


def test_a_pipe_a_device_and_a_bomb_of_merges_are_refused_at_once(run, tmp_path, file):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30))]
    for name, message in (
        (str(fifo), "it is a pipe; name a regular file"),
        ("/dev/zero", "it is a device; name a regular file"),
        (file("\n".join(lines), "bomb.yaml"), "with what its anchors repeat it has more than 1,000,000 values"),
    ):
        done = run("tenant", "apply", "-f", name)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"tokenweir: {name}: ")
        assert message in done.err


def test_every_document_that_can_not_be_used_is_told_of(run, database, file):
    done = run(
        "tenant", "apply", "-f", file([{"tenant_id": "a", "sa_limit": "x"}, {"tenant_id": "b", "mode": "y"}])
    )
    assert [line.partition(": must")[0].split("'")[1] for line in done.err.splitlines()[:2]] == ["a", "b"]
    assert done.err.endswith("tokenweir: nothing was written\n")


def test_several_files_are_checked_as_one(run, stored, file):
    first = file([{"tenant_id": "a", "sa_limit": 1}, {"tenant_id": "b", "sa_limit": 2}], "first.json")
    second = file("tenant_id: c\nsa_limit: 3\n", "second.yaml")
    done = run("tenant", "apply", "-f", first, "-f", second)
    assert [row[:2] for row in done.rows[1:-1]] == [["a", "created"], ["b", "created"], ["c", "created"]]
    assert [stored(name) for name in "abc"] == [{"sa_limit": 1}, {"sa_limit": 2}, {"sa_limit": 3}]
    for content, message in (
        (
            [{"tenant_id": "a", "sa_limit": 9}, {"tenant_id": "d", "sa_limit": -1}],
            "tenant 'd': 'sa_limit' must be",
        ),
        ([{"tenant_id": "a", "sa_limit": 9}, {"tenant_id": "c"}], "tenant 'c' is given twice"),
        ([], "{file}: there is no document in it"),
    ):
        third = file(content, "third.json")
        for files in ((third, second), (second, third)):
            refused = run("tenant", "apply", *(word for name in files for word in ("-f", name)))
            assert (refused.code, refused.out) == (2, "")
            assert refused.err.startswith(f"tokenweir: {message.replace('{file}', third)}")
    assert stored("a") == {"sa_limit": 1}


def test_stdin_is_no_two_files(run, database):
    done = run("tenant", "apply", "-f", "-", "-f", "-")
    assert (done.code, done.err) == (2, "tokenweir: stdin can be read once only: give '-' once\n")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("tenant_id: ok\nsa_limit: 1\nip_limit: 5\nsa_limit: 2\n", "line 4, column 1: 'sa_limit'"),
        ("tenant_id: ok\nlimits:\n- {scope: tenant, amount: 1, amount: 2}\n", "line 3, column 30: 'amount'"),
        ("tenant_id: ok\n---\ntenant_id: b\n'tenant_id': c\n", "line 4, column 1: 'tenant_id'"),
        ('{"tenant_id": "ok",\n "sa_limit": 1,\n "sa_limit": 2}', "line 3, column 2: 'sa_limit'"),
        ('[{"tenant_id": "ok", "sa_limit": 1, "sa_limit": 1}]', "line 1, column 37: 'sa_limit'"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(run, database, file, content, where):
    name = file(content)
    message = f"tokenweir: {name}: not valid YAML at {where} is given twice\n"
    for words in (("tenant", "apply", "-f", name), ("simulate", "--limits", name)):
        done = run(*words)
        assert (done.code, done.out, done.err) == (2, "", message)
    assert database.tenantLimitation.count_documents({}) == 0


def test_a_key_beside_the_one_that_a_merge_brings_is_not_given_twice(run, stored, file):
    text = (
        "- &base {tenant_id: a, sa_limit: 1, ip_limit: 2}\n"
        "- &other\n  <<: *base\n  tenant_id: b\n  sa_limit: 3\n"
        "- {<<: *other, tenant_id: c}\n"
    )
    assert run("tenant", "apply", "-f", file(text)).code == 0
    assert [stored(name) for name in "abc"] == [
        {"sa_limit": 1, "ip_limit": 2},
        {"sa_limit": 3, "ip_limit": 2},
        {"sa_limit": 3, "ip_limit": 2},
    ]


def test_a_top_up_that_raises_nothing_is_told_of_and_applied_all_the_same(run, stored, file):
    lasting = {"amount": 1, "until": "2099-01-01T00:00:00Z"}
    document = {
        "tenant_id": "t",
        "sa_limit": 5,
        "limits": [NARROW],
        "top_ups": [
            lasting,
            lasting | {"scope": "tenant"},
            lasting | {"scope": "tenant", "endpoint": ["score", "embeddings"]},
            {"amount": 1, "until": "2020-01-01T00:00:00Z"},
        ],
    }
    notes = (
        "tenant 't': 'top_ups[1]' raises nothing: no limit of that scope, window, unit, model and endpoint\n"
        "tenant 't': 'top_ups[3]' raises nothing: it is over\n"
    )
    done = run("tenant", "apply", "-f", file(document), "--json")
    assert (done.code, done.err) == (0, notes)
    assert list(done.json["tenants"][0]) == ["tenant", "verdict", "changes"]
    assert stored()["top_ups"] == document["top_ups"]
    assert (
        run("tenant", "apply", "-f", file(document), "--dry-run").err
        == notes + "Nothing was written: --dry-run.\n"
    )


def test_a_file_that_is_not_there_is_one_line(run, database, tmp_path):
    done = run("tenant", "apply", "-f", str(tmp_path / "none.yaml"))
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("none.yaml: can't be read: No such file or directory\n")


def test_a_document_that_was_shown_before_somebody_changed_it_is_refused(run, stored, file):
    assert run("tenant", "set", "t", "--sa-limit", "5").code == 0
    shown = run("tenant", "show", "t", "--json").json
    assert run("tenant", "set", "t", "--sa-limit", "6").code == 0
    done = run("tenant", "apply", "-f", file(shown | {"sa_limit": 7}))
    assert done.code == 4
    assert done.err.startswith("tokenweir: tenant 't': was changed since: its version is 2, not 1")
    assert stored()["sa_limit"] == 6
    del shown["version"]
    assert run("tenant", "apply", "-f", file(shown | {"sa_limit": 7})).code == 0
    assert stored()["sa_limit"] == 7
