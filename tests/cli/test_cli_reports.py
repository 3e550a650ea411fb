"""Usage reports of real stores: tables, files, totals, closed months."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from extproc.core.quota.settlement import Outcome
from extproc.ports.reports import Sums, sums_of
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from tests.changing import replace
from tests.contract.reservations import entry, who

pytestmark = pytest.mark.system

HOSTILE = ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", 'a"b', "a,b", "a\nb", "$x", "a.b", "名前"]


def used(amount, date="2026-01-05", tenant="acme", account="sa1", ip="10.0.0.1", **more):
    at = datetime.fromisoformat(date).replace(hour=13, tzinfo=UTC)
    outcome = more.pop("outcome", Outcome.SETTLED)
    made = entry(amount, identity=who(tenant, account, ip), outcome=outcome)
    return replace(made, date=date, admitted_at=at, ended_at=at, **more)


@pytest.fixture
def ledger(stores, database):
    """Append entries as a processor does."""

    def append(*entries):
        async def write():
            mongo = Mongo(MongoOptions(stores.mongo, database.name, 30.0))
            ledger = MongoLedger(mongo)
            await ledger.create_indexes()
            await ledger.append(entries)
            await mongo.aclose()

        asyncio.run(write())
        return entries

    return append


@pytest.fixture
def some(ledger):
    return ledger(
        used(100, model="large", price=2_500_000_000),
        used(50, "2026-01-31", account="sa2", model="small", endpoint="embeddings", price=1),
        used(70, "2026-02-01", tenant="other", ip="10.0.0.2"),
        used(0, "2026-02-01", tenant="other", outcome=Outcome.DENIED, status=0),
    )


def test_a_report_is_a_table_with_the_newest_period_first(run, some):
    done = run("usage", "report", "--grain", "month")
    assert (done.code, done.err) == (0, "")
    assert done.rows == [
        [
            "period",
            "tenant",
            "usage",
            "input",
            "output",
            "cached",
            "requests",
            "denied",
            "estimated",
            "price (USD)",
        ],
        ["2026-02", "other", "70", "35", "35", "17", "1", "1", "0", "0.000000000"],
        ["2026-01", "acme", "150", "75", "75", "37", "2", "0", "0", "2.500000001"],
    ]


@pytest.mark.parametrize(
    ("options", "usages"),
    [
        (["--by", "model", "--grain", "month"], {"large": 100, "small": 50, "m": 70}),
        (["--by", "endpoint", "--tenant", "acme"], {"chat_completions": 100, "embeddings": 50}),
        (["--by", "service-account", "--model", "small"], {"sa2": 50}),
        (["--by", "client-ip", "--grain", "hour"], {"10.0.0.1": 0, "10.0.0.2": 70}),
        (["--by", "tenant", "--since", "2026-01-31", "--until", "2026-01-31"], {"acme": 50}),
        (["--by", "tenant", "--endpoint", "embeddings", "--model", "small"], {"acme": 50}),
    ],
)
def test_reports_are_of_what_is_asked_for(run, some, options, usages):
    rows = run("usage", "report", *options, "--json").json
    found = {row["name"]: row["usage"] for row in reversed(rows)}
    assert found == usages


def test_a_page_says_how_to_go_on_and_json_has_all(run, some):
    first = run("usage", "report", "--limit", "1", "--json")
    cursor = first.err.rpartition("--cursor ")[2].strip()
    assert [row["name"] for row in first.json] == ["other"]
    rest = run("usage", "report", "--cursor", cursor, "--json")
    assert (rest.err, [row["period"] for row in rest.json]) == ("", ["2026-01-31", "2026-01-05"])
    assert run("usage", "report", "--cursor", "nonsense").code == 2


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("service-account", ["sa1", "sa1", "sa2"]),
        ("client-ip", ["10.0.0.1", "10.0.0.2"]),
        ("tenant", ["acme", "other"]),
        ("model", ["large", "m", "small"]),
        ("endpoint", ["chat_completions", "embeddings"]),
    ],
)
def test_top_ranks_by_what_is_asked_for(run, some, by, names):
    done = run("usage", "top", "--by", by, "--json")
    assert (done.code, [row["name"] for row in done.json]) == (0, names)
    assert list(done.json[0]) == [
        "period", "name", "tenant", "usage", "input", "output", "cached", "requests", "denied", "estimated",
        "price", "price_billionths", "currency",
    ]  # fmt: skip
    assert run("usage", "top", "--by", by, "--limit", "1").rows[1][0] == names[0]


def test_top_ranks_by_price_and_by_denials(run, some):
    assert run("usage", "top", "--by", "model", "--measure", "price", "--json").json[0]["price"] == "2.500000000"
    assert run("usage", "top", "--by", "tenant", "--measure", "denied", "--json").json[0]["name"] == "other"


def test_the_month_has_its_total_and_csv_agrees_with_the_ledger(run, some):
    done = run("usage", "month", "2026-01", "--by", "model")
    assert done.err == "Total of 2026-01: usage 150, requests 2, denied 0, price 2.500000001 USD.\n"
    for by in ("tenant", "service-account", "client-ip", "model", "endpoint"):
        rows = list(csv.DictReader(io.StringIO(run("usage", "report", "--by", by, "--format", "csv").out)))
        total = sum(map(sums_of, some), Sums())
        for name in ("usage", "input", "output", "cached", "requests", "denied", "estimated"):
            assert sum(int(row[name]) for row in rows) == getattr(total, name)
        assert sum(Decimal(row["price"]) for row in rows) == Decimal("2.500000001")


def test_no_name_is_a_formula_and_numbers_stay_numbers(run, ledger):
    ledger(*(used(1, model=name, price=5) for name in HOSTILE))
    done = run("usage", "report", "--by", "model", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    named = {row["name"] for row in rows}
    assert named == {f"'{name}" if name.lstrip(" ")[0] in "=+-@\t" else name for name in HOSTILE}
    assert {row["price"] for row in rows} == {"0.000000005"}
    assert {row["name"] for row in run("usage", "report", "--by", "model", "--json").json} == set(HOSTILE)
    assert run("usage", "report", "--by", "tenant", "--model", "$x", "--json").json[0]["usage"] == 1


def test_parquet_has_exact_decimals(run, some, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "report.parquet"
    assert run("usage", "report", "--by", "service-account", "--format", "parquet", "-o", str(path)).code == 0
    table = parquet.read_table(path)
    assert sum(table.column("price").to_pylist()) == Decimal("2.500000001")
    assert sum(table.column("usage").to_pylist()) == 220
    assert str(table.schema.field("price").type) == "decimal128(38, 9)"


def test_parquet_without_pyarrow_or_a_file_says_what_is_missing(run, some, tmp_path, monkeypatch):
    assert "name a file by --output" in run("usage", "report", "--format", "parquet").err
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    done = run("usage", "report", "--format", "parquet", "-o", str(tmp_path / "x"))
    assert (done.code, done.err) == (2, "tokenweir: Parquet needs pyarrow: pip install 'tokenweir[reports]'\n")


def test_a_file_that_can_not_be_written_is_one_line(run, some, tmp_path):
    done = run("usage", "report", "--format", "csv", "-o", str(tmp_path / "no" / "file"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert run("usage", "report", "-o", "x").code == 2


def test_of_shows_what_is_used_now(run, ledger):
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    ledger(used(9, today, model="large"), used(1, today, account="sa2"), used(3, "2025-01-05"))
    now = run("usage", "of", "acme", "--json").json
    assert (now["today"]["usage"], now["this_month"]["usage"]) == (10, 10)
    assert [(row["name"], row["usage"]) for row in now["models"]] == [("large", 9), ("m", 1)]
    assert [row[:3] for row in run("usage", "of", "acme", "sa2").rows[1:]] == [
        ["today", today, "1"],
        ["this month", today[:7], "1"],
        ["model", "m", "1"],
    ]


def test_a_report_that_takes_too_long_says_so_and_the_next_command_works(run, some, environment):
    environment.setenv("TOKENWEIR_MONGO__REPORT_TIMEOUT_S", "0.000001")
    done = run("usage", "report")
    narrow = "narrow it by --tenant, --since and --until, or raise mongo.report_timeout_s"
    assert (done.code, done.err) == (1, f"tokenweir: the report took longer than 1e-06 s: {narrow}\n")
    environment.delenv("TOKENWEIR_MONGO__REPORT_TIMEOUT_S")
    assert run("usage", "report").code == 0


def test_reports_say_so_while_entries_are_missing(run, some, database):
    database.token_migrations.update_one({"_id": "usage_rollups"}, {"$set": {"done": False}})
    done = run("usage", "top", "--by", "tenant")
    assert done.code == 0
    assert done.err.startswith("Entries of the ledger are still being added")


def test_a_month_is_closed_shown_and_verified(run, some, ledger, database, tmp_path):
    dry = run("usage", "close", "2026-01", "--dry-run")
    assert (dry.code, run("usage", "closed", "list").err) == (0, "No month is closed.\n")
    closed = run("usage", "close", "2026-01", "--note", "run 7", "--json").json
    assert (closed["usage"], closed["price"], closed["rows"]) == (150, "2.500000001", 3)
    assert closed["checksum"] in dry.out
    again = run("usage", "close", "2026-01")
    assert (again.code, again.err.startswith("tokenweir: 2026-01 is closed")) == (2, True)
    ledger(used(5, "2026-01-09"))
    verified = run("usage", "closed", "verify", "2026-01", "--json")
    assert (verified.code, verified.json["difference"]["usage"]) == (0, 5)
    path = tmp_path / "closed.csv"
    assert run("usage", "closed", "show", "2026-01", "--format", "csv", "-o", str(path)).code == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [(row["name"], row["tenant"], row["usage"]) for row in rows] == [
        ("acme", "", "150"),
        ("sa1", "acme", "100"),
        ("sa2", "acme", "50"),
    ]
    database.usage_closed_rows.update_one({"name": "sa1"}, {"$set": {"usage": 1}})
    broken = run("usage", "closed", "verify", "2026-01")
    assert (broken.code, "ITS ROWS WERE CHANGED" in broken.out) == (1, True)
    assert [row["month"] for row in run("usage", "closed", "list", "--json").json] == ["2026-01"]
    assert run("usage", "closed", "show", "2025-12").code == 3
    assert database.admin_audit.count_documents({"action": "usage.close"}) == 1


def test_a_month_that_is_not_over_can_not_be_closed(run, database):
    assert "can be closed from" in run("usage", "close", f"{datetime.now(UTC):%Y-%m}").err


def test_sums_are_rebuilt_from_the_ledger(run, some, database):
    assert run("usage", "rebuild", "2026-01").out == "2026-01: the sums are those of the ledger\n"
    database.usage_rollups.delete_many({"grain": {"$regex": "day|month"}, "at": {"$regex": "^2026-01"}})
    assert "lack usage 150" in run("usage", "rebuild", "2026-01", "--dry-run").out
    assert json.loads(run("usage", "rebuild", "2026-01", "--json").out)["lacked"]["usage"] == 150
    assert run("usage", "month", "2026-01", "--json").json[0]["usage"] == 150
