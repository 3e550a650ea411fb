"""What every implementation of `ports.RequestRecords` must do."""

from datetime import timedelta

import pytest
import pytest_asyncio

from extproc.core.quota.ledger import Charge, RefusedBy
from extproc.core.quota.settlement import Outcome
from extproc.ports.requests import RequestFilter, RequestPlace
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.requests import MongoRequests
from tests.changing import replace

from .conftest import new_database
from .reservations import HOSTILE, NOW, entry, who

ALL = RequestFilter()


@pytest_asyncio.fixture
async def both(ledger_url):
    """A ledger, and what finds requests in it."""
    if ledger_url is None:
        memory = MemoryLedger()
        yield memory, MemoryRequests(memory)
        return
    async with new_database(ledger_url) as mongo:
        ledger = MongoLedger(mongo)
        await ledger.create_indexes()
        yield ledger, MongoRequests(mongo)


def at(second, **changes):
    return replace(entry(1, **changes), ended_at=NOW + timedelta(seconds=second))


async def test_a_request_is_found_by_either_of_its_ids_and_by_no_other_text(both):
    ledger, requests = both
    first, second, other = at(1), at(2), at(3)
    second = replace(second, request_id=first.request_id)
    await ledger.append([first, second, other])
    assert await requests.of_id(first.request_id, 10) == [second, first]
    assert await requests.of_id(first.request_id, 1) == [second]
    assert await requests.of_id(other.id, 10) == [other]
    for text in ("", "nobody", "$ne", '{"$ne": ""}', *(name for names in HOSTILE for name in names)):
        assert await requests.of_id(text, 10) == []


async def test_what_refused_a_request_and_what_each_limit_was_is_read_back(both):
    ledger, requests = both
    refused = at(
        1, outcome=Outcome.DENIED, refused_by=RefusedBy("service_account:day:1:sa", 86_400, 45, 24, 3, 20)
    )
    charged = at(2, charges=(Charge("tenant:day:1:", 86_400, 26, 12_000), Charge("tenant:month:1:", 86_400, 26)))
    await ledger.append([refused, charged])
    assert await requests.newest(ALL, 10) == [charged, refused]


async def test_pages_of_any_size_hold_every_entry_once_in_order_also_of_one_instant(both):
    ledger, requests = both
    made = [at(number // 3) for number in range(10)]
    await ledger.append(made)
    whole = await requests.newest(ALL, 100)
    assert sorted(each.id for each in whole) == sorted(each.id for each in made)
    assert [each.ended_at for each in whole] == sorted((each.ended_at for each in made), reverse=True)
    for size in (1, 2, 3, 7):
        read, after = [], None
        while rows := await requests.newest(ALL, size, after):
            read += rows
            after = RequestPlace(rows[-1].ended_at, rows[-1].id)
        assert read == whole


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        (RequestFilter(outcome=Outcome.DENIED), [3]),
        (RequestFilter(tenant="other"), [2]),
        (RequestFilter(service_account="sa2"), [4]),
        (RequestFilter(client_ip="10.9.9.9"), [4]),
        (RequestFilter(model="large"), [5]),
        (RequestFilter(endpoint="embeddings"), [6]),
        (RequestFilter(since=NOW + timedelta(seconds=5)), [6, 5]),
        (RequestFilter(until=NOW + timedelta(seconds=3)), [2, 1]),
        (RequestFilter(tenant="acme", since=NOW + timedelta(seconds=2), until=NOW + timedelta(seconds=4)), [3]),
        (RequestFilter(tenant='{"$ne": ""}'), []),
        (RequestFilter(model="$where"), []),
    ],
)
async def test_a_filter_selects(both, wanted, seconds):
    ledger, requests = both
    await ledger.append(
        [
            at(1),
            at(2, identity=who("other")),
            at(3, outcome=Outcome.DENIED),
            at(4, identity=who(account="sa2", ip="10.9.9.9")),
            at(5, model="large"),
            replace(at(6), endpoint="embeddings"),
        ]
    )
    found = await requests.newest(wanted, 10)
    assert [(each.ended_at - NOW).seconds for each in found] == seconds
    assert all(map(wanted.fits, found))


async def test_a_document_of_another_program_is_left_out(replica_set):
    await replica_set.collection("token_ledger").insert_one({"_id": "x", "request_id": "q", "ended_at": NOW})
    requests = MongoRequests(replica_set)
    assert await requests.of_id("q", 10) == await requests.newest(ALL, 10) == []
