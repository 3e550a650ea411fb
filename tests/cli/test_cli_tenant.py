import io
import sys

import pytest
from bson import Decimal128, ObjectId

pytestmark = pytest.mark.system

COLUMNS = [
    "tenant", "sa_limit", "ip_limit", "timezone", "problem", "suspended", "suspended_accounts", "top_ups",
    "limits", "mode", "on_store_failure", "labels",
]  # fmt: skip
KEYS = sorted([*COLUMNS, "defaults", "managed_by", "version"])


def test_a_tenant_is_set_shown_listed_and_deleted(run, database):
    done = run("tenant", "set", "tenant01", "--sa-limit", "12000", "--ip-limit", "400")
    assert (done.code, done.err) == (0, "")
    assert done.rows == [
        ["Created tenant 'tenant01' (version 1)."],
        ["field", "before", "after"],
        ["ip_limit", "-", "400"],
        ["sa_limit", "-", "12000"],
    ]
    assert database.tenantLimitation.find_one({"tenant_id": "tenant01"})["sa_limit"] == 12000
    row = ["tenant01", "12000", "400", "UTC", "-", "-", "-", "-", "2", "-", "deny", "-"]
    assert run("tenant", "show", "tenant01").rows[:2] == [COLUMNS, row]
    assert run("tenant", "list").rows == [COLUMNS, row]
    deleted = run("tenant", "delete", "tenant01", "--yes")
    assert (deleted.code, deleted.rows[0]) == (0, ["Deleted the limits of tenant 'tenant01'."])
    assert database.tenantLimitation.count_documents({}) == 0


def test_setting_one_limit_keeps_the_other_and_every_field_that_is_somebody_elses(run, database):
    database.tenantLimitation.insert_one({"tenant_id": "t", "sa_limit": 5, "ip_limit": 3.0, "note": "kept"})
    done = run("tenant", "set", "t", "--sa-limit", "7")
    assert done.rows == [
        ["Updated tenant 't' (version 1)."], ["field", "before", "after"], ["sa_limit", "5", "7"],
    ]  # fmt: skip
    assert run("tenant", "set", "t", "--ip-limit", "none").code == 0
    stored = database.tenantLimitation.find_one({"tenant_id": "t"})
    assert (stored["sa_limit"], "ip_limit" in stored, stored["note"]) == (7, False, "kept")


def test_json_has_the_documented_keys(run, database):
    made = run("tenant", "set", "t", "--sa-limit", "5000000000", "--json")
    view = made.json.pop("view")
    assert (
        view.items()
        >= {
            "tenant": "t",
            "sa_limit": 5_000_000_000,
            "ip_limit": None,
            "timezone": "UTC",
            "problem": None,
            "suspended": None,
            "limits": 1,
            "defaults": [],
            "on_store_failure": "deny",
            "version": 1,
        }.items()
    )
    assert sorted(view) == KEYS
    change = {"field": "sa_limit", "before": None, "after": 5_000_000_000}
    assert made.json.items() >= {"tenant": "t", "created": True, "version": 1, "changes": [change]}.items()
    assert run("tenant", "list", "--json").json == [view]
    deleted = run("tenant", "delete", "t", "--yes", "--json").json
    assert (deleted["tenant"], deleted["view"], deleted["changes"][0]["before"]) == ("t", None, 5_000_000_000)
    assert run("tenant", "list", "--json").json == []


def test_an_empty_list_says_so_on_stderr(run, database):
    done = run("tenant", "list")
    assert (done.code, done.out) == (0, "")
    assert done.err == "No tenant has limits of its own; the defaults bind everybody.\n"


@pytest.mark.parametrize("command", [["show", "nobody"], ["delete", "nobody", "--yes"]])
def test_a_tenant_that_is_not_there_is_exit_code_3(run, database, command):
    done = run("tenant", *command, "--json")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("tokenweir: tenant 'nobody' has no limits of its own")


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("-5", "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '-5'"),
        ("1.5", "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '1.5'"),
        ("", "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not ''"),
        ("²", "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '²'"),
        ("[red]", "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '[red]'"),
        ("\x1b[31m", r"--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '\x1b[31m'"),
        (str(2**70), "'sa_limit' must be a whole number of tokens from 0 to 1000000000000"),
        (
            "9" * 5000,
            "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '" + "9" * 40 + "'",
        ),
    ],
)
def test_an_amount_that_is_none_is_one_line_and_exit_code_2(run, database, amount, message):
    done = run("tenant", "set", "t", "--sa-limit", amount)
    assert (done.code, done.out, done.err) == (2, "", f"tokenweir: {message}\n")
    assert database.tenantLimitation.count_documents({}) == 0


def test_setting_nothing_is_wrong_use(run, database):
    done = run("tenant", "set", "t")
    assert (done.code, done.err) == (
        2,
        "tokenweir: nothing to set: give --sa-limit, --ip-limit or another option\n",
    )


def test_nothing_is_deleted_without_a_yes(process, run, database, monkeypatch):
    database.tenantLimitation.insert_one({"tenant_id": "t", "sa_limit": 5})
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    for call in (run, process):  # the process has no stdin
        done = call("tenant", "delete", "t", "--json")
        assert (done.code, done.out) == (2, "")
        assert "Delete the limits of tenant 't'? [y/N]" in done.err
        assert done.err.endswith("tokenweir: nothing was deleted; --yes deletes without asking\n")
        assert database.tenantLimitation.count_documents({}) == 1
    assert process("tenant", "delete", "t", "--json", stdin="y\n").json["tenant"] == "t"


def test_documents_that_somebody_else_wrote_are_listed_whatever_is_in_them(run, database):
    database.tenantLimitation.insert_many(
        [
            {"tenant_id": "[red]markup", "sa_limit": 1},
            {"tenant_id": "\x1b[31mansi\n", "sa_limit": 1},
            {"tenant_id": "float", "sa_limit": 400.0},
            {"tenant_id": "nan", "sa_limit": float("nan")},
            {"tenant_id": "decimal", "sa_limit": Decimal128("1.5")},
            {"tenant_id": "object", "sa_limit": ObjectId("6b02d5ca4a1b6096c97f05e4")},
            {"tenant_id": "long", "sa_limit": 2**62},
            {"tenant_id": "zone", "sa_limit": 1, "timezone": "Mars/Olympus"},
            {"tenant_id": 5, "sa_limit": {"a": [1]}},
            {"sa_limit": 1},
        ]
    )
    table = run("tenant", "list")
    assert (table.code, table.err) == (0, "")
    assert "[red]markup  " in table.out
    assert r"\x1b[31mansi\n" in table.out
    assert "\x1b" not in table.out
    as_json = run("tenant", "list", "--json")
    assert as_json.code == 0
    limits = {view["tenant"]: (view["sa_limit"], view["problem"] is None) for view in as_json.json}
    assert limits == {
        "[red]markup": (1, True),
        "\x1b[31mansi\n": (1, False),
        "float": (400, True),
        "nan": ("nan", False),
        "decimal": ("1.5", False),
        "object": ("6b02d5ca4a1b6096c97f05e4", False),
        "long": (2**62, False),
        "zone": (1, False),
        "5": ("{'a': [1]}", False),
        "": (1, False),
    }


def test_a_table_in_a_pipe_has_one_line_per_row_however_long(run, database):
    database.tenantLimitation.insert_one({"tenant_id": "t" * 256, "sa_limit": -1})
    done = run("tenant", "list")
    assert len(done.out.splitlines()) == 3
    assert "t" * 256 in done.out
    assert "from 0 to 1000000000000" in done.out


def test_a_table_on_a_narrow_terminal_keeps_names_whole(run, database, environment):
    environment.setenv("COLUMNS", "20")
    environment.setenv("TERM", "xterm")
    environment.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    database.tenantLimitation.insert_one({"tenant_id": "t" * 60, "sa_limit": 1})
    assert "t" * 60 in run("tenant", "list").out


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "", " t", "x" * 257])
def test_a_name_that_can_not_be_a_tenant_is_wrong_use_and_never_printed_raw(run, database, name):
    done = run("tenant", "show", name)
    assert (done.code, done.out) == (2, "")
    assert done.err == "tokenweir: the tenant must be a printable name of 1 to 256 characters\n"
