"""Paths: every spelling of a metered path is metered, and nothing else is."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoints import Endpoint, classify

from .samples import FUZZ

CHAT = Endpoint.CHAT_COMPLETIONS


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
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
        "/v1/chat%5ccompletions",
        "/v1/%63hat/completion%73",
        "/v1/%2563hat/completions",
        "/v1/%25%36%33hat/completions",
        "/v1/chat/%2e/completions",
        "/v1/chat/x/%2e%2e/completions",
        "/v1/chat/completions%3Bx",
        "/v1/chat/completions%20",
        "/openai/v1/chat/completions",
        "/openai/deployments/gpt/chat/completions?api-version=1",
        "/chat/completions",
        "chat/completions",
        "http://host/v1/chat/completions",
    ],
)
def test_a_spelling_of_the_chat_path_is_metered(path):
    assert classify(path) is CHAT


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/v1/completions",
        "/v1/completions/",
        "/completions",
        "/v1/models",
        "/health",
        "/v1/chat",
        "/v1/chat/completions/abc",
        "/v1/chat/completions/x/y",
        "/v1/chat/completions/..",
        "/v1/chatcompletions",
        "/v1/chat-completions",
        "/v1/xchat/completions",
        "/v1/chat/completionsx",
        "/v1/chat/x/completions",
        "/v1/x?/chat/completions",
        "/v1/x?path=/v1/chat/completions",
        "/v1/x#/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
        "/v1/completions/chat",
        "/v1/chat/%63ompletion",
        "%",
        "/%zz/%",
    ],
)
def test_another_path_is_not_metered(path):
    assert classify(path) is None


@FUZZ
@given(st.text() | st.text("/.%;?#\\chatompleins2e5fF", max_size=40))
def test_any_path_has_a_kind_or_none(path):
    assert classify(path) in (CHAT, None)


@FUZZ
@given(
    st.lists(st.sampled_from(["openai", "v1", "a b", "世", "..;x"]), max_size=3),
    st.lists(
        st.tuples(st.sampled_from(["/", "//", "/./", "\\", "/x/../"]), st.integers(0, 2)), min_size=2, max_size=2
    ),
    st.booleans(),
)
def test_prefixes_separators_and_escapes_can_be_mixed(prefix, steps, upper):
    path = "/" + "/".join(prefix)
    for segment, (separator, rounds) in zip(("chat", "completions"), steps, strict=True):
        spelled = segment.upper() if upper else segment
        for _ in range(rounds):
            spelled = "".join(f"%{byte:02x}" for byte in spelled.encode()) if len(spelled) < 50 else quote(spelled)
        path += separator + spelled
    assert classify(path) is CHAT
