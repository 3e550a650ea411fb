"""A large body of a request is read and replaced in parts, and each message says what it says to protobuf."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.events import BodyReply, RequestBody, ResponseBody
from extproc.core.phase import ProtocolError
from extproc.core.request.identity import IdentityRules
from extproc.envoy import large_bodies
from extproc.envoy.codec import Codec, MetadataKeys, reply_message
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

from .messages import request_body, request_head, response_body

CODEC = Codec(IdentityRules(), MetadataKeys())
BODY = bytes(range(256)) * 40
# One more field of HttpBody, which Envoy may have and we do not know.
UNKNOWN = b"\x38\x01"


def split(data, first, size):
    """`data` in parts: one that has what comes before the body, and others of `size` bytes."""
    return [data[:first], *(data[at : at + size] for at in range(first, len(data), size))]


def whole(event):
    return type(event)(b"".join([event.data, *event.more]), event.end_of_stream)


@given(st.integers(20, 3000), st.integers(1, 3000), st.booleans())
def test_a_body_in_parts_is_the_body_and_is_not_joined(first, size, end):
    data = request_body(BODY, end=end).SerializeToString()
    event = CODEC.event(split(data, first, size))
    assert whole(event) == RequestBody(BODY, end)
    assert len(event.data) < first
    assert max(map(len, event.more)) <= size


@pytest.mark.parametrize("first", range(11, 40))
def test_what_stands_behind_the_body_is_read_wherever_parts_end(first):
    message = request_body(b"x" * 20, end=False)
    message.MergeFrom(pb.ProcessingRequest(attributes=request_head().attributes))
    assert whole(CODEC.event(split(message.SerializeToString(), first, 7))) == RequestBody(b"x" * 20, False)


def inner(*fields):
    """A message whose HttpBody has these bytes."""
    data = b"".join(fields)
    return b"\x22" + bytes([len(data)]) + data


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (inner(b"\x0a\x01a", UNKNOWN), RequestBody(b"a", False)),
        (inner(b"\x0a\x01a", b"\x10\x01", UNKNOWN), RequestBody(b"a", True)),
        (inner(b"\x0a\x01a", b"\x0a\x01b"), RequestBody(b"b", False)),  # the last one counts
        (inner(b"\x10\x01", b"\x0a\x01a"), RequestBody(b"a", True)),
        (inner(b"\x10\x01"), RequestBody(b"", True)),
        (inner(b"\x0a\x01a") + inner(b"\x0a\x01b"), RequestBody(b"b", False)),
        (inner(b"\x0a\x01a") + inner(b"\x10\x01"), RequestBody(b"a", True)),
        (inner(b"\x0a\x01a") + response_body(b"c").SerializeToString(), ResponseBody(b"c", True)),
        (response_body(b"c").SerializeToString(), ResponseBody(b"c", True)),
        (b"\x22\x83\x00\x0a\x01a", RequestBody(b"a", False)),  # a length of more bytes than it needs
    ],
)
def test_a_message_that_is_written_otherwise_says_the_same_as_in_one_piece(data, event):
    assert CODEC.event(data) == event
    found = CODEC.event([data])
    assert (whole(found) if isinstance(found, RequestBody) else found) == event


@pytest.mark.parametrize(
    "data",
    [
        b"\x22",
        b"\x22\x05\x0a",
        b"\x22\x03\x0a\x05a",  # a body longer than what it is in
        b"\x22\x09\x0a\x01a",  # more than there is
        inner(b"\x0a\x01a", b"\x10"),
        b"\x22" + b"\xff" * 11,
    ],
)
def test_a_message_that_can_not_be_read_is_refused_in_parts_too(data):
    for message in (data, [data]):
        with pytest.raises(ProtocolError):
            CODEC.event(message)


def test_much_that_stands_around_a_body_is_left_to_protobuf():
    message = request_body(b"x")
    message.attributes["k"].fields["v"].string_value = "y" * (1 << 20)
    data = message.SerializeToString()
    assert large_bodies.event([data]) is None
    assert CODEC.event([data]) == RequestBody(b"x", True)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_a_reply_in_parts_is_the_one_that_protobuf_makes(parts):
    reply = b"".join(large_bodies.reply(parts))
    response = pb.ProcessingResponse()
    response.request_body.response.body_mutation.body = b"".join(parts)
    assert reply == response.SerializeToString()


def test_a_large_reply_is_not_joined():
    views = [memoryview(b"b" * 300), b"c"]
    head, first, *rest = reply_message(RequestBody(b"", True), BodyReply(b"a", views))
    assert (first, rest) == (b"a", views)
    assert len(head) < 20
