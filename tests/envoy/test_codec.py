"""Protobuf <-> core values."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.events import (
    BodyReply,
    HeadReply,
    Reject,
    RequestBody,
    RequestHead,
    RequestTrailers,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    TrailersReply,
)
from extproc.core.phase import ProtocolError
from extproc.core.rejections import Rejection
from extproc.core.request.endpoints import NO_GET
from extproc.core.request.identity import IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys, reply_message
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

from .messages import claims, header_map, request_head, struct

RULES = IdentityRules(service_account_header="oc_sa")


def event(message, rules=RULES, keys=None):
    return Codec(rules, keys or MetadataKeys()).event(message.SerializeToString())


def head(*headers, **fields):
    return pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=pb.HeaderMap(headers=headers)), **fields)


def test_only_wanted_headers_are_read():
    read = event(request_head([("oc_sa", "sa"), ("cookie", "secret"), ("authorization", "secret")]))
    assert read.headers == {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        "x-request-id": "id-1",
        "oc_sa": "sa",
    }


def test_a_repeated_header_is_joined_by_commas():
    read = event(request_head([("oc_sa", "one"), ("oc_sa", "two"), ("oc_sa", "")]))
    assert read.headers["oc_sa"] == "one,two,"


def test_a_header_is_read_from_either_field():
    read = event(
        head(
            pb.HeaderValue(key=":path", value="/a"),
            pb.HeaderValue(key=":method", raw_value=b"GET"),
            pb.HeaderValue(key="oc_sa"),
        )
    )
    assert read.headers == {":path": "/a", ":method": "GET", "oc_sa": ""}


def test_bytes_that_are_no_text_are_replaced_and_not_dropped():
    assert event(head(pb.HeaderValue(key="oc_sa", raw_value=b"a\xffb"))).headers["oc_sa"] == "a\ufffdb"


@pytest.mark.parametrize("end", [True, False])
def test_the_end_of_the_stream_is_told(end):
    assert event(request_head(end=end)).end_of_stream is end
    assert event(pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x", end_of_stream=end))) == RequestBody(
        b"x", end
    )
    assert event(pb.ProcessingRequest(response_body=pb.HttpBody(body=b"x", end_of_stream=end))) == ResponseBody(
        b"x", end
    )


def test_trailers_are_told():
    assert event(pb.ProcessingRequest(request_trailers=pb.HttpTrailers())) == RequestTrailers()
    assert event(pb.ProcessingRequest(response_trailers=pb.HttpTrailers())) == ResponseTrailers()


def test_verified_claims_and_the_peers_address_are_read():
    read = event(request_head(payload={"sub": "sa", "tenant": "acme", "email": "x"}))
    assert read.claims == {"sub": "sa", "tenant": "acme"}
    assert read.source_address == "10.0.0.1:4321"


def test_nothing_but_headers_is_a_request_without_claims_and_address():
    assert event(head()) == RequestHead({}, {}, "", end_of_stream=False)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"envoy.filters.http.ext_proc": struct({})},
        {"envoy.filters.http.ext_proc": struct({"source.address": 7})},
        {"another.filter": struct({"source.address": "6.6.6.6:1"})},
    ],
)
def test_an_address_that_is_missing_or_no_text_is_none(attributes):
    assert event(head(attributes=attributes)).source_address == ""


@pytest.mark.parametrize("payload", ["text", 5, None, True, ["sub"]])
def test_a_payload_that_is_no_object_has_no_claims(payload):
    assert event(head(metadata_context=claims(payload))).claims == {}


def test_claims_of_another_namespace_or_key_are_not_read():
    other = claims({"sub": "sa"}, namespace="somebody.else")
    assert event(head(metadata_context=other)).claims == {}
    assert event(request_head(), keys=MetadataKeys(payload="other")).claims == {}
    assert event(head(metadata_context=other), keys=MetadataKeys("somebody.else")).claims == {"sub": "sa"}


@pytest.mark.parametrize("value", [7, 1.5, True, None, ["sa"], {"name": "sa"}])
def test_a_claim_that_is_no_text_is_there_but_names_nobody(value):
    assert event(request_head(payload={"sub": value, "tenant": "acme"})).claims == {"sub": None, "tenant": "acme"}


def test_an_empty_claim_is_an_empty_text():
    assert event(request_head(payload={"sub": ""})).claims == {"sub": ""}


@pytest.mark.parametrize(
    ("text", "status"), [("200", 200), ("429", 429), ("", 500), ("2x0", 500), ("²00", 500), ("2000", 500)]
)
def test_a_status_that_is_none_counts_as_an_error(text, status):
    read = event(pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=header_map({":status": text}))))
    assert read == ResponseHead(status, {":status": text}, end_of_stream=False)


@pytest.mark.parametrize(
    ("status", "details", "read"),
    [("504", "via_upstream", "via_upstream"), ("504", "response_timeout", "response_timeout"), ("200", "x", "")],
)
def test_where_a_gateway_timeout_comes_from_is_read(status, details, read):
    message = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=header_map({":status": status})),
        attributes={"envoy.filters.http.ext_proc": struct({"response.code_details": details})},
    )
    assert event(message).details == read


@pytest.mark.parametrize("data", [b"", b"\x5a\x00", b"\x78\x01", b"\xff"])
def test_a_message_of_an_unknown_kind_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        Codec(RULES, MetadataKeys()).event(data)


# ---------------------------------------------------------------- replies

REQUEST, RESPONSE = RequestBody(b"", end_of_stream=True), ResponseBody(b"", end_of_stream=True)
RESPONSE_HEAD = ResponseHead(200, {}, end_of_stream=False)


def reply(event, value):
    return pb.ProcessingResponse.FromString(reply_message(event, value))


def test_headers_are_set_over_existing_ones_and_removed():
    value = HeadReply((("x-a", "1"), ("x-b", "ü")), ("content-length",))
    for at, kind in ((REQUEST, "request_headers"), (RESPONSE_HEAD, "response_headers")):
        message = reply(at, value)
        assert message.WhichOneof("response") == kind
        mutation = getattr(message, kind).response.header_mutation
        assert [(o.header.key, o.header.raw_value, o.append_action) for o in mutation.set_headers] == [
            ("x-a", b"1", pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
            ("x-b", "ü".encode(), pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
        ]
        assert list(mutation.remove_headers) == ["content-length"]


HEADERS = st.lists(st.tuples(st.text(), st.text() | st.text("x", min_size=120, max_size=300)), max_size=5)


@given(HEADERS, st.lists(st.text(max_size=200), max_size=3))
@example([("x", "y" * 20_000)], ["content-length"])
def test_the_head_of_an_answer_says_what_it_would_by_protobuf(headers, removed):
    message = reply(RESPONSE_HEAD, HeadReply(tuple(headers), tuple(removed)))
    options = [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=key, raw_value=value.encode()),
            append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for key, value in headers
    ]
    common = pb.CommonResponse(header_mutation=pb.HeaderMutation(set_headers=options, remove_headers=removed))
    assert message == pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common))


def test_a_body_is_left_replaced_or_emptied():
    for at, kind in ((REQUEST, "request_body"), (RESPONSE, "response_body")):
        assert not getattr(reply(at, BodyReply()), kind).HasField("response")
        assert getattr(reply(at, BodyReply(b"new")), kind).response.body_mutation.body == b"new"
        # Replacing by nothing needs a word of its own: an empty `body` would be taken for no mutation.
        assert getattr(reply(at, BodyReply(b"")), kind).response.body_mutation.clear_body is True


def test_trailers_go_on():
    assert reply(RequestTrailers(), TrailersReply()).WhichOneof("response") == "request_trailers"
    assert reply(ResponseTrailers(), TrailersReply()).WhichOneof("response") == "response_trailers"


def test_a_rejection_is_an_immediate_answer_that_names_us():
    value = Reject(Rejection(429, (("retry-after", "3"),), b'{"error":1}', "over_limit"))
    answer = reply(REQUEST, value).immediate_response
    assert (answer.status.code, answer.body, answer.details) == (429, b'{"error":1}', "tokenweir")
    assert [(o.header.key, o.header.raw_value) for o in answer.headers.set_headers] == [("retry-after", b"3")]


@pytest.mark.parametrize("name", sorted(NO_GET))
def test_a_header_by_which_a_get_is_no_get_is_seen(name):
    assert event(request_head([(name, "x")])).headers[name] == "x"


def test_a_header_that_steers_a_model_server_is_seen():
    headers = event(request_head([("x-data-parallel-rank", "0"), ("x-other", "1")])).headers
    assert headers["x-data-parallel-rank"] == "0"
    assert "x-other" not in headers
