"""Audio and images: the model, the choices and the files of a form; the same fields in JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.body import MAX_CHOICES, MAX_TOKENS, UNNAMED, Malformed, RequestFacts
from extproc.core.request.endpoints import Endpoint
from tests.core.samples import FEWER, mutated

from .body_samples import facts, problem, read, text_of
from .test_multipart import TYPE, form_of, part

TRANSCRIPTIONS, SPEECH, IMAGES = Endpoint.TRANSCRIPTIONS, Endpoint.SPEECH, Endpoint.IMAGES
AUDIO = part("file", b"RIFF" * 1000, '; filename="a.wav"')


def form_facts(*parts: bytes, endpoint: Endpoint = TRANSCRIPTIONS) -> RequestFacts:
    found = read(endpoint, form_of(part("model", b"m"), *parts), TYPE)
    assert isinstance(found, RequestFacts), found
    return found


def form_problem(*parts: bytes) -> Malformed:
    found = read(TRANSCRIPTIONS, form_of(*parts), TYPE)
    assert isinstance(found, Malformed), found
    return found


@pytest.mark.parametrize("endpoint", [TRANSCRIPTIONS, IMAGES])
def test_a_form_is_read(endpoint):
    read = form_facts(AUDIO, part("n", b" 3 "), part("stream", b"True"), part("prompt", b"hi"), endpoint=endpoint)
    assert (read.model, read.choices, read.stream, read.media_parts) == ("m", 3, True, 1)
    assert (read.prompt_bytes, json.loads(read.prompt)) == (2, {"prompt": "hi"})
    assert (read.boundable, read.generates, read.counts_tokens, read.wants_usage) == (False, True, True, True)
    assert (read.output_bound, read.unbounded_prompt) == (None, False)


def test_each_file_is_a_part_and_none_is_text():
    image = part("image[]", b"PNG" * 1000, '; filename="a.png"')
    read = form_facts(image, image, part("mask", b"PNG", "; filename=m"), endpoint=IMAGES)
    assert (read.media_parts, read.prompt_bytes) == (3, 0)


def test_all_text_of_a_form_that_may_become_prompt_is_counted():
    assert form_facts(AUDIO, part("hotwords", b"x" * 50), part("prompt", b"y" * 60)).prompt_bytes == 110
    assert form_facts(AUDIO, part("language", b"de")).prompt_bytes == 0
    assert 8_000 < form_facts(AUDIO, part("other", b"x" * 10_000)).prompt_bytes < 10_000


@pytest.mark.parametrize("text", ["true", "1", "YES", "on", "t", "Y"])
def test_a_form_says_yes_in_many_ways(text):
    assert form_facts(part("stream", text.encode())).stream is True


@pytest.mark.parametrize("text", ["false", "0", "No", "off", "f", "n", ""])
def test_a_form_says_no_in_many_ways(text):
    assert form_facts(part("stream", text.encode())).stream is False


def test_a_form_may_bound_the_output():
    assert form_facts(part("max_completion_tokens", b"7")).output_bound == 7
    assert form_facts(part("max_completion_tokens", str(MAX_TOKENS).encode())).output_bound == MAX_TOKENS
    assert form_facts(part("n", b""), part("max_completion_tokens", b" ")).choices == 1
    assert form_facts(part("max_completion_tokens", b"7")).bound_is_common is False


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([part("model", b" ")], "model"),
        ([part("model", b"a\nb")], "model"),
        ([part("model", b"m" * 257)], "model"),
        ([part("model", b"\xff")], "model"),
        ([part("model", b"m", "; filename=x")], "model"),
        ([part("model", b"m"), part("stream", b"maybe")], "stream"),
        ([part("model", b"m"), part("n", b"0")], "n"),
        ([part("model", b"m"), part("n", b"-1")], "n"),
        ([part("model", b"m"), part("n", b"1.5")], "n"),
        ([part("model", b"m"), part("n", b"9999999999")], "n"),
        ([part("model", b"m"), part("n", str(MAX_CHOICES + 1).encode())], "n"),
        ([part("model", b"m"), part("n", "٣".encode())], "n"),
        ([part("model", b"m"), part("max_completion_tokens", b"x")], "max_completion_tokens"),
        ([part("model", b"m"), part("prompt", b"\xff")], "prompt"),
    ],
)
def test_a_bad_field_of_a_form_is_named(parts, param):
    refused = form_problem(*parts)
    assert refused.param == param
    assert f"'{param}' must be" in refused.message


@pytest.mark.parametrize("name", ["model", "n", "stream", "prompt", "file", "max_completion_tokens"])
def test_a_field_of_a_form_may_not_be_given_twice(name):
    for second in (part(name, b"1"), part(name, b"1", "; filename=x")):
        refused = form_problem(part("model", b"m") if name != "model" else b"", part(name, b"1"), second)
        assert refused == Malformed(f"'{name}' is given more than once.", name, "duplicate_field")


def test_fields_that_are_not_read_may_be_given_twice():
    assert (
        form_facts(part("timestamp_granularities[]", b"word"), part("timestamp_granularities[]", b"x")).choices
        == 1
    )


def test_a_form_that_can_not_be_read_is_refused():
    assert form_problem(part("model", b"m") + b"--XyZ\r\nbroken").code == "invalid_multipart"
    assert read(SPEECH, form_of(part("model", b"m")), TYPE).param == "content-type"


def test_a_picture_in_a_form_may_be_a_text():
    parts = part("image", b"data:image/png;base64," + b"A" * 4000), part("image[]", b"A" * 4000), part("mask", b"")
    read = form_facts(part("prompt", b"blue"), *parts, endpoint=IMAGES)
    assert (read.media_parts, read.prompt_bytes) == (2, 4)


# ---------------------------------------------------------------- the same in JSON


def test_speech_is_read_from_json():
    read = facts(SPEECH, input="say it", instructions="softly", voice="v", stream_format="sse")
    assert (read.stream, read.choices, read.prompt_bytes) == (True, 1, len('"say it"') + len('"softly"'))
    assert facts(SPEECH, stream_format="audio").stream is False
    assert facts(SPEECH, stream=True).stream is True


def test_images_are_read_from_json():
    read = facts(IMAGES, prompt="a weir", n=4, image="data:image/png;base64," + "A" * 4000, images=["a", "b"])
    assert (read.choices, read.media_parts) == (4, 3)
    assert read.prompt_bytes == len('"a weir"')
    assert facts(IMAGES, images=[], image=None).media_parts == 1
    assert facts(IMAGES, images=[{}] * 3).media_parts == 1


def test_a_recording_may_come_in_json():
    read = facts(TRANSCRIPTIONS, file="A" * 4000, max_completion_tokens=9)
    assert (read.media_parts, read.prompt_bytes, read.output_bound) == (1, 0, 9)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (SPEECH, {"model": 5}, "model"),
        (SPEECH, {"stream": "yes"}, "stream"),
        (IMAGES, {"n": "4"}, "n"),
        (TRANSCRIPTIONS, {"max_completion_tokens": "0"}, "max_completion_tokens"),
    ],
)
def test_a_bad_field_of_json_is_named(endpoint, fields, param):
    assert problem(endpoint, **fields).param == param


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["model", "n", "stream", "prompt", "max_completion_tokens", "file", "x"]),
        st.sampled_from([b"", b"m", b"1", b"true", b"\xff", b"99999999"]),
        st.booleans(),
    ),
    max_size=6,
)


@FEWER
@given(FIELDS)
def test_what_is_read_of_a_form_is_what_it_says(fields):
    parts = [part(name, value, "; filename=f" if file else "") for name, value, file in fields]
    found = read(TRANSCRIPTIONS, form_of(*parts), TYPE)
    if isinstance(found, Malformed):
        assert found.param
        return
    values = {name: value for name, value, file in fields if not file}
    assert found.model == (values.get("model", b"").decode() or UNNAMED)
    assert found.stream is (values.get("stream") in (b"true", b"1"))
    assert found.choices == int(values.get("n") or 1)
    assert found.media_parts == sum(file or (name == "file" and value != b"") for name, value, file in fields)


@FEWER
@given(mutated(st.just(form_of(part("model", b"m"), AUDIO, part("n", b"2")))), st.booleans())
def test_any_bytes_give_facts_or_a_complaint(body, as_form):
    for endpoint in (TRANSCRIPTIONS, SPEECH, IMAGES):
        found = read(endpoint, body, TYPE if as_form else "")
        assert isinstance(found, RequestFacts | Malformed)


@FEWER
@given(mutated(st.sampled_from([text_of(SPEECH, stream=True), text_of(IMAGES, n=2, images=["a"])])))
def test_any_json_gives_facts_or_a_complaint(body):
    assert isinstance(read(IMAGES, body), RequestFacts | Malformed)
