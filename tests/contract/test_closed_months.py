"""What every implementation of `ports.ClosedMonths` must do."""

from datetime import UTC, datetime

from extproc.ports.audit import Actor, ActorKind
from extproc.ports.reports import ClosedErasure, ClosedMonth, Place, Sums, UsageRow
from tests.changing import replace

from .reservations import HOSTILE

CLOSED = ClosedMonth(
    month="2026-01",
    closed_at=datetime(2026, 2, 2, tzinfo=UTC),
    closed_by=Actor("ada", ActorKind.JWT, "10.0.0.1"),
    note=None,
    currency="EUR",
    checksum="abc",
    rows=2,
    total=Sums(usage=2**40, price=2**50),
)
ROWS = [UsageRow("2026-01", name, tenant, Sums(usage=n)) for n, (tenant, name, _) in enumerate(HOSTILE)]
ROWS += [UsageRow("2026-01", tenant, None, Sums(price=2**50)) for tenant in sorted({t for t, _, _ in HOSTILE})]


async def test_a_month_is_kept_as_it_was_closed_and_only_once(months):
    assert await months.find("2026-01") is None
    assert await months.add(CLOSED, ROWS)
    assert not await months.add(replace(CLOSED, checksum="other"), ROWS[:1])
    assert await months.find("2026-01") == CLOSED
    assert sorted(await months.rows("2026-01", 1000), key=str) == sorted(ROWS, key=str)


async def test_an_erasure_renames_a_row_and_notes_both_checksums_once(months):
    await months.add(CLOSED, ROWS)
    row = next(row for row in ROWS if row.tenant is not None)
    noted = ClosedErasure(CLOSED.closed_at, "erased-1", "abc", "def")
    assert not await months.erase("2026-01", row.tenant, row.name, replace(noted, before="other"))
    assert await months.months_of(row.tenant, [row.name, "erased-1"]) == ["2026-01"]
    for _ in range(2):
        assert await months.erase("2026-01", row.tenant, row.name, noted)
    closed = await months.find("2026-01")
    assert (closed.checksum, closed.checksum_now, closed.erasures) == ("abc", "def", (noted,))
    expected = [replace(each, name="erased-1") if each == row else each for each in ROWS]
    assert sorted(await months.rows("2026-01", 1000), key=str) == sorted(expected, key=str)
    assert await months.months_of(row.tenant, [row.name]) == []
    assert not await months.erase("2026-01", row.tenant, "x", replace(noted, pseudonym="erased-2"))


async def test_rows_are_read_in_pages(months):
    await months.add(CLOSED, ROWS)
    whole, paged, after = await months.rows("2026-01", 1000), [], None
    while page := await months.rows("2026-01", 3, after):
        paged += page
        after = page[-1].place
    assert paged == whole
    assert await months.rows("2026-01", 3, Place("2026-01", "\uffff", None)) == []


async def test_months_are_listed_newest_first(months):
    for month in ("2025-12", "2026-02", "2026-01"):
        await months.add(replace(CLOSED, month=month), [])
    assert [each.month for each in await months.all(2)] == ["2026-02", "2026-01"]
    assert [each.month for each in await months.all(2, "2026-01")] == ["2025-12"]


async def test_a_close_that_died_leaves_nothing_that_counts(months, in_memory, ledger):
    if not in_memory:
        rows = ledger._mongo.collection("usage_closed_rows")
        await rows.insert_one({"close": "2026-01:20260202T000000:abc", "name": "half", "tenant_id": ""})
    await months.add(CLOSED, ROWS)
    assert len(await months.rows("2026-01", 1000)) == len(ROWS)
