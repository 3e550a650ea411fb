"""What no endpoint meters: reading is free, the rest is refused unless a list names it."""

import msgspec
import pytest

from extproc.core.events import Finish, HeadReply, Reject, RequestHead
from extproc.core.exchange import Exchange
from extproc.core.phase import ExchangeRules
from extproc.core.request.identity import IdentityRules
from extproc.core.unmetered import Refusal, refusal

FREE = [
    "/tokenize",
    "/detokenize",
    "/v1/tokenize",
    "/TOKENIZE/",
    "//tokenize?add_special_tokens=true",
    "/apply-template",
    "/v1/messages/count_tokens",
    "/anthropic/v1/messages/count_tokens?beta=true",
    "/v1/responses/input_tokens",
    "/v1/responses/resp_1/cancel",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/ping",
    "/v1/files",
    "/api/show",
    "/v2/repository/index",
    "/v1beta/models/gemini:countTokens",
]
GENERATES = [
    "/",
    "",
    "*",
    "/generate",
    "/generate_stream",
    "/inference/v1/generate",
    "/v1/systemone",
    "/api/chat",
    "/api/generate",
    "/v2/chat",
    "/v1beta/models/gemini:generateContent",
    "/v1/responses-of-tomorrow",
    "/v1/chat/completions/abc",
    "/inference.GRPCInferenceService/ModelInfer",
    "/v1/load_lora_adapter",
    "/v2/repository/models/m/load",
    "/v1/files/f/content",
    "/cancel",
    "/v1/x/cancel",
    "/render",
    "/v1/generate/derender",
]


def answer_to(method, path, allowed=(), **headers):
    head = RequestHead({":method": method, ":path": path, **headers}, {"sub": "a"}, "10.0.0.7:1", True)
    return Exchange(ExchangeRules(IdentityRules(), unmetered_paths=tuple(allowed))).receive(head)


def rejection_of(effects):
    first, last = effects
    assert isinstance(first, Reject)
    assert isinstance(last, Finish)
    return first.rejection


@pytest.mark.parametrize("path", FREE)
def test_what_generates_nothing_passes(path):
    assert answer_to("POST", path) == [HeadReply(), Finish()]


@pytest.mark.parametrize("path", GENERATES)
def test_a_post_to_any_other_path_is_refused(path):
    rejection = rejection_of(answer_to("POST", path))
    error = msgspec.json.decode(rejection.body)["error"]
    assert (rejection.status, rejection.reason) == (404, "not_metered")
    assert (error["code"], error["type"], error["param"]) == (
        "endpoint_not_metered",
        "invalid_request_error",
        None,
    )
    assert refusal(path, ()) is Refusal.UNKNOWN


@pytest.mark.parametrize("path", FREE + GENERATES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_pass(method, path):
    assert answer_to(method, path) == [HeadReply(), Finish()]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/v1/batches", Refusal.BATCH),
        ("/v1/batches/b/cancel", Refusal.BATCH),
        ("/v1/messages/batches", Refusal.BATCH),
        ("/v1/realtime/sessions", Refusal.REALTIME),
        ("/openai/v1/realtime/client_secrets", Refusal.REALTIME),
        ("/v1/threads", Refusal.THREAD),
        ("/v1/threads/t/messages", Refusal.THREAD),
        ("/v1/threads/t/runs", Refusal.THREAD),
        ("/v1/assistants", Refusal.THREAD),
    ],
)
def test_what_could_never_be_counted_is_refused_with_words(path, why):
    assert refusal(path, ()) is why
    assert why.value in msgspec.json.decode(rejection_of(answer_to("POST", path)).body)["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/generate%3f/tokenize",
        "/generate%23/tokenize",
        "/generate%253f/tokenize",
        "/tokenize/%2e%2e/generate",
        "/tokenize%2f..%2fgenerate",
        "/tokenize/../generate",
        "/generate?/tokenize",
        "/generate#/tokenize",
        "/generate/;/",
    ],
)
def test_a_path_that_one_server_could_take_for_another_is_refused(path):
    assert refusal(path, ()) is Refusal.UNKNOWN
    assert refusal(path, ("/tokenize*",)) is Refusal.UNKNOWN


def test_below_messages_the_refusal_has_anthropics_shape():
    rejection = rejection_of(answer_to("POST", "/anthropic/v1/messages/batches"))
    content = msgspec.json.decode(rejection.body)
    assert (content["type"], content["error"]["type"]) == ("error", "not_found_error")
    other = rejection_of(answer_to("POST", "/generate?x=/v1/messages"))
    assert "code" in msgspec.json.decode(other.body)["error"]


@pytest.mark.parametrize(
    ("allowed", "path", "passes"),
    [
        ("/v1/vector_stores", "/v1/vector_stores", True),
        ("/v1/vector_stores", "/v1/vector_stores/?x=1", True),
        ("/v1/vector_stores", "/v1/vector_stores/v/files", False),
        ("/v1/vector_stores", "/x/v1/vector_stores", False),
        ("/v1/vector_stores*", "/V1/Vector_Stores/v/files", True),
        ("/v1/batches*", "/v1/batches/b/cancel", True),
        ("/v1/vector_stores*", "/v1/vector_stores/../generate", False),
        ("/", "/", True),
        ("/*", "/generate", True),
    ],
)
def test_a_list_of_paths_lets_more_pass(allowed, path, passes):
    assert (refusal(path, (allowed,)) is None) is passes


def test_a_path_on_the_list_that_is_an_endpoint_is_metered_all_the_same():
    rejection = rejection_of(answer_to("POST", "/v1/chat/completions", ["/*"]))
    assert rejection.reason == "malformed"


@pytest.mark.parametrize(
    ("path", "allowed", "status"),
    [
        ("/v1/responses", (), 426),
        ("/v1/chat/completions", ("/*",), 426),
        ("/v1/realtime?model=m", (), 426),
        ("/v1/realtime?model=m", ("/v1/realtime",), None),
        ("/v1/models/m:predict", (), 426),
    ],
)
def test_a_websocket_is_refused_where_something_may_be_generated(path, allowed, status):
    effects = answer_to("GET", path, allowed, upgrade="WebSocket")
    if status is None:
        assert effects == [HeadReply(), Finish()]
    else:
        assert (rejection_of(effects).status, rejection_of(effects).reason) == (status, "websocket")
