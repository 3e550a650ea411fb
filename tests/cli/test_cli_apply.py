"""Files are the source: folders are applied and pruned, differences have an exit code, and an export comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.system

UNCHANGED = "0 created, 0 changed, 0 deleted, {} unchanged.\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with one file a tenant."""
    path = tmp_path / "tenants"

    def call(**amounts):
        path.mkdir(exist_ok=True)
        for file in path.iterdir():
            file.unlink()
        for name, amount in amounts.items():
            (path / f"{name}.yaml").write_text(f"tenant_id: {name}\nsa_limit: {amount}\n")
        return str(path)

    return call


def amounts(database):
    return {each["tenant_id"]: each.get("sa_limit") for each in database.tenantLimitation.find()}


def test_a_folder_is_applied_with_all_its_files_but_no_hidden_ones(run, database, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.yaml").write_text("tenant_id: a\nsa_limit: 1\n---\ntenant_id: b\nsa_limit: 2\n")
    (tmp_path / "c.json").write_text('[{"tenant_id": "c", "sa_limit": 3}]')
    (tmp_path / "README.md").write_text("no document")
    (tmp_path / ".d.yaml").write_text("tenant_id: d\nsa_limit: 4\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/e.yaml").write_text("tenant_id: e\nsa_limit: 5\n")
    assert run("apply", "-f", str(tmp_path)).code == 0
    assert amounts(database) == {"a": 1, "b": 2, "c": 3}
    (tmp_path / "empty").mkdir()
    done = run("apply", "-f", str(tmp_path / "empty"))
    assert (done.code, done.err) == (
        2,
        f"tokenweir: {tmp_path}/empty: there is no file .json or .yaml or .yml in it\n",
    )


def test_the_exit_code_of_a_dry_run_tells_differences_from_mistakes(run, database, folder):
    name = folder(a=1, b=2)
    assert run("apply", "-f", name, "--dry-run").code == 2
    assert run("apply", "-f", name, "--check", "--json").json["summary"]["created"] == 2
    assert amounts(database) == {}
    assert run("apply", "-f", name).code == 0
    same = run("apply", "-f", name, "--dry-run")
    assert (same.code, same.out) == (0, UNCHANGED.format(2))
    for words in (["-f", name + "/none.yaml"], ["-f", name, "--nonsense"], [], ["-f", name, "--prune", "a\nb"]):
        assert run("apply", *words, "--dry-run").code == 1
        assert run("apply", *words).code == 2
    (Path(name) / "c.yaml").write_text("tenant_id: c\nsa_limit: -1\n")
    assert run("apply", "-f", name, "--dry-run").code == 1
    assert run("apply", "-f", name).code == 2


def test_pruning_deletes_what_it_made_and_nothing_else(run, database, folder):
    run("tenant", "set", "ours", "--sa-limit", "7")
    assert run("apply", "-f", folder(other=1), "--prune", "team-b").code == 0
    assert run("apply", "-f", folder(a=1, b=2), "--prune", "team-a", "--note", "first").code == 0
    assert database.tenantLimitation.find_one({"tenant_id": "a"})["managed_by"] == "team-a"
    name = folder(a=5)
    dry = run("apply", "-f", name, "--prune", "team-a", "--dry-run")
    assert (dry.code, dry.rows[1:]) == (
        2,
        [["a", "changed", "sa_limit", "1", "5"], ["b", "deleted", "-", "-", "-"],
         ["0 created, 1 changed, 1 deleted, 0 unchanged."]],
    )  # fmt: skip
    assert run("apply", "-f", name, "--prune", "team-a", "--note", "second").code == 0
    assert amounts(database) == {"a": 5, "ours": 7, "other": 1}
    entries = run("audit", "list", "--tenant", "b", "--json").json["entries"]
    assert [(e["action"], e["note"], e["after"] is None) for e in entries] == [
        ("tenant.apply", "second", True), ("tenant.apply", "first", False),
    ]  # fmt: skip
    assert run("apply", "-f", name, "--prune", "team-a", "--check").code == 0
    assert run("apply", "-f", name, "--check").code == 0  # without --prune it stays managed
    taken = run("apply", "-f", folder(other=1), "--prune", "team-a")
    assert (taken.code, taken.err.splitlines()[0]) == (
        2, "tokenweir: tenant 'other' is managed by 'team-b', not by 'team-a'",
    )  # fmt: skip


def test_an_export_comes_back_without_a_difference(run, database, tmp_path):
    hostile = ["a/b", "../up", ".hidden", "a b", "ä", "A", "a", "x" * 256, "$where", "=cmd()", "null", "1"]
    database.tenantLimitation.insert_many([{"tenant_id": name, "sa_limit": 5} for name in hostile])
    whole = {
        "tenant_id": "whole",
        "sa_limit": 5.0,
        "limits": [{"scope": "tenant", "window": "day", "amount": 9, "note": 'yes: it\'s\n"so"'}],
        "service_accounts": [{"name": "a@b", "unlimited": True}],
        "top_ups": [{"amount": 1, "until": datetime(2099, 1, 1, 1, 2, 3, 456_000, tzinfo=UTC), "id": "1"}],
        "weights": {"input": 0.25},
        "labels": {"team": "no"},
        "theirs": {"a": [1]},
    }
    database.tenantLimitation.insert_many([whole, {"tenant_id": "broken", "sa_limit": -1}, {"sa_limit": 1}])
    count = len(hostile) + 2
    out = tmp_path / "out"
    done = run("export", "--to", str(out))
    assert (done.code, done.out) == (0, f"Exported {count} tenants to {out}.\n")
    assert len(list(out.iterdir())) == count
    assert list(tmp_path.iterdir()) == [out]
    same = run("apply", "-f", str(out), "--check")
    assert (same.code, same.out) == (0, UNCHANGED.format(count))
    stream = tmp_path / "all.yaml"
    stream.write_text(run("export").out)
    assert run("apply", "-f", str(stream), "--check").out == UNCHANGED.format(count)
    database.tenantLimitation.delete_many({})
    (out / "broken.yaml").unlink()
    assert run("apply", "-f", str(out)).code == 0
    assert database.tenantLimitation.count_documents({}) == count - 1
    assert run("apply", "-f", str(out), "--check").code == 0


def test_exporting_again_leaves_files_alone_and_names_those_of_nobody(run, database, tmp_path, folder):
    run("apply", "-f", folder(a=1, b=2))
    out = tmp_path / "out"
    run("export", "--to", str(out))
    os.utime(out / "a.yaml", (1, 1))
    run("tenant", "set", "b", "--sa-limit", "9")
    database.tenantLimitation.insert_one({"tenant_id": "c", "sa_limit": 1})
    (out / "gone.yaml").write_text("tenant_id: gone\n")
    done = run("export", "--to", str(out))
    assert done.err == f"{out} has files of no tenant that there is now: gone.yaml\n"
    assert (out / "a.yaml").stat().st_mtime == 1
    assert yaml.safe_load((out / "b.yaml").read_text()) == {"tenant_id": "b", "sa_limit": 9}
    refused = run("export", "--to", str(out / "a.yaml"))
    assert (refused.code, refused.err.startswith(f"tokenweir: {out}/a.yaml: can't be written")) == (2, True)


@pytest.mark.thorough  # MongoDB keeps a killed transaction, and what it locks, for a minute
def test_killed_midway_and_called_again_it_ends_the_same(database, folder):
    name = folder(**{f"t{number}": number for number in range(1500)})
    call = [sys.executable, "-m", "extproc", "apply", "-f", name, "--prune", "x"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        until = time.monotonic() + 60
        while database.tenantLimitation.count_documents({}) == 0 and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    written = database.tenantLimitation.count_documents({})
    assert 0 < written <= 1500
    assert database.admin_audit.count_documents({}) == written
    again = subprocess.run([*call, "--json"], env=environment, capture_output=True, check=True, timeout=300)
    assert json.loads(again.stdout)["summary"] == {
        "created": 1500 - written, "changed": 0, "deleted": 0, "unchanged": written,
    }  # fmt: skip
    assert database.admin_audit.count_documents({}) == database.tenantLimitation.count_documents({}) == 1500


def test_the_table_is_bounded_and_the_summary_counts_all(run, database, folder):
    done = run("apply", "-f", folder(**{f"t{number}": number for number in range(250)}))
    assert len(done.rows) == 1 + 200 + 1
    assert done.rows[-1] == ["250 created, 0 changed, 0 deleted, 0 unchanged."]
    assert done.err == "50 more lines are left out; --json has them all.\n"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("labels: {a.b: c}", "'labels' must be an object"),
        ("labels: [a]", "'labels' must be an object"),
        ("labels: {a: 5}", "'labels' must be an object"),
        ("managed_by: 5", "'managed_by' must be a printable text"),
        (
            "top_ups: [{amount: 1, until: 2099-01-01, id: a}, {amount: 2, until: 2099-01-01, id: a}]",
            "has an 'id' twice",
        ),
    ],
)
def test_what_apply_alone_checks_is_named(run, database, tmp_path, field, message):
    file = tmp_path / "t.yaml"
    file.write_text(f"tenant_id: t\nsa_limit: 1\n{field}\n")
    done = run("apply", "-f", str(file))
    assert (done.code, message in done.err) == (2, True)
    assert amounts(database) == {}
