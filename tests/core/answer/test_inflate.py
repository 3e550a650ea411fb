"""Inflating as it comes: the same bytes however they were cut, once, and never more than the bounds."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.answer import inflate
from extproc.core.answer.inflate import MAX_INFLATED_BYTES, MAX_INFLATED_PER_FEED_BYTES, Inflater, can_inflate
from tests.core.samples import CUTS, FUZZ, bytewise, mutated, parts, two_parts

TEXT = 'data: {"choices":[{"delta":{"content":"Grüße, 世界"}}]}\n\n'.encode() * 20


def bare(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def flushed(data: bytes, step: int = 50) -> bytes:
    """As servers compress a stream: each event can be read as soon as it is there."""
    deflating = zlib.compressobj(wbits=31)
    events = (data[i : i + step] for i in range(0, len(data), step))
    return b"".join(deflating.compress(e) + deflating.flush(zlib.Z_SYNC_FLUSH) for e in events) + deflating.flush()


BODIES = {
    "gzip": ("gzip", gzip.compress(TEXT, mtime=0)),
    "gzip by its old name": ("x-gzip", gzip.compress(TEXT, mtime=0)),
    "gzip, flushed after each event": ("gzip", flushed(TEXT)),
    "gzip of two members": ("gzip", gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0)),
    "gzip with an empty member": ("gzip", gzip.compress(b"", mtime=0) + gzip.compress(TEXT, mtime=0)),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "deflate without a header": ("deflate", bare(TEXT)),
}


def inflated(coding, chunks) -> tuple[bytes, bool]:
    inflater = Inflater(coding)
    return b"".join([piece for chunk in chunks for piece in inflater.feed(chunk)]), inflater.failed


@pytest.mark.parametrize(("coding", "body"), BODIES.values(), ids=BODIES)
def test_a_body_inflates_the_same_whole_in_single_bytes_and_cut_anywhere(coding, body):
    for chunks in ([body], bytewise(body), *two_parts(body)):
        assert inflated(coding, chunks) == (TEXT, False)


def test_an_event_is_there_with_the_chunk_that_completes_it():
    deflating, inflater = zlib.compressobj(wbits=31), Inflater("gzip")
    for event in (b"data: a\n\n", b"data: b\n\n", b"x" * 200_000):
        chunk = deflating.compress(event) + deflating.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(inflater.feed(chunk)) == event


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 131_073, 300_000])
def test_what_fills_a_piece_to_its_last_byte_is_not_left_behind(size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for coding, body in (("gzip", gzip.compress(data)), ("gzip", flushed(data, 65_536)), ("deflate", bare(data))):
        assert inflated(coding, [body]) == (data, False)


def test_what_the_last_byte_stands_for_is_read_whole():
    for size in range(65_536, 66_600, 7):  # the last byte of the deflated zeros is worth up to a thousand of them
        assert inflated("deflate", [bare(bytes(size))]) == (bytes(size), False)


@pytest.mark.parametrize(("coding", "body"), BODIES.values(), ids=BODIES)
def test_of_a_body_that_is_cut_off_all_is_read_that_came(coding, body):
    whole = b""
    for at in range(len(body)):
        text, failed = inflated(coding, [body[:at]])
        assert not failed
        assert TEXT.startswith(text)
        assert len(text) >= len(whole)
        whole = text


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", zlib.compress(TEXT)),
        ("gzip", zlib.compress(TEXT, 2)),
        ("gzip", b"\xff\xd8" + TEXT),
        ("gzip", BODIES["gzip"][1][:-8] + b"\0" * 8),
        ("gzip", BODIES["gzip"][1] + b"and more"),
        ("deflate", b"\xff" * 40),
        ("deflate", zlib.compress(TEXT) + zlib.compress(TEXT)),
        ("deflate", bare(TEXT) + b"x"),
    ],
)
def test_what_is_corrupt_fails_and_gives_nothing_more(coding, body):
    for chunks in ([body], bytewise(body)):
        inflater = Inflater(coding)
        read = b"".join([piece for chunk in chunks for piece in inflater.feed(chunk)])
        assert TEXT.startswith(read)
        assert inflater.failed
        assert list(inflater.feed(BODIES["gzip"][1])) == []


def test_text_that_is_called_gzip_is_read_as_it_is():
    for text in (TEXT, b'{"usage":{}}', b"\n\n{}", b": ping\n\n" * 9000):
        for chunks in ([text], bytewise(text)):
            assert inflated("gzip", chunks) == (text, False)


def test_nothing_inflates_to_nothing():
    for coding in ("gzip", "deflate"):
        assert inflated(coding, [b"", b""]) == (b"", False)
    assert inflated("deflate", [b"x"]) == (b"", False)


def test_only_what_can_be_inflated_is_said_to_be():
    assert [
        coding for coding in ("gzip", "x-gzip", "deflate", "br", "zstd", "", "GZIP") if can_inflate(coding)
    ] == [
        "gzip",
        "x-gzip",
        "deflate",
    ]


def zeros(count: int) -> bytes:
    """Gzip of that many megabytes of zeros: a thousandth of it."""
    deflating = zlib.compressobj(9, wbits=31)
    return b"".join(deflating.compress(bytes(1 << 20)) for _ in range(count)) + deflating.flush()


def test_a_bomb_in_one_chunk_costs_no_more_than_the_bound_for_a_chunk():
    inflater, bomb = Inflater("gzip"), zeros(48)
    assert len(bomb) < 60_000
    pieces = [len(piece) for piece in inflater.feed(bomb)]
    assert inflater.failed
    assert max(pieces) <= 1 << 16
    assert MAX_INFLATED_PER_FEED_BYTES - (1 << 16) <= sum(pieces) <= MAX_INFLATED_PER_FEED_BYTES


def test_a_bomb_in_many_chunks_costs_no_more_than_the_bound_for_an_answer():
    inflater, bomb = Inflater("gzip"), zeros(80)
    total = sum(len(piece) for i in range(0, len(bomb), 1000) for piece in inflater.feed(bomb[i : i + 1000]))
    assert inflater.failed
    assert MAX_INFLATED_BYTES - (1 << 16) <= total <= MAX_INFLATED_BYTES


def test_as_much_as_the_bound_allows_is_inflated():
    data = bytes(MAX_INFLATED_PER_FEED_BYTES)
    assert inflated("gzip", [gzip.compress(data)]) == (data, False)


class Counting:
    """Counts the bytes that zlib is given to look at."""

    def __init__(self):
        self.looked_at, self.members = 0, 0

    def decompressobj(self, bits):
        self.members += 1
        return _CountingMember(self, zlib.decompressobj(bits))

    def __getattr__(self, name):
        return getattr(zlib, name)


class _CountingMember:
    def __init__(self, counting, inner):
        self.counting, self.inner = counting, inner

    def decompress(self, data, length):
        self.counting.looked_at += len(data)
        return self.inner.decompress(data, length)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_every_byte_is_inflated_once_however_the_body_is_cut(monkeypatch, step):
    for size in (2000, 8000):
        data = b"".join(b"%d," % n for n in range(size))
        body, counting = gzip.compress(data), Counting()
        with monkeypatch.context() as patched:
            patched.setattr(inflate, "zlib", counting)
            chunks = [body[i : i + step] for i in range(0, len(body), step)]
            assert inflated("gzip", chunks) == (data, False)
        assert counting.looked_at == len(body)
        assert counting.members == 1


def test_many_small_members_cost_in_proportion_to_their_number(monkeypatch):
    member = gzip.compress(b"x", mtime=0)
    looked_at = []
    for count in (1000, 4000):
        counting = Counting()
        with monkeypatch.context() as patched:
            patched.setattr(inflate, "zlib", counting)
            assert inflated("gzip", [member * count]) == (b"x" * count, False)
        looked_at.append(counting.looked_at)
    assert looked_at[1] <= 4.1 * looked_at[0]


@FUZZ
@given(
    st.sampled_from(["gzip", "deflate"]),
    st.binary(max_size=80) | mutated(st.sampled_from([body for _, body in BODIES.values()])),
    CUTS,
)
def test_any_bytes_inflate_or_fail_and_the_same_however_they_are_cut(coding, body, cuts):
    text, failed = inflated(coding, parts(body, cuts))
    whole, failed_whole = inflated(coding, [body])
    assert failed == failed_whole
    assert failed or text == whole
