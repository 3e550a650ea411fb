"""Who changed what: each change has its entry, with its reason, and shows what it changed."""

import getpass
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.system

NOBODY = "Tenant 'nobody' has no change in the audit log: there was none, or it was before auditing began.\n"


def numbers(run, tenant="t"):
    return run("tenant", "show", tenant, "--json").json["version"]


def test_each_change_is_in_the_log_with_who_from_where_and_why(run, database):
    run("tenant", "set", "t", "--sa-limit", "12k", "--note", "by contract")
    run("limit", "add", "t", "tenant:5M/month")
    run("tenant", "suspend", "t", "--sa", "a", "--reason", "runaway", "--note", "ticket 5")
    run("tenant", "delete", "t", "--yes")
    entries = run("audit", "list", "--json").json["entries"]
    assert [(e["id"], e["action"], e["subject"], e["note"], e["version"], e["state"]) for e in entries] == [
        ("t:4", "tenant.delete", None, None, None, "done"),
        ("t:3", "tenant.suspend", "a", "ticket 5", 3, "done"),
        ("t:2", "limit.add", "tenant/month tokens", None, 2, "done"),
        ("t:1", "tenant.set", None, "by contract", 1, "done"),
    ]
    actor = {"name": getpass.getuser(), "kind": "os-user", "origin": socket.gethostname()}
    assert [e["actor"] for e in entries] == [actor] * 4
    assert entries[-1]["changes"] == [{"field": "sa_limit", "before": None, "after": 12000}]
    assert entries[0]["before"]["sa_limit"] == 12000
    assert entries[0]["after"] is None
    table = run("tenant", "history", "t")
    assert [row[0] for row in table.rows[1:]] == ["t:4", "t:3", "t:2", "t:1"]
    shown = run("audit", "show", "t:2")
    assert (shown.code, shown.rows[-1]) == (
        0, ["limits[]", "-", '{"scope":"tenant","window":"month","amount":5000000}'],
    )  # fmt: skip
    assert run("audit", "show", "t:2", "--json").json == entries[2]
    gone = run("audit", "show", "t:5")
    assert (gone.code, gone.err) == (
        3, "tokenweir: there is no audit entry 't:5'; 'audit list' lists those that there are\n",
    )  # fmt: skip
    assert run("tenant", "history", "nobody").err == NOBODY


def test_the_log_is_filtered_and_comes_in_pages(run, database):
    for number in range(1, 6):
        run("tenant", "set", f"t{number % 2}", "--sa-limit", str(number))
    pages, cursor = [], []
    while True:
        page = run("audit", "list", "--json", "--limit", "2", *cursor).json
        pages.append([e["id"] for e in page["entries"]])
        if page["cursor"] is None:
            break
        cursor = ["--cursor", page["cursor"]]
    assert [len(page) for page in pages] == [2, 2, 1]
    every = [entry for page in pages for entry in page]
    assert sorted(every) == ["t0:1", "t0:2", "t1:1", "t1:2", "t1:3"]
    more = run("audit", "list", "--limit", "2")
    assert re.fullmatch(r"There is more: go on with --cursor [\w-]+\n", more.err)

    def ids(*options):
        return {e["id"] for e in run("audit", "list", "--json", *options).json["entries"]}

    assert ids("--tenant", "t0") == {"t0:1", "t0:2"}
    assert ids("--action", "tenant") == ids("--actor", getpass.getuser()) == ids("--since", "-1h") == set(every)
    assert ids("--action", "limit") == ids("--actor", "bob") == ids("--until", "-1h") == set()
    for options, message in (
        (["--cursor", "nonsense"], "the cursor can't be read"),
        (["--cursor", "x" * 5000], "the cursor can't be read"),
        (["--since", "yesterday"], "--since must be an instant"),
        (["--since", "-1h", "--until", "-2h"], "'since' must be before 'until'"),
        (["--tenant", "a\nb"], "the tenant must be a printable name"),
    ):
        done = run("audit", "list", *options)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"tokenweir: {message}")


def test_a_change_in_mongodb_itself_shows_in_the_history_once_auditing_has_begun(run, database):
    database.admin_audit.insert_one(
        {"_id": "audit-began", "at": database.client.admin.command("hello")["localTime"], "action": "audit.began",
         "actor": {"name": "tokenweir", "kind": "tokenweir", "origin": "r"}}
    )  # fmt: skip
    run("tenant", "set", "t", "--sa-limit", "5")
    database.tenantLimitation.update_one({"tenant_id": "t"}, {"$set": {"sa_limit": 500}})
    (direct, ours) = run("tenant", "history", "t", "--json").json["entries"]
    assert (direct["actor"]["kind"], direct["action"], ours["action"]) == ("direct", "tenant.direct", "tenant.set")
    assert direct["changes"] == [{"field": "sa_limit", "before": 5, "after": 500}]
    database.tenantLimitation.delete_one({"tenant_id": "t"})
    entries = run("tenant", "history", "t", "--json").json["entries"]
    assert [(e["action"], e["after"] is None) for e in entries] == [
        ("tenant.direct", True), ("tenant.direct", False), ("tenant.set", False),
    ]  # fmt: skip


def test_a_direct_change_is_told_apart_from_the_next_one_of_ours_without_anything_else(run, database):
    run("tenant", "set", "t", "--sa-limit", "5")
    database.tenantLimitation.update_one({"tenant_id": "t"}, {"$set": {"sa_limit": 500}})
    run("tenant", "set", "t", "--sa-limit", "6")
    entries = run("audit", "list", "--tenant", "t", "--json").json["entries"]
    changes = {e["number"] if "number" in e else e["id"]: e["changes"][0] for e in entries}
    assert {name: (each["before"], each["after"]) for name, each in changes.items()} == {
        "t:1": (None, 5), "t:2": (5, 500), "t:3": (500, 6),
    }  # fmt: skip


# ---------------------------------------------------------------- two admins


def test_a_change_of_a_version_that_is_gone_is_exit_code_4(run, database):
    run("tenant", "set", "t", "--sa-limit", "1")
    version = numbers(run)
    run("tenant", "set", "t", "--sa-limit", "2")
    for words in (
        ["tenant", "set", "t", "--sa-limit", "3"],
        ["tenant", "suspend", "t", "--reason", "r"],
        ["tenant", "delete", "t", "--yes"],
        ["limit", "add", "t", "tenant:1/day"],
        ["tenant", "top-up", "t", "--amount", "1", "--until", "+1h"],
    ):
        done = run(*words, "--if-version", str(version))
        assert (done.code, done.out) == (4, "")
        assert "was changed by somebody else: its version is 2, not 1" in done.err
    assert numbers(run) == 2
    assert run("tenant", "set", "t", "--sa-limit", "3", "--if-version", "2").code == 0
    assert run("tenant", "set", "new", "--sa-limit", "3", "--if-version", "0").code == 0
    assert run("tenant", "set", "new", "--sa-limit", "4", "--if-version", "0").code == 4


def test_of_two_admins_on_one_version_one_is_let_through(process, run, database):
    run("tenant", "set", "t", "--sa-limit", "1")
    words = [["tenant", "set", "t", "--sa-limit", str(amount), "--if-version", "1"] for amount in (2, 3, 4)]
    with ThreadPoolExecutor() as pool:
        codes = sorted(done.code for done in pool.map(lambda each: process(*each), words))
    assert codes == [0, 4, 4]
    assert numbers(run) == 2


def test_a_dry_run_shows_the_change_and_writes_nothing(run, database):
    run("tenant", "set", "t", "--sa-limit", "1")
    for words in (
        ["tenant", "set", "t", "--sa-limit", "3"],
        ["tenant", "suspend", "t", "--reason", "r"],
        ["tenant", "delete", "t"],
        ["limit", "add", "t", "tenant:1/day"],
        ["tenant", "top-up", "t", "--amount", "1", "--until", "+1h"],
        ["tenant", "set", "new", "--sa-limit", "3"],
    ):
        done = run(*words, "--dry-run")
        assert (done.code, "Would" in done.out) == (0, True)
        assert done.err.endswith("Nothing was written: --dry-run.\n")
        assert run(*words, "--dry-run", "--json").json["dry_run"] is True
    assert database.tenantLimitation.count_documents({}) == database.admin_audit.count_documents({}) == 1


def test_what_is_as_wanted_already_is_not_written_again(run, database):
    run("tenant", "set", "t", "--sa-limit", "1")
    again = run("tenant", "set", "t", "--sa-limit", "1")
    assert (again.code, again.out) == (0, "Tenant 't' is as wanted already: nothing was written.\n")
    assert database.admin_audit.count_documents({}) == numbers(run) == 1


# ---------------------------------------------------------------- top-ups, labels, lists


def test_the_same_top_up_twice_adds_once_and_it_can_be_cancelled(run, database):
    run("tenant", "set", "t", "--sa-limit", "5")
    words = ["tenant", "top-up", "t", "--amount", "1.5k", "--until", "+2h", "--id", "sale", "--note", "in March"]
    assert run(*words).code == 0
    again = run(*words)
    assert (again.code, again.err) == (2, "tokenweir: there is a top-up 'sale' already: nothing was added\n")
    (made,) = database.tenantLimitation.find_one({"tenant_id": "t"})["top_ups"]
    assert (made["id"], made["amount"], made["note"]) == ("sale", 1500, "in March")
    assert run("tenant", "show", "t").rows[-1][-2:] == ["sale", "in March"]
    assert run("tenant", "list", "--json").json[0]["top_ups"] == 1
    done = run("tenant", "cancel-top-up", "t", "sale", "--note", "sold out")
    assert (done.code, done.rows[0]) == (0, ["Updated tenant 't' (version 3)."])
    assert "top_ups" not in database.tenantLimitation.find_one({"tenant_id": "t"})
    gone = run("tenant", "cancel-top-up", "t", "sale")
    assert (gone.code, gone.err.startswith("tokenweir: there is no top-up 'sale'")) == (3, True)
    assert run("tenant", "cancel-top-up", "nobody", "sale").code == 3
    subjects = [(e["action"], e["subject"]) for e in run("audit", "list", "--json").json["entries"]]
    assert subjects[:2] == [("tenant.cancel_top_up", "sale"), ("tenant.top_up", "sale")]


def test_tenants_are_listed_by_name_state_and_label(run, database):
    run("tenant", "set", "zone-a", "--sa-limit", "1", "--label", "team=search", "--label", "tier=gold")
    run("tenant", "set", "zone-b", "--sa-limit", "1", "--label", "team=ads", "--mode", "strict")
    run("tenant", "suspend", "zone-b", "--sa", "x", "--reason", "r")
    run("tenant", "suspend", "other", "--reason", "unpaid")
    database.tenantLimitation.insert_one({"tenant_id": "broken", "sa_limit": -1})

    def names(*options):
        return [view["tenant"] for view in run("tenant", "list", "--json", *options).json]

    assert names() == ["broken", "other", "zone-a", "zone-b"]
    assert names("--name", "zone-*") == ["zone-a", "zone-b"]
    assert names("--suspended") == ["other", "zone-b"]
    assert names("--not-suspended") == ["broken", "zone-a"]
    assert names("--mode", "strict") == ["zone-b"]
    assert names("--label", "team") == ["zone-a", "zone-b"]
    assert names("--label", "team=ads") == ["zone-b"]
    assert names("--problem") == ["broken"]
    assert names("--no-problem", "--suspended") == ["other", "zone-b"]
    assert run("tenant", "list", "--name", "none").err == "No tenant fits.\n"
    row = run("tenant", "list", "--name", "zone-b").rows[1]
    assert (row[6], row[-1]) == ("x", "team=ads")
    first = run("tenant", "list", "--limit", "3")
    cursor = first.err.split()[-1]
    assert [line[0] for line in run("tenant", "list", "--limit", "3", "--cursor", cursor).rows[1:]] == ["zone-b"]


def test_labels_are_added_changed_and_ended_one_by_one(run, database):
    run("tenant", "set", "t", "--sa-limit", "1", "--label", "team=search", "--label", "tier=gold")
    done = run("tenant", "set", "t", "--label", "team=ads", "--label", "tier=none")
    assert done.rows[2:] == [["labels.team", "search", "ads"], ["labels.tier", "gold", "-"]]
    assert database.tenantLimitation.find_one({"tenant_id": "t"})["labels"] == {"team": "ads"}
    assert run("tenant", "set", "t", "--label", "team=none").code == 0
    assert "labels" not in database.tenantLimitation.find_one({"tenant_id": "t"})
    for label, message in (
        ("team", "a label is NAME=VALUE"),
        ("team=", "a label is NAME=VALUE"),
        ("$where=1", "'labels' must be an object of at most 64 names"),
        ("a.b=1", "'labels' must be an object of at most 64 names"),
        ("=1", "'labels' must be an object of at most 64 names"),
    ):
        refused = run("tenant", "set", "t", "--label", label)
        assert (refused.code, message in refused.err) == (2, True)


@pytest.mark.parametrize("note", ["", " ", "a\nb", "\x1b[31m", "x" * 1001])
def test_a_note_that_is_no_text_is_refused(run, database, note):
    done = run("tenant", "set", "t", "--sa-limit", "1", "--note", note)
    assert (done.code, done.err) == (2, "tokenweir: the note must be printable text of 1 to 1000 characters\n")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("10k", 10_000), ("1e6", 10**6), ("2.5M", 2_500_000), ("1_000", 1000), ("1G", 10**9), ("0.001k", 1), ("1E+2", 100),
     ("3K", 3000), ("1T", 10**12)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(run, database, text, amount):
    assert run("tenant", "set", "t", "--sa-limit", text).code == 0
    assert run("limit", "add", "t", f"client_ip:{text}/hour").code == 0
    stored = database.tenantLimitation.find_one({"tenant_id": "t"})
    assert (stored["sa_limit"], stored["limits"][0]["amount"]) == (amount, amount)


@pytest.mark.parametrize(
    "text", ["1.5", "1,000", "10kk", "k", "1e", "-1", "1e-3", "0x10", " 5", "1.0001k", "1 k", "١٢"]
)
def test_what_is_no_whole_number_is_refused(run, database, text):
    done = run("tenant", "set", "t", "--sa-limit", text)
    assert (done.code, done.out) == (2, "")
    assert "--sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none'" in done.err
    assert run("tenant", "top-up", "t", "--amount", "0", "--until", "+1h").code == 2


@pytest.mark.parametrize(
    "scope", ["client_ip+service_account", "service_account + client_ip", "client_ip service_account"]
)
def test_the_parts_of_a_scope_come_in_any_order(run, database, scope):
    assert run("limit", "add", "t", f"{scope}:5/day").code == 0
    until = ["--until", "+1h"]
    assert run("tenant", "top-up", "t", "--amount", "1", "--scope", scope, *until).code == 0
    stored = database.tenantLimitation.find_one({"tenant_id": "t"})
    assert stored["limits"][0]["scope"] == stored["top_ups"][0]["scope"] == "service_account+client_ip"
    assert run("limit", "add", "t", "tenant:9/day").code == 0
    assert run("limit", "remove", "t", f"{scope}/day").code == 0
    assert run("limit", "add", "t", "tenant+tenant+x:5/day").code == 2
