"""Framing: nothing lost, nothing reordered, and the same events however the bytes were cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer import sse
from extproc.core.answer.sse import MAX_EVENT_BYTES, Event, Framer
from tests.core.samples import (
    CUTS,
    FUZZ,
    LINE_ENDS,
    RECORDED_STREAMS,
    SAMPLES,
    bytewise,
    parts,
    two_parts,
)
from tests.recordings import recorded
from tests.sizes import sized


def frames(chunks) -> list[Event]:
    framer = Framer()
    events = [event for chunk in chunks for event in framer.feed(chunk)]
    rest = framer.close()
    return events if rest is None else [*events, rest]


def raw(events) -> bytes:
    return b"".join(event.raw for event in events)


def data(events) -> list[bytes]:
    return [event.data for event in events if event.data is not None]


def as_the_standard_says(body: bytes) -> list[bytes]:
    """The data of all events that have any, the one that the end of the stream cuts short included."""
    found, lines = [], []
    for line in [*re.sub(rb"\r\n|\r", b"\n", body).split(b"\n"), b""]:
        name, _, value = line.partition(b":")
        if not line and lines:
            found.append(b"\n".join(lines))
            lines = []
        elif name == b"data":
            lines.append(value[1:] if value[:1] == b" " else value)
    return [text for text in found if text]


STREAMS = {
    f"{name}, {end}": sample.with_line_ends(LINE_ENDS[end]).body
    for name, sample in SAMPLES.items()
    for end in LINE_ENDS
}


@pytest.mark.parametrize("body", STREAMS.values(), ids=STREAMS)
def test_a_stream_gives_the_same_events_whole_in_single_bytes_and_cut_anywhere(body):
    expected = as_the_standard_says(body)
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert data(events) == expected


LONE = [b'data: {"a":1}\n', b'data:{"b":{}}\n', b'data: {"c":2}\n', b"data: [DONE]\n"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("before", [b"", b'data: {"x":0}\n\n', b": ping\n\n"])
@pytest.mark.parametrize("after", [b"", b"\n", b'\ndata: {"y":0}\n\n'])
def test_lines_of_json_without_blank_lines_between_them_are_events(end, before, after):
    body = b"".join([before, *LONE, after]).replace(b"\n", end)
    lone = [b'{"a":1}', b'{"b":{}}', b'{"c":2}', b"[DONE]"]
    expected = [b'{"x":0}'] * (b"x" in before) + lone + [b'{"y":0}'] * (b"y" in after)
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert [text.rstrip() for text in data(events)] == expected


def test_once_they_are_known_lines_of_json_are_given_as_they_come():
    framer = Framer()
    assert [data(framer.feed(line)) for line in LONE] == [[], [b'{"a":1}', b'{"b":{}}'], [b'{"c":2}'], []]
    assert framer.close() == Event(LONE[3], b"[DONE]")


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a":\ndata: {}\ndata: }\n\n',
        b'data: {"a":{}\ndata: ,"b":[]}\n\n',
        b"data: }\ndata: x\n\n",
        b'data: {"a":1}\ndata:\ndata: {}\n\n',
    ],
)
def test_an_event_of_several_lines_stays_one(body):
    for chunks in ([body], bytewise(body)):
        assert data(frames(chunks)) == as_the_standard_says(body)


def test_a_line_after_an_event_that_is_too_large_is_a_part_of_it():
    body = b'data: {"a":"' + b"x" * 20_000 + b'"}\ndata: {"b":1}\n\n'
    for chunks in (parts(body, list(range(0, len(body), 1000))), [body[:-20], body[-20:]]):
        events = frames(chunks)
        assert raw(events) == body
        assert events[-1].last


@pytest.mark.parametrize("name", RECORDED_STREAMS)
@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
def test_a_recorded_stream_gives_the_same_events_whole_in_single_bytes_and_cut_anywhere(name, end):
    body = recorded(f"{name}.body").replace(b"\n", end)
    expected = as_the_standard_says(body)
    assert expected[-1] == b"[DONE]"
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert data(events) == expected


TOKENS = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b":",
        b"id: 1",
        b"x",
        b"[DONE]",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b" ",
        "世".encode(),
    ]
)


@FUZZ
@given(st.lists(TOKENS | st.binary(max_size=5), max_size=40).map(b"".join), CUTS)
def test_any_bytes_cut_anyhow_frame_as_the_standard_says(body, cuts):
    events = frames(parts(body, cuts))
    assert raw(events) == body
    assert data(events) == as_the_standard_says(body)


@FUZZ
@given(st.lists(TOKENS, max_size=30).map(b"".join), CUTS)
def test_what_is_pending_is_what_was_fed_and_is_in_no_event_yet(body, cuts):
    framer, given_out, fed = Framer(), 0, 0
    for chunk in parts(body, cuts):
        fed += len(chunk)
        given_out += len(raw(framer.feed(chunk)))
        assert framer.pending_bytes == fed - given_out


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\r\n"])
def test_an_event_is_given_out_with_the_byte_that_completes_it(end):
    framer = Framer()
    completing = [i for i, byte in enumerate(bytewise(b"data: x" + end)) if framer.feed(byte) and byte]
    first = len(b"data: x" + end) - 1
    # A CR may be the end of the blank line, so nobody waits for an LF behind it.
    assert completing[0] == (first - 1 if end.endswith(b"\r\n") else first)
    assert framer.pending_bytes == 0


def test_the_line_feed_of_a_carriage_return_cut_off_belongs_to_the_event_before():
    framer = Framer()
    assert framer.feed(b"data: x\r\n\r") == [Event(b"data: x\r\n\r", b"x")]
    assert framer.feed(b"") == []
    assert framer.feed(b"\ndata: y\n\n") == [Event(b"\n", None, tail=True), Event(b"data: y\n\n", b"y")]


def test_a_line_feed_belongs_to_a_carriage_return_only_right_behind_it():
    assert frames([b"data: x\r\r", b"a", b"\n"]) == [Event(b"data: x\r\r", b"x"), Event(b"a\n", None)]


def test_a_closed_framer_holds_nothing():
    framer = Framer()
    framer.feed(b"data: x")
    assert framer.close() == Event(b"data: x", b"x")
    assert framer.close() is None
    assert framer.pending_bytes == 0


# Events that are too large.


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 24)


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("size", range(20, 32))
def test_an_event_over_the_bound_passes_unread_however_it_is_cut(small, end, size):
    big = b"data: ".ljust(size, b"x")
    body = big + end * 2 + b"data: y" + end * 2
    expected = [big[6:], b"y"] if size <= 24 else [b"y"]
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert data(events) == expected


def test_of_an_event_over_the_bound_no_part_is_read(small):
    body = b"data: ".ljust(40, b"x") + b"\ndata: rest\n\ndata: y\n\n"
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert data(events) == [b"y"]


@pytest.mark.parametrize("size", [24, 26, 27, 40])
def test_an_event_over_the_bound_that_never_ends_passes_unread(small, size):
    body = b"data: ".ljust(size, b"x")
    for chunks in ([body], bytewise(body), *two_parts(body)):
        events = frames(chunks)
        assert raw(events) == body
        assert data(events) == ([body[6:]] if size == 24 else [])


def test_the_memory_for_an_event_is_bounded():
    framer = Framer()
    for _ in range(40):
        framer.feed(b"x" * (256 << 10))
        assert framer.pending_bytes <= MAX_EVENT_BYTES + 2


def test_an_event_of_the_largest_size_is_read():
    body = b"data: ".ljust(MAX_EVENT_BYTES, b"x") + b"\r\n\r\n"
    assert data(frames(parts(body, list(range(0, len(body), 100_003))))) == [body[6:-4]]


# Work, counted in bytes that are looked at.


@pytest.mark.parametrize("unit", [b"data: {}\n\n", b"x", b"\r\n\r\n", b"data: " + b"x" * 3000 + b"\r\r", b"x\n\n"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_every_byte_is_looked_at_a_fixed_number_of_times(monkeypatch, unit, step):
    searched, split = [], []
    search, divide = sse._end_of_events, Framer._split

    def counted_search(buffer, start):
        searched.append(len(buffer) - start)
        return search(buffer, start)

    def counted_split(framer, region, events):
        split.append(len(region))
        divide(framer, region, events)

    monkeypatch.setattr(sse, "_end_of_events", counted_search)
    monkeypatch.setattr(Framer, "_split", counted_split)
    for size in sized((6_000, 12_000), (20_000, 40_000)):
        searched.clear()
        split.clear()
        body = (unit * size)[:size]
        frames(body[i : i + step] for i in range(0, size, step))
        assert sum(searched) <= 2 * size
        assert sum(split) <= size


def test_a_byte_order_mark_before_the_first_event_does_not_hide_it():
    (event,) = Framer().feed(b"\xef\xbb\xbfdata: a\n\n")
    assert event == Event(b"\xef\xbb\xbfdata: a\n\n", b"a")


@pytest.mark.parametrize(
    "unit", [b"\n", b"\r", b"\r\n", b"x\n\n", b"x\r\r", b":\r\n\r\n", b"\r\n\r\r\n\n", b"data\n\n"]
)
def test_millions_of_events_that_say_nothing_are_few_pieces_of_work(unit):
    for tail in (b"", b"\n", b"da"):
        framer, body = Framer(), unit * 300_000 + tail
        events = framer.feed(body)
        assert len(events) <= 2
        given_out = raw(events)
        assert body.startswith(given_out)
        assert framer.pending_bytes == len(body) - len(given_out) <= 3


def test_a_field_whose_name_only_ends_so_has_no_data():
    assert frames([b"mydata: x\nxdata: y\n\ndata: z\n\n"])[-1].data == b"z"
    assert data(frames([b"mydata: x\nxdata: y\n\n"])) == []
