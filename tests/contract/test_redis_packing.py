"""Reservations and entries as they are in Redis: packed, or as JSON while version 0.1 runs beside this version."""

import msgspec
import pytest
from bson.int64 import Int64

from extproc.core.quota.costs import Bound, Cost, Weights
from extproc.core.quota.ledger import closed_entry
from extproc.core.quota.limits import Mode, Scope, Unit, Window
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome, Settlement, charges
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.ports.counters import Closing
from extproc.stores.redis import RedisCounters, RedisOptions, packing
from extproc.stores.redis.reservations import UNREADABLE
from tests.changing import replace

from .ready import make_ready
from .reservations import HOSTILE, NOW, bound_by, reservation, strictly, who

HELD = {
    "plain": reservation(),
    "two buckets": reservation(ip_limit=50),
    "no bucket": reservation(buckets=()),
    "an id as this version draws it": reservation(id="0123456789abcdef" * 2),
    "an id in other letters": reservation(id="0123456789ABCDEF" * 2),
    "a request's id as Envoy draws it": reservation(request_id="6f1b0320-75e0-45a7-9e59-66b4b0481509"),
    "one in other letters": reservation(request_id="6F1B0320-75E0-45A7-9E59-66B4B0481509"),
    "one with its dashes elsewhere": reservation(request_id="6f1b-032075e0-45a7-9e59-66b4b0481509"),
    "one without dashes": reservation(request_id="0123456789abcdef" * 2),
    "weights": reservation(weights=Weights(1000, 100, 3000, 4000)),
    "strict": strictly(100, prompt=7, output=40, least=3, choices=2),
    "a bound with a field": reservation(bound=Bound(1, 2, 1, 3, writable=False, field="max_tokens")),
    "a limit of everything": bound_by(
        (10**12, {"mode": Mode.SOFT, "unit": Unit.REQUESTS, "shadow": True, "model": "m*", "endpoints": (Endpoint.MESSAGES,)})
    ),
    "grown, local, of a replica": reservation(extra_output=9, local=True, replica="here-1", requests=3, stream=True),
    **{f"named {names}": reservation(identity=who(*names)) for names in HOSTILE},
}  # fmt: skip
SETTLEMENTS = [
    Settlement(Outcome.SETTLED, Usage(5, 6, 1, 2, 12, 3, 4, 1), 11, "usage", status=200),
    Settlement(Outcome.RELEASED, Usage(0, 0), 0, "upstream", forwarded=False),
    Settlement(Outcome.EXPIRED, Usage(4, 4, total=8), 8, "expired", capped=True),
]


def ended(held, settlement=SETTLEMENTS[0], **further):
    return closed_entry(held, settlement, NOW, **further)


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_a_reservation_is_read_as_it_was_packed(held):
    assert packing.read_body(packing.packed(held)) == held
    assert packing.read_body(msgspec.json.encode(held)) == held
    assert packing.packed(held)[:1] != b"{"


def test_packed_it_takes_a_third():
    held = HELD["an id as this version draws it"]
    assert len(packing.packed(held)) < len(msgspec.json.encode(held)) / 3


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize("settlement", SETTLEMENTS, ids=lambda each: each.outcome)
def test_an_entry_is_read_from_its_end_and_its_reservation(held, settlement):
    entry = ended(held, settlement, shadow=("service_account:day~shadow",), price=7)
    end = packing.packed_end(held, entry)
    assert packing.read_entry(end, packing.packed(held)) == (entry, held.replica)
    assert packing.read_entry(end, msgspec.json.encode(held)) == (entry, held.replica)
    assert packing.read_entry(msgspec.json.encode(entry), None) == (entry, "")


@pytest.mark.parametrize(
    "other",
    [
        {"id": "another"},
        {"request_id": "another"},
        {"identity": who("another")},
        {"date": "2001-01-01"},
        {"endpoint": Endpoint.MESSAGES},
        {"model": "another"},
        {"stream": True},
        {"admitted_at": NOW.replace(year=2001)},
        {"cost": Cost(1, 2)},
        {"count": 2},
        {"charges": ()},
    ],
    ids=lambda each: next(iter(each)),
)
def test_an_entry_that_says_anything_else_than_its_reservation_is_not_taken_apart(other):
    held = reservation()
    entry = replace(ended(held), **other)
    end = packing.packed_end(held, entry)
    assert end is None or packing.read_entry(end, packing.packed(held)) == (entry, held.replica)


def test_charges_in_another_order_or_of_other_buckets_are_not_taken_apart():
    held = reservation(ip_limit=50)
    entry = ended(held)
    assert packing.packed_end(held, replace(entry, charges=entry.charges[::-1])) is None
    assert packing.packed_end(reservation(id=held.id), entry) is None
    assert packing.packed_end(held, replace(entry, charges=(replace(entry.charges[0], amount=0),))) is None


def test_every_member_has_a_number_that_never_changes():
    assert (set(packing.SCOPES), set(packing.WINDOWS)) == (set(Scope), set(Window))
    assert (set(packing.UNITS), set(packing.MODES)) == (set(Unit), set(Mode))
    assert set(packing.ENDPOINTS) == set(Endpoint)
    assert [packing.ENDPOINTS.index(each) for each in (Endpoint.CHAT_COMPLETIONS, Endpoint.QUOTA)] == [0, 13]
    assert [packing.SCOPES.index(each) for each in (Scope.TENANT, Scope.MODEL, Scope.ENDPOINT)] == [0, 4, 8]
    assert [packing.WINDOWS.index(each) for each in (Window.MINUTE, Window.MONTH)] == [0, 4]
    assert [packing.UNITS.index(each) for each in (Unit.TOKENS, Unit.REQUESTS)] == [0, 3]
    assert packing.MODES == (Mode.RESERVE, Mode.SOFT, Mode.STRICT)


def test_what_a_later_version_appends_is_ignored():
    held = reservation()
    values = msgspec.msgpack.decode(packing.packed(held))
    assert packing.read_body(msgspec.msgpack.encode([*values, "more"])) == held
    end = msgspec.msgpack.decode(packing.packed_end(held, ended(held)))
    assert packing.read_entry(msgspec.msgpack.encode([*end, "more"]), packing.packed(held))[0] == ended(held)


NO_BODIES = {
    "nothing": b"",
    "a brace": b"{",
    "a letter": b"x",
    "an empty array": b"\x90",
    "no type": b"\xc1",
    "a number": b"\x00",
    "cut off": packing.packed(reservation())[:-1],
}


@pytest.mark.parametrize("body", NO_BODIES.values(), ids=NO_BODIES)
def test_what_is_no_body_is_told(body):
    with pytest.raises(UNREADABLE):
        packing.read_body(body)
    with pytest.raises(UNREADABLE):
        packing.read_entry(packing.packed_end(HELD["plain"], ended(HELD["plain"])), body)


def test_numbers_that_stand_for_nothing_are_told():
    values = msgspec.msgpack.decode(packing.packed(reservation()))
    values[11][0][0] = 99
    with pytest.raises(UNREADABLE):
        packing.read_body(msgspec.msgpack.encode(values))


def test_numbers_of_mongodbs_driver_are_numbers_and_nothing_else_is_packed():
    assert msgspec.msgpack.decode(packing.encoded([Int64(2**40), 1])) == [2**40, 1]
    with pytest.raises(NotImplementedError):
        packing.encoded([object()])


async def test_beside_version_0_1_all_is_json_and_both_are_read_later(redis_part, redis):
    """In any order: what one form wrote, a replica that writes the other form reads, expires and ends."""
    counters = RedisCounters(RedisOptions(redis_part.url, packs=False))
    await make_ready(counters)
    in_json, packed = reservation(deadline=NOW.timestamp() - 1), reservation(deadline=NOW.timestamp() - 1)
    await counters.reserve(in_json)
    counters.packs(alone=True)
    await counters.reserve(packed)
    bodies = {each: await _body(redis_part, each.id) for each in (in_json, packed)}
    assert msgspec.json.decode(bodies[in_json], type=Reservation) == in_json
    assert bodies[packed][:1] != b"{"
    assert {each.id for each in await counters.overdue(NOW, 9)} == {in_json.id, packed.id}
    endings = {
        each.id: Closing(each, Outcome.SETTLED, charges(each, SETTLEMENTS[0]), entry=ended(each))
        for each in bodies
    }
    await counters.close([endings[in_json.id]])  # packed, beside a body of JSON
    counters.packs(alone=False)
    await counters.close([endings[packed.id]])
    waiting = {each.entry.id: each.entry for each in await counters.waiting(0, 9)}
    assert waiting == {each.id: ended(each) for each in bodies}
    await counters.aclose()


async def _body(part, reservation_id):
    from redis.asyncio import Redis

    client = Redis.from_url(part.url)
    try:
        (key,) = [key async for key in client.scan_iter(match=f"*:r:{reservation_id}")]
        return await client.hget(key, "body")
    finally:
        await client.aclose()
