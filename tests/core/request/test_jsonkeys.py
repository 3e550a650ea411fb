"""Members of an object: all of them, in order, exactly as they are written."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.jsonkeys import MAX_MEMBERS, members, repeated
from tests.core.samples import FUZZ, VALUES, mutated

NAMES = frozenset({"a", "b"})
KEYS = st.sampled_from(["a", "b", "c", "", "ä", "a b", 'a"', "a\\", "\n", "🌍"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=5
)


@st.composite
def objects(draw) -> str:
    """An object as text: keys may repeat and be escaped, white space is anywhere."""
    space = st.sampled_from(["", " ", "\n\t"])
    out = []
    for key, value in draw(st.lists(st.tuples(KEYS, VALUES), max_size=6)):
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            name = '"' + "".join(f"\\u{unit:04x}" for unit in utf16(key)) + '"'
        text = json.dumps(value, allow_nan=False) if finite(value) else "1e400"
        out.append(f"{draw(space)}{name}{draw(space)}:{draw(space)}{text}{draw(space)}")
    return f"{draw(space)}{{{','.join(out) or draw(space)}}}{draw(space)}"


def utf16(text):
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[i : i + 2]) for i in range(0, len(raw), 2)]


def finite(value):
    try:
        json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return False
    return not has_lone_surrogate(value)


def has_lone_surrogate(value):
    return any("\ud800" <= c <= "\udfff" for c in json.dumps(value, ensure_ascii=False))


@FUZZ
@given(objects())
def test_the_members_are_those_that_a_full_parser_finds(text):
    found = members(text.encode())
    pairs = json.loads(text, object_pairs_hook=list)
    assert [name for name, _ in found] == [name for name, _ in pairs]
    values = [json.loads(bytes(value), object_pairs_hook=list) for _, value in found]
    assert values == [value for _, value in pairs]
    assert all(bytes(value) in text.encode() for _, value in found)
    names = [name for name, _ in pairs]
    again = [name for place, name in enumerate(names) if name in NAMES and name in names[:place]]
    assert repeated(found, NAMES) == (again[0] if again else None)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "ä", 'a"', ""]), VALUES.filter(finite)), max_size=6))
def test_members_of_an_object_without_white_space_are_all_found_with_those_that_repeat(pairs):
    text = ",".join(
        f"{json.dumps(key, ensure_ascii=False)}:{json.dumps(value, separators=(',', ':'))}" for key, value in pairs
    )
    found = [(name, json.loads(bytes(value))) for name, value in members(b"{%b}" % text.encode())]
    assert found == [(key, json.loads(json.dumps(value))) for key, value in pairs]


@FUZZ
@given(st.binary() | mutated(objects().map(str.encode)))
def test_any_bytes_give_members_or_a_documented_error(text):
    try:
        found = members(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert all(isinstance(name, str) and isinstance(value, msgspec.Raw) for name, value in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{}", []),
        (b' { "a" : [1, 2] , "a":{"a":"}"}}', [("a", b"[1, 2]"), ("a", b'{"a":"}"}')]),
        (b'{"a":"\\"","\\u0061":1e400}', [("a", b'"\\""'), ("a", b"1e400")]),
        (b'{"a":123456789012345678901234567890}', [("a", b"123456789012345678901234567890")]),
    ],
)
def test_values_are_given_as_they_are_written(text, expected):
    assert [(name, bytes(value)) for name, value in members(text)] == expected


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"a"', b"true"])
def test_what_is_no_object_is_a_validation_error(text):
    with pytest.raises(msgspec.ValidationError):
        members(text)


@pytest.mark.parametrize("text", [b"", b"{", b'{"a"}', b'{"a":1,}', b"{}x", b"\xef\xbb\xbf{}", b'{"\\ud800":1}'])
def test_what_is_no_json_is_a_decode_error(text):
    with pytest.raises(msgspec.DecodeError):
        members(text)


def test_a_key_that_is_no_utf8_and_endless_nesting_have_errors_of_their_own():
    with pytest.raises(UnicodeDecodeError):
        members(b'{"\xff":1}')
    with pytest.raises(RecursionError):
        members(b'{"a":' + b"[" * 100_000)


def test_there_are_so_many_members_and_no_more():
    many = b",".join(b'"":0' for _ in range(MAX_MEMBERS))
    assert len(members(b"{" + many + b"}")) == MAX_MEMBERS
    differing = b",".join(b'"%d":0' % number for number in range(MAX_MEMBERS))
    assert len(members(b"{" + differing + b"}")) == MAX_MEMBERS
    for more in (many, differing):
        with pytest.raises(msgspec.ValidationError, match="too many members"):
            members(b"{" + more + b',"":0}')


def test_only_names_that_somebody_asked_for_are_looked_at_and_the_first_that_repeats_is_told():
    found = members(b'{"c":1,"c":2,"b":1,"a":1,"a":2,"b":2}')
    assert repeated(found, NAMES) == "a"
    assert repeated(found, frozenset({"c"})) == "c"
    assert repeated(found, frozenset()) is None
    assert repeated(members(b'{"a":{"a":1}}'), NAMES) is None
