"""Paths: every spelling of a metered path is metered, and nothing else is."""

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.endpoints import (
    MAX_MODEL_CHARS,
    MAX_PATH_CHARS,
    Endpoint,
    PathProblem,
    Shape,
    Target,
    classify,
)
from tests.core.samples import FUZZ

CHAT = Endpoint.CHAT_COMPLETIONS
SEGMENTS = st.lists(
    st.sampled_from(["v1", "v2", "models", "m", "m:predict", "infer", "chat", "completions", "embeddings", ".."]),
    max_size=6,
)


def kind(path: str, method: str = "POST") -> Endpoint | None:
    target = classify(method, path)
    return None if target is None else target.endpoint


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions/batch", CHAT),
        ("/invocations", CHAT),
        ("/v1/completions", Endpoint.COMPLETIONS),
        ("/v1/fim/completions", Endpoint.COMPLETIONS),
        ("/completion", Endpoint.COMPLETIONS),
        ("/infill", Endpoint.COMPLETIONS),
        ("/v1/embeddings", Endpoint.EMBEDDINGS),
        ("/v2/embed", Endpoint.EMBEDDINGS),
        ("/embedding", Endpoint.EMBEDDINGS),
        ("/encode", Endpoint.EMBEDDINGS),
        ("/pooling", Endpoint.EMBEDDINGS),
        ("/classify", Endpoint.EMBEDDINGS),
        ("/v1/classify", Endpoint.EMBEDDINGS),
        ("/v1/responses", Endpoint.RESPONSES),
        ("/v1/responses/compact", Endpoint.RESPONSES),
        ("/v1/messages", Endpoint.MESSAGES),
        ("/anthropic/v1/messages", Endpoint.MESSAGES),
        ("/threads/v1/messages", Endpoint.MESSAGES),
        ("/threads/x/v1/messages", Endpoint.MESSAGES),
        ("/rerank", Endpoint.RERANK),
        ("/v1/rerank", Endpoint.RERANK),
        ("/v2/rerank", Endpoint.RERANK),
        ("/v1/reranking", Endpoint.RERANK),
        ("/score", Endpoint.SCORE),
        ("/v1/score", Endpoint.SCORE),
        ("/generative_scoring", Endpoint.SCORE),
        ("/v1/audio/transcriptions", Endpoint.TRANSCRIPTIONS),
        ("/v1/audio/translations", Endpoint.TRANSCRIPTIONS),
        ("/v1/audio/speech", Endpoint.SPEECH),
        ("/v1/images/generations", Endpoint.IMAGES),
        ("/v1/images/edits", Endpoint.IMAGES),
        ("/v1/images/variations", Endpoint.IMAGES),
        ("/v1/quota", Endpoint.QUOTA),
        ("/v1/models/m:predict", Endpoint.PREDICT),
        ("/v1/models/m:explain", Endpoint.PREDICT),
        ("/v2/models/m/infer", Endpoint.INFER),
        ("/v2/models/m/generate", Endpoint.INFER),
        ("/v2/models/m/generate_stream", Endpoint.INFER),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/openai", "/serving/models/x"])
def test_each_kind_is_known_by_the_end_of_its_path(path, endpoint, prefix):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert kind(prefix + path, method) is endpoint
        assert kind(prefix + path.upper().replace("/M", "/m") + "/", method) is endpoint
        assert kind(prefix + path + "?x=/v1/models", method) is endpoint


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/v1/chat/completions?stream=true",
        "/v1/chat/completions?x=/v1/models",
        "/v1/chat/completions#x",
        "/v1/chat/completions/?",
        "//v1//chat///completions",
        "/v1/./chat/./completions/.",
        "/v1/x/../chat/completions",
        "/v1/chat/x/../completions/y/..",
        "/../../v1/chat/completions",
        "/V1/Chat/COMPLETIONS",
        "/v1/chat;a=b/completions;jsessionid=1",
        "/v1/chat/x/..;a=b/completions",
        "/v1\\chat\\completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat%2fcompletions",
        "/v1/embeddings%2f..%2fchat%2fcompletions",
        "/v1/chat%5ccompletions",
        "/v1/%63hat/completion%73",
        "/v1/chat/completions%3Bx",
        "/v1/chat/completions%20",
        "/v1/chat/completions%3Fx",
        "/v1/chat/completions%23x",
        "/v1/chat/completions%253fx/y",
        "/v1/x%3f/chat/completions",
        "/openai/v1/chat/completions",
        "/chat/completions",
        "chat/completions",
        "http://host/v1/chat/completions",
    ],
)
def test_a_spelling_of_the_chat_path_is_metered(path):
    assert classify("POST", path) == Target(CHAT)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/m/infer%3f/v1/chat/completions",
        "/v2/models/m/infer%23/v1/chat/completions",
        "/v2/models/m/infer%253f/v1/chat/completions",
        "/v1/chat/completions%3f/v2/models/m/infer",
        "/v1/chat/completions%23/../v2/models/m/infer",
        "/v1/models/m:predict%3F/v1/messages",
        "/v1/models/cheap:predict%3f/v1/models/dear:predict",
        "/v2/models/cheap/infer%3f/v2/models/dear/infer",
        "/v1/embeddings%3fx/chat/completions",
        "/v1/quota%3f/chat/completions",
        "/v1/%63hat/completions",
        "/v1/%25%36%33hat/completions",
        "/v1/chat/%2e/completions",
        "/v1/chat/x/%2e%2e/completions",
        "/v1/chat/x/%252e%252e/completions",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_path_that_servers_read_as_different_endpoints_is_ambiguous(method, path):
    assert classify(method, path) is PathProblem.AMBIGUOUS


@pytest.mark.parametrize("name", ["org%2Fm", "a%20b", "50%25", "50%2525", "%E2%9C%93", "m%3a1"])
def test_an_escape_in_the_name_of_a_model_makes_no_path_ambiguous(name):
    decoded = unquote(unquote(name))
    assert classify("POST", f"/v2/models/{name}/infer") == Target(Endpoint.INFER, decoded)
    assert classify("POST", f"/v1/models/{name}:predict") == Target(Endpoint.PREDICT, decoded)


@FUZZ
@given(SEGMENTS, st.sampled_from(["%3f", "%23", "%253F", "%2523", "?", "#"]), SEGMENTS)
def test_whatever_stands_after_an_escaped_end_the_path_is_never_metered_as_less(before, end, after):
    """What a server reads that takes all of it, or that stops at the end, is metered as that, or refused."""
    first, rest = "/" + "/".join(before), "/".join(after)
    found = classify("POST", f"{first}{end}/{rest}")
    read = [first] if end in "?#" else [first, f"{first}_/{rest}"]
    readings = {target.endpoint for path in read if (target := classify("POST", path)) is not None}
    if found is not PathProblem.AMBIGUOUS:
        assert ({found.endpoint} if found else set()) == readings


def test_a_path_longer_than_any_endpoint_is_too_long():
    assert classify("POST", "/" + "a" * (MAX_PATH_CHARS - 1)) is None
    assert classify("POST", "/" + "a" * MAX_PATH_CHARS) is PathProblem.TOO_LONG
    assert classify("POST", "/v1/chat/completions?" + "a" * 60_000) == Target(CHAT)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/v1",
        "/v1/models",
        "/v1/models/m",
        "/v2/models/m",
        "/v2/models/m/ready",
        "/health",
        "/v1/chat",
        "/v1/chat/completions/abc",
        "/v1/chat/completions/x/y",
        "/v1/chat/completions/..",
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/chatcompletions",
        "/v1/chat-completions",
        "/v1/chat/completionsx",
        "/v1/x?/chat/completions",
        "/v1/x?path=/v1/chat/completions",
        "/v1/x#/v1/chat/completions",
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/v1/threads/t/messages",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/responses/resp_1/input_items",
        "/v1/completions/chat",
        "/v1/chat/%63ompletion%2Fx",
        "/v1/audio",
        "/v1/transcriptions",
        "/v1/images",
        "/v1/edits",
        "/quota",
        "/tokenize",
        "/detokenize",
        "/v1/tokenize",
        "/metrics",
        "/v1/models/m:load",
        "/v1/files/m:predict",
        "/v2/repository/models/m/load",
        "/v1/models/m/infer",
        "/models/m/infer",
        "/v2/infer",
        "/infer",
        "%",
        "/%zz/%",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_another_path_is_not_metered(path, method):
    assert classify(method, path) is None


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/models/iris:predict", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/Iris-V2.1:Predict/", Target(Endpoint.PREDICT, "Iris-V2.1")),
        ("/v1/models/iris%3Apredict", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/iris%253apredict?x", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/iris:predict;x", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/iris;x:predict", Target(Endpoint.PREDICT, "iris;x")),
        ("/v1/models/a:b:predict", Target(Endpoint.PREDICT, "a:b")),
        ("/v1/models/org%2Fname:predict", Target(Endpoint.PREDICT, "org/name")),
        ("/v1/models/iris/versions/3:predict", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/iris/labels/new:classify", Target(Endpoint.PREDICT, "iris")),
        ("/v1/models/versions/3:regress", Target(Endpoint.PREDICT, "versions/3")),
        ("/seldon/models/v1/models/iris:explain", Target(Endpoint.PREDICT, "iris")),
        ("/v2/models/iris/infer", Target(Endpoint.INFER, "iris")),
        ("/v2/models/iris/versions/1/infer", Target(Endpoint.INFER, "iris")),
        ("/v2/models/iris/versions/1/generate_stream", Target(Endpoint.INFER, "iris")),
        ("/v2/models/Iris;x/infer", Target(Endpoint.INFER, "Iris")),
        ("/v2//models/./iris/INFER/", Target(Endpoint.INFER, "iris")),
        ("/v2/models/org%2Fname/infer", Target(Endpoint.INFER, "org/name")),
        ("/v2/models/w%C3%B6rter/infer", Target(Endpoint.INFER, "wörter")),
        ("/x/v2/models/a/b/v2/models/iris/infer", Target(Endpoint.INFER, "iris")),
        ("/v1/models/:predict", Target(Endpoint.PREDICT, "")),
        ("/v2/models//infer", Target(Endpoint.INFER, "")),
    ],
)
def test_the_path_names_the_model_of_kserve(path, target):
    assert classify("POST", path) == target


IMAGES, EMBEDDINGS = Endpoint.IMAGES, Endpoint.EMBEDDINGS
ANY, STORED = Shape.ANY, Shape.STORED_PROMPT


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/openai/deployments/gpt-4o/chat/completions?api-version=1", Target(CHAT, "gpt-4o", decides=True)),
        ("/x/OpenAI/Deployments/GPT/chat/completions", Target(CHAT, "GPT", decides=True)),
        ("/openai/deployments/a%2Fb/embeddings", Target(EMBEDDINGS, "a/b", decides=True)),
        ("/openai/deployments/chat/chat/completions", Target(CHAT, "chat", decides=True)),
        ("/openai/deployments/models/images/generations", Target(IMAGES, "models", decides=True)),
        ("/openai/deployments/w/audio/translations", Target(Endpoint.TRANSCRIPTIONS, "w", decides=True)),
        ("/deployments/gpt/v1/chat/completions", Target(CHAT, "gpt")),
        ("/v1/engines/davinci/completions", Target(Endpoint.COMPLETIONS, "davinci")),
        ("/models/org/name/v1/chat/completions", Target(CHAT, "org/name")),
        ("/models/org%2Fname/v1/chat/completions/batch", Target(CHAT, "org/name")),
        ("/endpoints/llama/invocations", Target(CHAT, "llama", shape=ANY)),
        ("/serving-endpoints/llama/invocations", Target(CHAT, "llama", shape=ANY)),
        ("/invocations", Target(CHAT, shape=ANY)),
        ("/v1/prompts/pp-x/completions", Target(CHAT, shape=STORED)),
        ("/openai/deployments/v1/chat/completions", Target(CHAT, "v1", decides=True)),
        ("/openai/deployments/chat/completions", Target(CHAT)),
        ("/models/v1/chat/completions", Target(CHAT)),
        ("/deployments/chat/completions", Target(CHAT)),
        ("/x/prompts/completions", Target(Endpoint.COMPLETIONS)),
    ],
)
def test_a_path_names_the_model_of_other_apis(path, target):
    assert classify("POST", path) == target


@pytest.mark.parametrize(
    "path", ["/openai/deployments/{}/embeddings", "/engines/{}/embeddings", "/v1/models/{}:predict"]
)
def test_a_name_in_a_path_is_never_longer_than_what_tells_that_it_is_too_long(path):
    assert classify("POST", path.format("m" * 999)).model == "m" * (MAX_MODEL_CHARS + 1)


def test_a_name_in_a_path_is_cut_where_it_is_too_long_already():
    assert classify("POST", f"/v1/models/{'m' * 999}:predict").model == "m" * (MAX_MODEL_CHARS + 1)
    assert classify("POST", f"/v2/models/{'m' * 999}/infer").model == "m" * (MAX_MODEL_CHARS + 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_to_read_about_a_model_that_is_named_like_an_endpoint_is_free(method):
    for path in ("/v1/models/embed", "/v1/models/org/rerank", "/v2/models/infer", "/v1/models/:predict"):
        assert classify(method, path) is None
        assert classify("POST", path) is not None


def test_the_quota_is_read_under_any_prefix():
    assert kind("/v1/x/v1/quota", "GET") is Endpoint.QUOTA


def test_a_get_on_a_metered_path_is_told_from_one_on_another_path():
    # A WebSocket begins as one.
    for path in (
        "/v1/responses",
        "/v1/chat/completions",
        "/models/m/v1/chat/completions",
        "/v2/models/m/infer",
        "/openai/completions",
    ):
        assert kind(path, "GET") is not None


@FUZZ
@given(st.text(max_size=5), st.text() | st.text("/.%;:?#\\chatompleinsdv12fr5F", max_size=40))
def test_any_path_has_a_kind_or_none(method, path):
    target = classify(method, path)
    if isinstance(target, Target):
        assert isinstance(target.endpoint, Endpoint)
        assert target.model is not None or target.endpoint not in (Endpoint.PREDICT, Endpoint.INFER)
        assert len(target.model or "") <= MAX_MODEL_CHARS + 1


ENDS = {
    ("chat", "completions"): CHAT,
    ("v1", "embeddings"): Endpoint.EMBEDDINGS,
    ("audio", "speech"): Endpoint.SPEECH,
    ("x", "rerank"): Endpoint.RERANK,
    ("models", "m:predict"): Endpoint.PREDICT,
    ("v2", "models", "m", "infer"): Endpoint.INFER,
}


@FUZZ
@given(
    st.sampled_from(list(ENDS)),
    st.lists(st.sampled_from(["openai", "v1", "a b", "世", "..;x"]), max_size=3),
    st.lists(
        st.tuples(st.sampled_from(["/", "//", "/./", "\\", "/x/../"]), st.integers(0, 2)), min_size=4, max_size=4
    ),
    st.booleans(),
)
def test_prefixes_separators_and_escapes_can_be_mixed(end, prefix, steps, upper):
    path = "/" + "/".join(prefix)
    for segment, (separator, rounds) in zip(end, steps, strict=False):
        spelled = segment.upper() if upper else segment
        for _ in range(rounds):
            spelled = "".join(f"%{byte:02x}" for byte in spelled.encode()) if len(spelled) < 50 else quote(spelled)
        path += separator + spelled
    assert classify("POST", path) is PathProblem.AMBIGUOUS or kind(path) is ENDS[end]
