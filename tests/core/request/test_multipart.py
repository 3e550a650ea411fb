"""Forms: the fields that a server sees are the fields that we see, and what may be seen in two ways is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.bodies.facts import Malformed
from extproc.core.request.bodies.multipart import MAX_PARTS, Form, is_multipart, read_form
from tests.core.samples import FUZZ, mutated

TYPE = "multipart/form-data; boundary=XyZ"


def part(name: str, value: bytes = b"v", more: str = "", headers: str = "") -> bytes:
    head = f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return head.encode() + value + b"\r\n"


def form_of(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XyZ--\r\n"


def form(body: bytes, content_type: str = TYPE) -> Form:
    read = read_form(content_type, body)
    assert isinstance(read, Form), read
    return read


def problem(body: bytes, content_type: str = TYPE) -> Malformed:
    read = read_form(content_type, body)
    assert isinstance(read, Malformed), read
    assert read.code == "invalid_multipart"
    assert read.message.endswith(".")
    return read


def test_fields_are_kept_and_files_are_measured():
    body = form_of(
        part("model", b"whisper"),
        part("file", b"RIFF" * 1000, '; filename="a.wav"', "Content-Type: audio/wav\r\n"),
        part("model", b""),
        part("größe", "ä\r\n--Xy".encode()),
    )
    assert form(body) == Form(
        [("model", b"whisper"), ("model", b""), ("größe", "ä\r\n--Xy".encode())], [("file", 4000)]
    )


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data;boundary=XyZ",
        'Multipart/Form-Data; charset=utf-8; BOUNDARY="XyZ"',
        "multipart/form-data ;  boundary = XyZ",
    ],
)
def test_the_type_is_read_as_servers_do(content_type):
    assert is_multipart(content_type)
    assert form(form_of(part("a")), content_type).fields == [("a", b"v")]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/mixed; boundary=XyZ",
        "multipart/form-data; x=ф; boundary=XyZ",
        "",
    ],
)
def test_a_type_without_a_boundary_is_refused(content_type):
    assert problem(form_of(part("a")), content_type).param == "content-type"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("multipart/mixed", True),
        ("MULTIPART/x;y", True),
        ("application/json", False),
        ("", False),
        ("x/multipart/", False),
    ],
)
def test_a_form_is_known_by_its_type(content_type, expected):
    assert is_multipart(content_type) is expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"{}",
        part("a"),
        part("a")[:-1],
        form_of(part("a"))[:-5],
        b"--Other\r\n" + form_of(part("a")),
        b"--XyZ\r\nContent-Disposition: form-data\r\n\r\nv\r\n--XyZ--",
        b"--XyZ\r\n\r\nv\r\n--XyZ--",
        b"--XyZ\r\nContent-Disposition: attachment; name=a\r\n\r\nv\r\n--XyZ--",
        b"--XyZ\r\nContent-Disposition\r\n\r\nv\r\n--XyZ--",
        form_of(part("a", more='; name="model"')),
        form_of(part("a", more="; NAME =model")),
        form_of(part("a", headers='Content-Disposition: form-data; name="model"\r\n')),
        form_of(part("a", headers="content-transfer-encoding: base64\r\n")),
        form_of(part("a", headers="X-Y: " + "z" * 4000 + "\r\n")),
        form_of(part("a", headers="".join(f"X-{i}: y\r\n" for i in range(9)))),
        form_of(part("a").replace(b'"a"', b'"\xff"')),
        form_of(part("a").replace(b'name="a"', b"name*=utf-8''a")),
    ],
)
def test_a_form_that_can_be_read_in_no_way_or_in_two_is_refused(body):
    assert "not a valid multipart form" in problem(body).message


def test_plain_encodings_and_an_empty_header_are_allowed():
    assert form(form_of(part("a", headers="Content-Transfer-Encoding: 8bit\r\nX-Empty:\r\n"))).fields == [
        ("a", b"v")
    ]


def test_an_empty_form_and_what_follows_a_form_are_allowed():
    assert form(b"--XyZ--") == Form()
    assert form(form_of(part("a")) + b"epilogue").fields == [("a", b"v")]


def test_there_are_so_many_parts_and_no_more():
    assert len(form(form_of(*[part("a")] * MAX_PARTS)).fields) == MAX_PARTS
    assert f"more than {MAX_PARTS} parts" in problem(form_of(*[part("a")] * (MAX_PARTS + 1))).message


def test_a_field_named_like_a_file_is_a_field_and_a_file_named_like_a_field_is_a_file():
    read = form(form_of(part("file", b"text"), part("model", b"whisper", "; filename=x")))
    assert read == Form([("file", b"text")], [("model", 7)])


NAMES = st.sampled_from(["model", "file", "n", "größe", "a b"])
VALUES = st.binary(max_size=20).filter(lambda value: b"--XyZ" not in value)
PARTS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=5)


def written(parts) -> bytes:
    return form_of(*(part(name, value, '; filename="f"' if file else "") for name, value, file in parts))


@FUZZ
@given(PARTS)
def test_what_was_written_is_read(parts):
    assert form(written(parts)) == Form(
        [(name, value) for name, value, file in parts if not file],
        [(name, len(value)) for name, value, file in parts if file],
    )


@FUZZ
@given(st.text(max_size=30) | st.just(TYPE), mutated(PARTS.map(written)) | st.binary())
def test_any_bytes_give_a_form_or_a_complaint(content_type, body):
    is_multipart(content_type)
    assert isinstance(read_form(content_type, body), Form | Malformed)


def nasty(size: int) -> dict[str, bytes]:
    return {
        "boundaries that are none": form_of(part("a", b"\r\n--Xy" * (size // 6))),
        "boundaries that go on": form_of(part("a", b"\r\n--XyZx" * (size // 8))),
        "carriage returns": form_of(part("a", b"\r" * size)),
        "dashes": b"-" * size,
        "line ends": b"\r\n" * (size // 2),
        "a header without end": b"--XyZ\r\nX: " + b"y" * size,
        "a file": form_of(part("a", b"\x00" * size, "; filename=f")),
        "parts": part("a") * (size // 60),
    }


@pytest.mark.parametrize("name", nasty(64))
def test_reading_takes_time_in_proportion_to_the_size(name):
    def best(body: bytes) -> float:
        times = []
        for _ in range(3):
            before = time.thread_time()
            read_form(TYPE, body)
            times.append(time.thread_time() - before)
        return min(times)

    small, large = best(nasty(1 << 17)[name]), best(nasty(1 << 21)[name])
    assert large < max(100 * small, 0.05)
