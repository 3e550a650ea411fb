"""Conversations that are valid, mutated or random, in any split: an error by the book, or an answer."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from extproc.http2 import frames as f
from extproc.http2 import huffman
from extproc.http2.hpack import Decoder, HeaderBlockError, HeaderListError
from tests.sizes import examples

from . import wire as w
from .conversations import VALID, pieces, play

SIZES = st.lists(st.integers(1, 4000), min_size=1, max_size=5)
FRAMES = st.builds(
    w.raw,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 2, 3, 5, 7, 0x7FFFFFFF, 0x80000001]),
    st.one_of(st.binary(max_size=40), st.just(w.block()), st.just(w.prefixed(b"z" * 50)), st.just(b"\0" * 16_384)),
)


@examples(60, 3000)
@given(st.lists(st.sampled_from(VALID), max_size=12), SIZES)
def test_any_course_of_valid_parts_in_any_split(parts, sizes):
    asyncio.run(play(pieces(w.HELLO + b"".join(parts), sizes)))


@examples(100, 5000)
@given(st.lists(st.one_of(FRAMES, st.sampled_from(VALID)), max_size=15), SIZES)
def test_random_frames_between_valid_ones(parts, sizes):
    asyncio.run(play(pieces(w.HELLO + b"".join(parts), sizes)))


@examples(100, 5000)
@given(
    st.lists(st.sampled_from(VALID), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    SIZES,
)
def test_valid_conversations_with_bytes_changed(parts, changes, sizes):
    data = bytearray(w.HELLO + b"".join(parts))
    for place, value in changes:
        data[place % len(data)] = value
    asyncio.run(play(pieces(bytes(data), sizes)))


@examples(100, 5000)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_header_block_is_decoded_or_refused(blocks):
    decoder = Decoder(1000)
    for block in blocks:
        try:
            headers = decoder.decode(block)
        except HeaderListError:
            continue
        except HeaderBlockError:
            return
        assert sum(len(name) + len(value) + 32 for name, value in headers) <= 1000


def test_the_examples_of_the_book_are_decoded():
    # RFC 7541, C.4.1 to C.4.3, and C.6.1: Huffman codes, and a dynamic table.
    decoder = Decoder(4096)
    first = decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert first[3] == (b":authority", b"www.example.com")
    second = decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
    assert second[3:] == [(b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]
    third = decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert third[4] == (b"custom-key", b"custom-value")
    coded = bytes.fromhex("d07abe941054d444a8200595040b8166e082a62d1bff")
    assert huffman.decode(coded) == b"Mon, 21 Oct 2013 20:13:21 GMT"


def test_a_table_that_was_forbidden_holds_nothing():
    decoder = Decoder(4096)
    assert not decoder.stateless
    decoder.decode(w.literal(b"a", b"b", 0x40))
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    decoder.forbid_table()
    assert decoder.stateless
    decoder.decode(w.literal(b"a", b"b", 0x40))
    try:
        decoder.decode(b"\xbe")
    except HeaderBlockError:
        return
    raise AssertionError("an entry of a table that was forbidden")


def test_goaway_is_never_longer_than_a_frame():
    assert len(f.goaway(1, f.Code.NO_ERROR, "x" * 100_000)) < 300
