import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.weighing import weighed_bytes
from tests.core.samples import FEWER

ENGLISH = b"the committee agreed that the bridge should be repaired before winter sets in "


def weight(text):
    return weighed_bytes(text, len(text))


def each(text):
    """The weight of a byte, from a text that is long enough."""
    many = text * 100
    return weight(many) / len(many)


def escaped(text):
    return json.dumps(text).encode()


@pytest.mark.parametrize(
    ("text", "a_byte"),
    [
        ("plain english words ", 0.8),
        ("UPPER", 4.4),
        ("0123456789", 3.4),
        ('"{}[]:,', 0.5),
        ("привет", 0.65),
        ("你好世界", 1.03),
        ("한국어", 1.06),
        ("नमस्ते", 0.7),
        ("مرحبا", 0.85),
        ("😀", 1.57),
    ],
)
def test_a_byte_weighs_by_what_it_stands_for(text, a_byte):
    assert each(text.encode()) == pytest.approx(a_byte, abs=0.02)


def test_base64_weighs_several_times_as_much_as_prose():
    data = base64.b64encode(bytes(range(256)) * 20)
    assert 2.2 < weight(data) / len(data) / each(ENGLISH) < 4.5


@pytest.mark.parametrize("text", ["привет как дела", "你好世界", "नमस्ते दुनिया", "😀😀😀"])
def test_escapes_weigh_as_much_as_what_they_stand_for(text):
    assert weight(escaped(text * 40)) == pytest.approx(weight((text * 40).encode()), rel=0.03)


def test_a_few_escapes_are_not_read():
    plain = escaped("a long text with one quotation mark " * 20)
    assert weight(plain[:-1] + rb'\u00e9"') == pytest.approx(weight(plain), rel=0.05)


def test_a_text_may_end_within_an_escape_and_within_a_character():
    whole = weight(escaped("приветы" * 2000))
    for cut in range(1, 8):
        assert weight(escaped("приветы" * 2000)[:-cut]) == pytest.approx(whole, rel=0.01)
        assert weight(("привет" * 20).encode()[:-cut]) <= weight(("привет" * 20).encode())


def test_the_weight_of_a_part_stands_for_all_of_the_size():
    assert weighed_bytes(ENGLISH, 10 * len(ENGLISH)) == pytest.approx(10 * weight(ENGLISH), abs=10)
    assert weighed_bytes(b"", 30) == 30
    assert weighed_bytes(ENGLISH, 0) == 0


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2048, 65_535, 65_536])
def test_a_text_of_any_size_is_summed_exactly(size):
    assert weight(b"A" * size) == size * 44 // 10


def test_of_a_large_text_pieces_from_everywhere_are_weighed():
    half = b"a" * 500_000
    assert weight(half + b"A" * 500_000) == pytest.approx(1_000_000 * (0.8 + 4.4) / 2, rel=0.05)
    assert weight(half + half) == 800_000


@FEWER
@given(st.binary(max_size=5000), st.integers(0, 2**27))
def test_any_text_has_a_weight(text, size):
    assert 0 <= weighed_bytes(text, size) <= max(size, 7 * size)
