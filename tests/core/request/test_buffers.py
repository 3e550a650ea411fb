"""The room of all bodies together, and what an exchange does when there is none left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer.reader import answer_reader
from extproc.core.answer.sse import Framer
from extproc.core.events import BodyReply, Reject, RequestBody, RequestHead, ResponseBody, StreamClosed
from extproc.core.phase import ExchangeRules
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates
from extproc.core.request.buffers import LARGE_BYTES, PIECE_BYTES, Buffers, Kept, declared_bytes
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import IdentityRules
from tests.changing import replace
from tests.core.samples import FUZZ
from tests.core.test_exchange import RULES as ANSWERED
from tests.core.test_exchange import Exchange, answering

HEAD = RequestHead(
    {":method": "POST", ":path": "/v1/chat/completions"}, {"sub": "sa"}, "10.0.0.1:1", end_of_stream=False
)
ESTIMATES = Estimates(Cost(20, 5_000_000), 4)


def test_what_is_kept_is_counted_and_given_back():
    buffers = Buffers(10)
    one, other = Kept(buffers), Kept(buffers)
    assert one.keep(6)
    assert not other.keep(5)
    assert other.keep(4)
    assert not one.keep(7)
    assert one.keep(1)
    assert buffers.kept_bytes == 5
    assert one.keep(0)
    assert other.keep(0)
    assert buffers.kept_bytes == 0


def test_less_is_always_possible_even_over_the_bound():
    buffers = Buffers(10)
    kept = Kept(buffers)
    assert kept.keep(10)
    buffers.max_bytes = 5
    assert kept.keep(9)


LARGE = LARGE_BYTES + 1


def test_large_bodies_take_no_room_of_small_ones_and_small_ones_none_of_theirs():
    buffers = Buffers(10, 4 * LARGE)
    small, large = Kept(buffers, "a"), Kept(buffers, "a")
    assert large.keep(2 * LARGE)
    assert buffers.fits(10, "a")
    assert small.keep(10)
    assert not buffers.fits(1, "b")
    assert buffers.fits(LARGE, "b")
    assert (buffers.kept_bytes, buffers.large_bytes, buffers.all_bytes) == (10, 2 * LARGE, 2 * LARGE + 10)
    assert large.keep(0)
    assert small.keep(0)
    assert buffers.all_bytes == 0


def test_a_tenant_has_half_of_the_room_for_large_bodies_and_all_tenants_together_the_whole():
    buffers = Buffers(10, 4 * LARGE)
    of_a, more_of_a, of_b = Kept(buffers, "a"), Kept(buffers, "a"), Kept(buffers, "b")
    assert of_a.keep(2 * LARGE)
    assert not buffers.fits(LARGE, "a")
    assert not more_of_a.keep(LARGE)
    assert of_b.keep(2 * LARGE)
    assert not buffers.fits(LARGE, "c")
    assert not Kept(buffers, "c").keep(LARGE)
    assert of_a.keep(0)
    assert more_of_a.keep(LARGE)
    assert Kept(buffers, "c").keep(LARGE)


def test_a_body_that_grows_large_changes_its_budget_and_comes_back():
    buffers = Buffers(2 * LARGE, 2 * LARGE)
    kept = Kept(buffers, "a")
    assert kept.keep(LARGE_BYTES)
    assert (buffers.kept_bytes, buffers.large_bytes) == (LARGE_BYTES, 0)
    assert kept.keep(LARGE)
    assert (buffers.kept_bytes, buffers.large_bytes) == (0, LARGE)
    assert not kept.keep(LARGE + 1)  # more than half
    assert (buffers.kept_bytes, buffers.large_bytes) == (0, LARGE)
    assert kept.keep(5)
    assert (buffers.kept_bytes, buffers.large_bytes) == (5, 0)


def test_a_body_that_can_not_grow_large_stays_counted_as_it_was():
    buffers = Buffers(LARGE, LARGE)
    kept = Kept(buffers, "a")
    assert kept.keep(LARGE_BYTES)
    assert not kept.keep(LARGE)
    assert (buffers.kept_bytes, buffers.large_bytes) == (LARGE_BYTES, 0)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-2, 2)), max_size=40))
def test_the_counts_are_the_sums_of_what_is_kept(steps):
    buffers = Buffers(4 * LARGE_BYTES, 8 * LARGE_BYTES)
    tenants, sizes = "aabb", [0, 0, 0, 0]
    all_kept = [Kept(buffers, tenant) for tenant in tenants]
    for who, times, more in steps:
        size = max(0, times * LARGE_BYTES // 2 + more)
        if all_kept[who].keep(size):
            sizes[who] = size
        assert buffers.kept_bytes == sum(size for size in sizes if size <= LARGE_BYTES) <= buffers.max_bytes
        large = [size if size > LARGE_BYTES else 0 for size in sizes]
        assert buffers.large_bytes == sum(large) <= buffers.max_large_bytes
        assert max(sum(large[:2]), sum(large[2:])) <= buffers.max_large_bytes // 2
    for kept in all_kept:
        kept.keep(0)
    assert buffers.all_bytes == 0


@pytest.mark.parametrize("declared", [True, False])
def test_a_tenant_that_fills_its_room_for_large_bodies_delays_no_other_request(declared):
    rules = ExchangeRules(IdentityRules(), buffers=Buffers(10_000, 4 * LARGE))

    def begun(tenant, size):
        length = {"content-length": str(size)} if declared else {}
        exchange = Exchange(rules)
        head = RequestHead({**HEAD.headers, **length}, {"sub": "sa", "tenant": tenant}, "10.0.0.1:1", False)
        effects = exchange.receive(head)
        if not effects:
            effects = exchange.receive(RequestBody(b"x" * size, end_of_stream=False))
        return [each.rejection.status for each in effects if isinstance(each, Reject)]

    assert begun("a", LARGE + 5000) == []
    assert begun("a", LARGE + 5000) == [503]
    assert begun("a", 100) == []
    assert begun("b", LARGE + 5000) == []
    assert begun("b", 100) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), ("", 0), ("-5", 0), ("5.0", 0), ("\u0665", 0), ("9" * 19, int("9" * 19)), ("9" * 20, 0)],
)
def test_a_declared_length_is_a_number_or_nothing(text, size):
    assert declared_bytes({"content-length": text}) == size


def exchanged(buffers, *events):
    exchange = Exchange(ExchangeRules(IdentityRules(), buffers=buffers))
    effects = [effect for event in (HEAD, *events) for effect in exchange.receive(event)]
    return exchange, effects


def test_a_body_that_does_not_fit_beside_the_others_is_refused_and_lets_go():
    buffers = Buffers(1000 + 2 * PIECE_BYTES)
    exchange, effects = exchanged(buffers, RequestBody(b" " * 1000, end_of_stream=False))
    assert (exchange.awaits_request, effects, buffers.kept_bytes) == (True, [], 1000 + PIECE_BYTES)
    other, effects = exchanged(buffers, RequestBody(b" ", end_of_stream=False))
    assert (effects[0].rejection.status, effects[0].rejection.reason) == (503, "overloaded")
    assert ("retry-after", "1") in effects[0].rejection.headers
    assert not other.awaits_request
    exchange.receive(StreamClosed())
    assert buffers.kept_bytes == 0


def test_a_body_that_is_declared_too_large_for_the_room_is_refused_before_it_comes():
    buffers = Buffers(1000)
    assert Kept(buffers).keep(600)
    for declared, refused in ((401, True), (400, False)):
        exchange = Exchange(ExchangeRules(IdentityRules(), buffers=buffers))
        effects = exchange.receive(replace(HEAD, headers={**HEAD.headers, "content-length": str(declared)}))
        assert bool(effects) == refused
        assert exchange.awaits_request != refused


def test_a_request_that_is_given_up_is_answered_and_lets_go():
    buffers = Buffers()
    exchange, _ = exchanged(buffers, RequestBody(b" ", end_of_stream=False))
    rejected, _ = exchange.give_up()
    assert isinstance(rejected, Reject)
    assert (rejected.rejection.status, rejected.rejection.reason) == (408, "too_slow")
    assert buffers.kept_bytes == 0
    assert exchange.receive(StreamClosed()) == []


def reader(media, *, hide=False, coding=""):
    headers = {"content-type": media, "content-encoding": coding}
    return answer_reader(200, headers, Endpoint.CHAT_COMPLETIONS, ESTIMATES, hide_usage=hide)


def test_an_answer_of_json_that_spills_keeps_its_edges():
    plain = reader("application/json")
    text = b'{"data": "' + b"x" * 100_000
    assert plain.spill(plain.feed(text)) is text
    assert plain.kept_bytes == 0
    assert plain.spill(b"") == b""
    plain.feed(b'", "usage": {"prompt_tokens": 5, "completion_tokens": 2}}')
    plain.finish()
    assert plain.settlement(complete=True).reason == "usage"


def test_a_stream_that_spills_passes_on_what_it_kept_from_the_client():
    stream = reader("text/event-stream", hide=True)
    assert stream.feed(b"data: {") == b""
    assert stream.kept_bytes == 7
    assert stream.spill(b"") + stream.feed(b'"x":1}\n\n') == b'data: {"x":1}\n\n'
    assert stream.spill(b"out") == b"out"
    assert stream.kept_bytes == 0


def test_a_stream_of_which_nothing_is_hidden_has_passed_already():
    stream = reader("text/event-stream")
    chunk = b"data: {"
    assert stream.spill(stream.feed(chunk)) is chunk
    disguised = reader("application/json")
    assert disguised.spill(disguised.feed(chunk)) is chunk
    assert disguised.kept_bytes == 2


def test_a_compressed_answer_and_one_that_is_not_read_pass_as_they_are():
    for coding in ("gzip", "br"):
        answer = reader("application/json", coding=coding)
        assert answer.kept_bytes == 0
        assert answer.spill(b"out") == b"out"


def test_a_frame_that_spills_is_whole_in_what_is_given():
    framer = Framer()
    assert framer.spill() is None
    framer.feed(b"data: abc")
    spilled = framer.spill()
    assert (spilled.raw, spilled.data) == (b"data: a", None)
    (rest,) = framer.feed(b"\n\n")
    assert (rest.raw, rest.data) == (b"bc\n\n", None)


def test_an_answer_without_room_passes_and_keeps_no_more_of_it_than_its_edges():
    buffers = Buffers(50_000)
    exchange = answering(rules=replace(ANSWERED, buffers=buffers))
    for size in (100, 60_000, 60_000):
        assert exchange.receive(ResponseBody(b"{" + b"x" * size, end_of_stream=False)) == [BodyReply()]
        assert buffers.kept_bytes == (101 if size == 100 else 0)
    exchange.receive(StreamClosed())
    assert buffers.kept_bytes == 0


def test_rules_share_one_room():
    rules = ExchangeRules(IdentityRules())
    assert replace(rules, max_body_bytes=1).buffers is rules.buffers
