"""Parameters and headers that steer the model server: refused by name, unless they are allowed."""

import pytest

from extproc.core.request.bodies.steering import STEERING_FIELDS, STEERING_HEADERS
from extproc.core.request.body import Malformed, RequestFacts, read_request
from extproc.core.request.endpoints import Endpoint, Target

from .body_samples import JSON, LEAST, problem, read, text_of


@pytest.mark.parametrize("endpoint", LEAST)
@pytest.mark.parametrize("field", sorted(STEERING_FIELDS))
def test_a_parameter_that_steers_the_server_is_refused_by_name(endpoint, field):
    found = problem(endpoint, **{field: {"a": 1}})
    assert (found.param, found.code) == (field, "parameter_not_allowed")
    assert field in found.message


@pytest.mark.parametrize("value", [0, "", [], False])
def test_any_value_but_null_is_refused(value):
    assert problem(Endpoint.CHAT_COMPLETIONS, priority=value).param == "priority"
    assert isinstance(
        read(Endpoint.CHAT_COMPLETIONS, text_of(Endpoint.CHAT_COMPLETIONS, priority=None)), RequestFacts
    )


def test_an_escaped_name_is_refused_too():
    body = b'{"model":"m","messages":[],"prior\\u0069ty":-1}'
    assert read(Endpoint.CHAT_COMPLETIONS, body).param == "priority"


def test_what_is_allowed_passes_and_the_rest_does_not():
    target, body = Target(Endpoint.CHAT_COMPLETIONS), text_of(Endpoint.CHAT_COMPLETIONS, priority=1, lora_path="x")
    assert read_request(target, body, JSON, {"priority"}).param == "lora_path"
    assert isinstance(read_request(target, body, JSON, {"priority", "lora_path"}), RequestFacts)


def test_a_form_is_no_way_around():
    form = b'--B\r\ncontent-disposition: form-data; name="%b"\r\n\r\n1\r\n'
    body = form % b"model" + form % b"priority" + b"--B--\r\n"
    target, kind = Target(Endpoint.TRANSCRIPTIONS), "multipart/form-data; boundary=B"
    assert read_request(target, body, kind) == Malformed(
        "'priority' steers the model server; callers may not set it here. Leave it out.",
        "priority",
        "parameter_not_allowed",
    )
    assert isinstance(read_request(target, body, kind, {"priority"}), RequestFacts)


def test_the_names_are_lower_case_and_no_header_is_a_field():
    assert {name.lower() for name in STEERING_FIELDS | STEERING_HEADERS} == STEERING_FIELDS | STEERING_HEADERS
    assert not STEERING_FIELDS & STEERING_HEADERS
