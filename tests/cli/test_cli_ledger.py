"""`ledger waiting` and `ledger aside`, over stores in memory that stand in for the ones of the settings."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from extproc import app as composition
from extproc.cli.ledger_file import line_of, read_ledger
from extproc.core.quota.ledger import Charge, Entry
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.base import StoreError
from extproc.ports.counters import Receipt
from extproc.ports.ledger import UsageFilter
from extproc.stores.memory.counters import MemoryCounters, MemoryServer
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.memory.sums import MemoryClosedMonths, MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.memory.tokens import MemoryTokens
from tests.changing import replace

ALL = UsageFilter()
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entry(number, account="sa"):
    return Entry(
        id=f"e{number}",
        request_id=f"request-{number}",
        identity=Identity("acme", account, "10.0.0.1"),
        date="2026-03-01",
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model="m",
        stream=False,
        outcome=Outcome.SETTLED,
        reason="usage",
        held=10,
        charge=number,
        usage=Usage(1, number, total=number),
        status=200,
        admitted_at=AT,
        ended_at=AT + timedelta(seconds=number),
        charges=(Charge("k", 1, number),),
    )


class PickyLedger(MemoryLedger):
    """Refuses entries by their id, for good or in passing."""

    def __init__(self):
        super().__init__()
        self.refused = {}

    async def append(self, entries):
        for each in entries:
            if each.id in self.refused:
                raise StoreError(f"refused {each.id}", transient=self.refused[each.id])
        await super().append(entries)


class World:
    def __init__(self):
        self.now = 1000.0
        self.server = MemoryServer(lambda: self.now)
        self.journal = MemoryCounters(self.server)
        self.ledger = PickyLedger()

    def stores(self, _settings):
        tenants = MemoryTenants()
        return composition.Stores(
            counters=self.journal,
            requests=MemoryRequests(self.ledger),
            ledger=self.ledger,
            reports=self.ledger,
            records=self.ledger,
            tenants=tenants,
            audit=tenants.audit,
            tokens=MemoryTokens(tenants.audit),
            sums=MemorySums(self.ledger.all_entries),
            months=MemoryClosedMonths(),
        )

    def waits(self, made, since):
        self.server.journal[Receipt(3, made.id)] = (made, since)

    async def written(self):
        return [each.id for each in reversed(await self.ledger.entries(ALL, 100))]


@pytest.fixture
def world(environment):
    world = World()
    environment.setenv("TOKENWEIR_REDIS__URL", "redis://127.0.0.1:1/0")
    environment.setenv("TOKENWEIR_MONGO__URL", "mongodb://127.0.0.1:1")
    environment.setattr(composition, "build_stores", world.stores)
    return world


@pytest.fixture
def runs(run):
    """Runs the command beside the test's own loop."""
    import asyncio

    return lambda *args: asyncio.to_thread(run, *args)


async def put_aside(world, *entries):
    for each in entries:
        await world.journal.set_aside(each, None, f"too large: {each.id}")


def test_what_waits_is_told_with_its_age(run, world):
    world.waits(entry(1), 940.5)
    world.waits(entry(2), 990.0)
    done = run("ledger", "waiting")
    assert (done.code, done.err) == (0, "")
    assert done.rows == [["waiting", "oldest (s)", "set aside"], ["2", "59.5", "0"]]
    assert run("ledger", "waiting", "--json").json == {"waiting": 2, "oldest_s": 59.5, "aside": 0}


def test_where_nothing_waits_all_is_0(run, world):
    assert run("ledger", "waiting", "--json").json == {"waiting": 0, "oldest_s": 0.0, "aside": 0}


def test_where_nothing_was_set_aside_there_is_nothing_to_show(run, world):
    done = run("ledger", "aside")
    assert (done.code, done.out, done.err) == (0, "", "Nothing was set aside.\n")
    assert run("ledger", "aside", "--json").json == []
    assert run("ledger", "aside", "--write").code == 0


async def test_what_was_set_aside_is_shown_with_its_reason_and_stays(runs, world):
    await put_aside(world, entry(1, "[red]sa\x1b[31m"), entry(2))
    for _ in range(2):
        done = await runs("ledger", "aside")
        assert (done.code, done.err) == (0, "")
        assert done.rows[1:] == [
            ["2026-03-01", "acme", "[red]sa\\x1b[31m", "10.0.0.1", "settled", "1", "e1", "too large: e1"],
            ["2026-03-01", "acme", "sa", "10.0.0.1", "settled", "2", "e2", "too large: e2"],
        ]
    first, _ = (await runs("ledger", "aside", "--json")).json
    assert (first["id"], first["charge"], first["written"]) == ("e1", 1, None)
    assert first["entry"]["charges"] == [{"key": "k", "until": 1, "amount": 1}]
    assert msgspec.json.decode(first["text"], type=Entry).id == "e1"
    assert await world.written() == []


async def test_writing_removes_what_the_ledger_took_and_leaves_the_rest(runs, world):
    await put_aside(world, entry(1), entry(2), entry(3))
    world.ledger.refused = {"e2": False}
    done = await runs("ledger", "aside", "--write")
    assert done.code == 1
    assert done.err == "2 written, 1 refused again.\n"
    assert [row[-2:] for row in done.rows[1:]] == [
        ["too large: e1", "yes"],
        ["refused e2", "no"],
        ["too large: e3", "yes"],
    ]
    assert await world.written() == ["e1", "e3"]
    (left,) = (await runs("ledger", "aside", "--json")).json
    assert (left["id"], left["reason"]) == ("e2", "too large: e2")
    world.ledger.refused = {}
    done = await runs("ledger", "aside", "--write", "--json")
    assert (done.code, [each["written"] for each in done.json]) == (0, [True])
    assert await world.written() == ["e1", "e2", "e3"]
    assert (await runs("ledger", "aside", "--json")).json == []


async def test_what_is_in_the_ledger_already_counts_once_and_is_set_aside_no_longer(runs, world):
    await world.ledger.append([entry(1)])
    await put_aside(world, replace(entry(1), charge=1000))
    assert (await runs("ledger", "aside", "--write")).code == 0
    (day,) = await world.ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (1, 1)
    assert await world.journal.aside(10) == []


async def test_a_ledger_that_is_away_leaves_everything_as_it_was(runs, world):
    await put_aside(world, entry(1), entry(2))
    world.ledger.refused = {"e2": True}
    done = await runs("ledger", "aside", "--write")
    assert (done.code, done.out, done.err) == (1, "", "tokenweir: refused e2\n")
    assert [each.reason for each in await world.journal.aside(10)] == ["too large: e2"]
    assert await world.written() == ["e1"]


@pytest.mark.parametrize("text", ["{}", "no JSON \x1b[31m", '{"id": 5}', "[" * 10_000])
async def test_what_is_no_entry_is_shown_and_never_written(runs, world, text):
    await put_aside(world, entry(1))
    world.server.aside[0] = replace(world.server.aside[0], text=text)
    for words in (["--json"], []):
        done = await runs("ledger", "aside", *words)
        assert done.code == 0
        assert "\x1b" not in done.out
    assert (await runs("ledger", "aside", "--write")).code == 1
    assert len(await world.journal.aside(10)) == 1


async def test_more_than_asked_for_is_told(runs, world):
    await put_aside(world, *map(entry, range(1, 6)))
    done = await runs("ledger", "aside", "--limit", "2", "--json")
    assert (done.code, [each["id"] for each in done.json]) == (0, ["e1", "e2"])
    assert done.err == "There may be more: these are the first 2. Use --limit.\n"


def test_charges_are_in_an_export_and_are_read_back(tmp_path):
    made = replace(entry(5), charges=(Charge("a:1:x", 2**33, 5), Charge("b", 1, 10**12)))
    file = tmp_path / "ledger.jsonl"
    line = line_of(made)
    in_mongos_form = line.replace('"n":5', '"n":{"$numberLong":"5"}')
    file.write_text(f"{line}\n{in_mongos_form}\n{line_of(replace(made, charges=()))}\n")
    found = list(read_ledger(str(file), ALL))
    assert [each.charges for each in found] == [made.charges, made.charges, ()]
