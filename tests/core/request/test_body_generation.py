"""What generates text: prompts and choices are counted, bounds are read, and what can't be bounded is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.body import (
    MAX_CHOICES,
    MAX_TOKENS,
    UNNAMED,
    Malformed,
    RequestFacts,
    prompt_texts,
    read_request,
)
from extproc.core.request.endpoints import Endpoint, Shape, Target
from tests.core.samples import FEWER, VALUES, mutated

from .body_samples import LEAST, dumps, facts, problem, read, text_of

CHAT, COMPLETIONS = Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS
RESPONSES, MESSAGES = Endpoint.RESPONSES, Endpoint.MESSAGES
KINDS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
TOOLED = (CHAT, RESPONSES, MESSAGES)
# What the server defines, describes in the prompt and, as a rule, runs.
TOOLS = (
    {"type": "openrouter:web_search"},
    {"type": "web_search"},
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "memory_20250818", "name": "memory"},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "computer_20250124", "name": "computer"},
    {"type": "browser_search"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "local_shell"},
    {"type": "mcp", "server_url": "https://example.com"},
    {"type": "retrieval", "retrieval": {}},
    {"type": "builtin_function", "function": {"name": "$web_search"}},
    {"google_search": {}},
    {},
)
HIDDEN = (
    ("web_search_options", {}),
    ("web_search", {"enable": True}),
    ("search_parameters", {"mode": "auto"}),
    ("enable_search", True),
    ("search_settings", {"country": "de"}),
    ("search_domain_filter", ["example.com"]),
    ("plugins", [{"id": "web"}]),
    ("citations", {"enabled": True}),
    ("citation_options", "enabled"),
    ("data_sources", [{"type": "azure_search"}]),
    ("mcp_servers", [{"url": "https://example.com"}]),
    ("preset", "p"),
    ("prompt_id", "p"),
    ("cached_content", "c"),
    ("files", ["f"]),
    ("chat_template", "t"),
    ("web_search", 5),
)
DATA_URL = "data:image/png;base64," + "A+/=" * 1000


def user(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("endpoint", KINDS)
def test_the_least_that_a_body_needs_is_read(endpoint):
    read = facts(endpoint)
    assert (read.model, read.stream, read.choices, read.messages) == ("m", False, 1, 1)
    assert (read.boundable, read.generates, read.counts_tokens) == (True, True, True)
    assert (read.unbounded_prompt, read.media_parts, read.prompt_tokens) == (False, 0, None)
    assert read.output_bound == LEAST[endpoint].get("max_tokens")


@pytest.mark.parametrize("endpoint", KINDS)
@pytest.mark.parametrize("model", [" m", 5, ["m"], "m" * 257])
def test_no_kind_takes_a_model_that_is_no_name(endpoint, model):
    assert problem(endpoint, model=model).param == "model"


@pytest.mark.parametrize("endpoint", KINDS)
def test_each_kind_needs_its_prompt(endpoint):
    if endpoint in (CHAT, MESSAGES):
        assert problem(endpoint, messages=...).param == "messages"
        assert problem(endpoint, messages=None).param == "messages"


@pytest.mark.parametrize("endpoint", KINDS)
def test_a_stream_is_told_by_true_and_by_nothing_else(endpoint):
    assert facts(endpoint, stream=True).stream is True
    assert facts(endpoint, stream=None).stream is False
    for value in ("true", 1, [], {}):
        assert problem(endpoint, stream=value).param == "stream"


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        (COMPLETIONS, "max_tokens"),
        (COMPLETIONS, "n_predict"),
        (RESPONSES, "max_output_tokens"),
        (MESSAGES, "max_tokens"),
    ],
)
def test_the_field_of_each_api_bounds_the_output(endpoint, field):
    assert facts(endpoint, **{field: 7}).output_bound == 7
    assert facts(endpoint, **{field: MAX_TOKENS}).output_bound == MAX_TOKENS
    assert facts(endpoint, **{field: None}).output_bound is None
    assert facts(endpoint, **{field: -1}).output_bound is None
    for value in (MAX_TOKENS + 1, 2**64, "5", 5.0, True, [5]):
        assert problem(endpoint, **{field: value}).param == field


@pytest.mark.parametrize(("field", "common"), [("max_tokens", True), ("n_predict", False)])
def test_a_completions_bound_that_most_servers_ignore_is_marked(field, common):
    assert facts(COMPLETIONS, **{field: 7}).bound_is_common is common
    assert facts(COMPLETIONS, **{field: None}).bound_is_common is True


def test_a_message_needs_no_bound_that_we_would_ask_for():
    assert facts(MESSAGES, max_tokens=...).output_bound is None


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        (COMPLETIONS, "prompt"),
        (COMPLETIONS, "best_of"),
        (COMPLETIONS, "stream_options"),
        (RESPONSES, "input"),
        (RESPONSES, "background"),
        (RESPONSES, "previous_response_id"),
        (RESPONSES, "max_output_tokens"),
        (MESSAGES, "system"),
        (MESSAGES, "max_tokens"),
        (MESSAGES, "thinking"),
    ],
)
def test_no_kind_takes_a_field_twice(endpoint, field):
    once = text_of(endpoint, **{field: None})
    twice = once[:-1] + f',"{field}":1}}'.encode()
    assert read(endpoint, twice) == Malformed(f"'{field}' is given more than once.", field, "duplicate_field")


@pytest.mark.parametrize("endpoint", KINDS)
def test_unknown_fields_count_as_prompt_where_they_are_large(endpoint):
    plain = facts(endpoint).prompt_bytes
    assert facts(endpoint, x="y" * 500).prompt_bytes == plain
    assert plain + 8_000 < facts(endpoint, x="y" * 10_000).prompt_bytes < plain + 10_100


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        (CHAT, "documents"),
        (CHAT, "chat_template_kwargs"),
        (COMPLETIONS, "suffix"),
        (COMPLETIONS, "response_format"),
        (RESPONSES, "instructions"),
        (RESPONSES, "text"),
        (RESPONSES, "previous_response"),
        (MESSAGES, "system"),
        (MESSAGES, "chat_template_kwargs"),
    ],
)
def test_all_that_becomes_prompt_is_counted_and_kept_for_a_tokenizer(endpoint, field):
    value = {"text": "long" * 30}
    read = facts(endpoint, **{field: value})
    assert read.prompt_bytes - facts(endpoint).prompt_bytes == len(dumps(value))
    assert json.loads(read.prompt)[field] == value
    assert field not in json.loads(facts(endpoint, **{field: None}).prompt)


@pytest.mark.parametrize("endpoint", KINDS)
def test_a_form_is_no_body_for_json(endpoint):
    refused = read(endpoint, text_of(endpoint), "Multipart/Form-Data; boundary=x")
    assert refused == Malformed(
        "'content-type' must be application/json here.", "content-type", "invalid_content_type"
    )


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart"])
def test_json_is_read_whatever_else_its_type_says(content_type):
    assert isinstance(read(CHAT, text_of(CHAT), content_type), RequestFacts)


# ---------------------------------------------------------------- choices and prompts


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [
        ("hi", 1, None),
        ("", 1, None),
        (["hi"], 1, None),
        (["a", "b", "c"], 3, None),
        ([1, 2, 3], 1, 3),
        ([0], 1, 1),
        ([[1, 2], [3]], 2, 3),
        ([[], [3]], 2, 1),
        ([], 1, 0),
    ],
)
def test_each_prompt_of_a_batch_is_a_choice_and_token_ids_are_counted(prompt, prompts, tokens):
    read = facts(COMPLETIONS, prompt=prompt, n=3)
    assert (read.choices, read.messages, read.prompt_tokens) == (3 * prompts, prompts, tokens)


@pytest.mark.parametrize(
    "prompt",
    [5, True, [1.5], [-1], [[[1]]], [None], [[None]], ["a", None], ["a", 1.5], [[{}]]],
)
def test_a_prompt_that_no_server_takes_is_refused(prompt):
    refused = problem(COMPLETIONS, prompt=prompt)
    assert refused.param == "prompt"
    assert "token ids" in refused.message


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ({"prompt_string": "hi"}, 1),
        ([{"prompt_string": "hi"}] * 2, 2),
        (["a", {"prompt_string": "hi"}, [1, 2], ["b", 3]], 4),
        ([12, 34, "a", 56], 1),
        (["a", 12], 1),
        ([["a", 12]], 1),
        ([["a"]], 1),
    ],
)
def test_llama_cpp_mixes_texts_token_ids_and_objects(prompt, prompts):
    read = facts(COMPLETIONS, prompt=prompt)
    assert (read.choices, read.prompt_tokens) == (prompts, None)


def test_a_mix_of_more_prompts_than_anybody_has_is_refused():
    assert facts(COMPLETIONS, prompt=["a", *[[1]] * (MAX_CHOICES - 1)]).choices == MAX_CHOICES
    assert problem(COMPLETIONS, prompt=["a", *[[1]] * (MAX_CHOICES + 1)]).param == "prompt"


@pytest.mark.parametrize("prompt", [..., None])
def test_a_completion_may_begin_with_nothing(prompt):
    read = facts(COMPLETIONS, prompt=prompt, n=2)
    assert (read.choices, read.messages, read.prompt_bytes, read.prompt_tokens) == (2, 1, 0, None)


def test_what_is_filled_in_has_a_text_before_and_after_and_in_other_files():
    fields = {
        "input_prefix": "a" * 50,
        "input_suffix": "b" * 50,
        "input_extra": [{"filename": "f", "text": "c" * 50}],
    }
    read = facts(COMPLETIONS, prompt=[1, 2], **fields)
    assert (read.prompt_tokens, read.prompt_bytes > 150) == (None, True)
    texts = prompt_texts(Target(COMPLETIONS), read.prompt)
    assert texts is not None
    assert {"a" * 50, "b" * 50, "c" * 50} <= set(texts)


def test_with_a_suffix_token_ids_are_not_all_there_is():
    assert facts(COMPLETIONS, prompt=[1, 2], suffix="x").prompt_tokens is None
    assert facts(COMPLETIONS, prompt=[1, 2], suffix=None).prompt_tokens == 2


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("counts", "choices"),
    [
        ({"n": 3}, 3),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": 5, "best_of": 2}, 5),
        ({"n": 1, "n_cmpl": 4}, 4),
        ({"n": None, "best_of": None}, 1),
    ],
)
def test_the_largest_of_all_numbers_of_choices_is_held(endpoint, counts, choices):
    assert facts(endpoint, **counts).choices == choices


@pytest.mark.parametrize("field", ["n", "best_of", "n_cmpl"])
@pytest.mark.parametrize("value", [0, -1, MAX_CHOICES + 1, "2", 2.0, True])
def test_a_number_of_choices_that_is_none_is_refused(field, value):
    assert problem(COMPLETIONS, **{field: value}).param == field


def test_prompts_times_choices_are_bounded():
    assert facts(COMPLETIONS, prompt=["a"] * 128, n=128).choices == MAX_CHOICES
    assert problem(COMPLETIONS, prompt=["a"] * 129, n=128).param == "n"
    assert problem(COMPLETIONS, prompt=["a"] * (MAX_CHOICES + 1)).param == "prompt"
    assert problem(COMPLETIONS, prompt=[[1]] * (MAX_CHOICES + 1)).param == "prompt"
    assert facts(COMPLETIONS, prompt=[[1]] * MAX_CHOICES).prompt_tokens == MAX_CHOICES


def test_a_completion_of_no_tokens_is_one_token():
    assert facts(COMPLETIONS, max_tokens=0, echo=True).output_bound == 1


def test_a_message_of_no_tokens_fills_the_cache():
    assert facts(MESSAGES, max_tokens=0).output_bound == 1


def test_a_completion_without_end_is_not_one_of_the_usual_length():
    assert facts(COMPLETIONS).usual_bound == 16
    assert facts(COMPLETIONS, max_tokens=9).usual_bound == 16
    assert facts(COMPLETIONS, max_tokens=-1).usual_bound is None
    assert facts(COMPLETIONS, n_predict=-1).usual_bound is None


@pytest.mark.parametrize(
    ("fields", "prompts"),
    [
        ({"prompt": ..., "prompt_embeds": "QUJD"}, 1),
        ({"prompt": None, "prompt_embeds": ["QUJD", "QUJD"]}, 2),
        ({"prompt": ["a", "b"], "prompt_embeds": ["QUJD"]}, 3),
        ({"prompt": [1, 2], "prompt_embeds": "QUJD"}, 2),
    ],
)
def test_embeddings_may_stand_for_a_prompt_and_are_of_any_size(fields, prompts):
    read = facts(COMPLETIONS, **fields, n=2)
    assert (read.choices, read.unbounded_prompt, read.prompt_tokens) == (2 * prompts, True, None)


def test_a_batch_of_chats_is_as_many_choices():
    one = [{"role": "user", "content": "a"}]
    read = facts(CHAT, messages=[one, one * 3, []], n=2)
    assert (read.choices, read.messages) == (6, 4)
    spaced = text_of(CHAT).replace(b'"messages":[', b'"messages":[ \n[').replace(b"}]", b"}],[]]")
    assert read_facts(CHAT, spaced).choices == 2


def read_facts(endpoint, text):
    found = read(endpoint, text)
    assert isinstance(found, RequestFacts), found
    return found


@pytest.mark.parametrize(
    "messages", [[[5]], [[], {}], [[[]]], [[]] * (MAX_CHOICES + 1), [[{}] * MAX_CHOICES, [{}]]]
)
def test_a_batch_that_is_none_or_too_large_is_refused(messages):
    assert problem(CHAT, messages=messages).param == "messages"


def test_more_messages_than_anybody_has_are_refused():
    assert facts(CHAT, messages=[{}] * MAX_CHOICES).messages == MAX_CHOICES
    assert problem(CHAT, messages=[{}] * (MAX_CHOICES + 1)).param == "messages"


def test_a_chat_has_messages_or_a_prompt_but_not_both():
    # SageMaker's route would choose by itself.
    assert problem(CHAT, prompt=["a"] * 100).param == "prompt"
    assert facts(CHAT, prompt=None).choices == 1


# ---------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ("hi", 1),
        ([], 0),
        ([{"role": "user", "content": "a"}, {"type": "function_call_output", "output": "x"}], 2),
        (None, 0),
        (..., 0),
    ],
)
def test_the_input_of_a_response_is_a_text_or_items(value, messages):
    assert facts(RESPONSES, input=value).messages == messages
    assert facts(RESPONSES, input=value, instructions="be kind").messages == messages + 1


@pytest.mark.parametrize("value", [5, {}, ["hi"], [[]], [{"type": 5}], [{"role": "user"}] * (MAX_CHOICES + 1)])
def test_an_input_that_is_neither_is_refused(value):
    assert problem(RESPONSES, input=value).param == "input"


def test_what_runs_in_the_background_is_refused():
    refused = problem(RESPONSES, background=True)
    assert refused.param == "background"
    assert "can't be metered" in refused.message
    assert facts(RESPONSES, background=False).choices == 1
    assert problem(RESPONSES, background="true").param == "background"


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES])
def test_where_usage_is_in_every_stream_there_is_nothing_to_hide(endpoint):
    assert facts(endpoint, stream=True).wants_usage is True
    assert facts(endpoint, stream=True, stream_options={"include_usage": False}).wants_usage is True


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_in_a_stream_of_chunks_usage_is_hidden_from_those_who_did_not_ask(endpoint):
    assert facts(endpoint, stream=True).wants_usage is False
    assert facts(endpoint, stream=True, stream_options={"include_usage": True}).wants_usage is True


# ---------------------------------------------------------------- what the body does not show


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"chat_template": "{% for i in range(9999) %}x{% endfor %}"}),
        *((kind, {"chat_template_kwargs": {"chat_template": "{{ x }}"}}) for kind in (CHAT, RESPONSES, MESSAGES)),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False, "chat_template": ["t"]}}),
        (CHAT, {"mm_processor_kwargs": {"max_pixels": 10**9}}),
        (CHAT, {"session_params": {"id": "s"}}),
        (CHAT, {"web_search_options": {}}),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        (RESPONSES, {"input": [{"id": "msg_1"}]}),
        (RESPONSES, {"tools": [{"type": "function"}, {"type": "web_search"}]}),
        (RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://example.com"}]}),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (MESSAGES, {"mcp_servers": [{"url": "https://example.com"}]}),
        (MESSAGES, {"container": "c"}),
        (MESSAGES, {"context_management": {"edits": []}}),
        (RESPONSES, {"context_management": [{"type": "compaction"}]}),
        *(
            (endpoint, {"tools": [{"type": "function", "name": "f"}, tool]})
            for endpoint in TOOLED
            for tool in TOOLS
        ),
        *((endpoint, {name: value}) for endpoint in KINDS for name, value in HIDDEN),
    ],
)
def test_a_prompt_that_the_server_adds_to_can_not_be_bounded(endpoint, fields):
    assert facts(endpoint, **fields).unbounded_prompt is True


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"chat_template": None, "web_search_options": None}),
        *((endpoint, {"chat_template_kwargs": {"enable_thinking": False}}) for endpoint in KINDS),
        (CHAT, {"chat_template_kwargs": {"chat_template": None}}),
        (CHAT, {"chat_template_kwargs": None}),
        (CHAT, {"chat_template_kwargs": "chat_template"}),
        (CHAT, {"messages": [{"role": "assistant", "audio": None, "content": '"file_id"'}]}),
        (RESPONSES, {"previous_response_id": None, "conversation": None, "prompt": None, "tools": None}),
        (RESPONSES, {"tools": [{"type": "function"}, {"type": "custom"}], "input": [{"type": "message"}]}),
        (MESSAGES, {"tools": [{"name": "f"}, {"name": "g", "type": None}, {"name": "h", "type": "custom"}]}),
        (CHAT, {"tools": [{"type": "function"}, {"function": {"name": "f"}}, {"type": "custom"}]}),
        *((endpoint, {"tools": None, "enable_search": False, "plugins": []}) for endpoint in KINDS),
        *(
            (endpoint, {"search_parameters": {"mode": "off"}, "web_search": {"enable": False}})
            for endpoint in KINDS
        ),
        *((endpoint, {"citations": {"enabled": False}, "citation_options": "disabled"}) for endpoint in KINDS),
        (CHAT, {"model": "sonar-online"}),
        (CHAT, {"model": "research-search"}),
        (MESSAGES, {"tools": [], "mcp_servers": None}),
    ],
)
def test_what_the_client_runs_and_sends_itself_can_be(endpoint, fields):
    assert facts(endpoint, **fields).unbounded_prompt is False


@pytest.mark.parametrize("endpoint", TOOLED)
@pytest.mark.parametrize("tools", [5, "x", {}, [5], [{"type": 5}]])
def test_tools_that_are_none_are_refused(endpoint, tools):
    assert problem(endpoint, tools=tools).param == "tools"


# ---------------------------------------------------------------- other shapes


def shaped(shape: Shape, body: object) -> RequestFacts:
    found = read_request(Target(CHAT, shape=shape), dumps(body), "")
    assert isinstance(found, RequestFacts), found
    return found


def test_a_stored_prompt_is_a_chat_that_nothing_bounds():
    read = shaped(Shape.STORED_PROMPT, {"variables": {"city": "x"}, "max_tokens": 7, "stream": True})
    assert (read.output_bound, read.stream, read.wants_usage, read.messages) == (7, True, False, 1)
    assert read.unbounded_prompt is True
    more = {"messages": [{"role": "user", "content": "hi"}] * 3}
    assert shaped(Shape.STORED_PROMPT, more).messages == 3


def test_an_invocation_is_a_chat_a_completion_or_a_text():
    assert shaped(Shape.ANY, LEAST[CHAT] | {"max_tokens": 7}) == facts(CHAT, max_tokens=7)
    assert shaped(Shape.ANY, LEAST[COMPLETIONS]) == facts(COMPLETIONS)
    assert shaped(Shape.ANY, {"model": "m", "prompt_embeds": "x"}).unbounded_prompt is True
    picture = shaped(Shape.ANY, {"inputs": [DATA_URL], "images": [DATA_URL]})
    assert (picture.media_parts, picture.unbounded_prompt, picture.prompt_bytes < 100) == (2, True, True)
    for name in ("inputs", "input", "text", "texts"):
        read = shaped(Shape.ANY, {name: "a text", "parameters": {"max_new_tokens": 5}})
        assert (read.prompt_bytes, read.generates, read.output_bound, read.boundable) == (8, True, None, False)
        assert read.wants_usage is True


# ---------------------------------------------------------------- media


@pytest.mark.parametrize(
    ("endpoint", "field", "part", "parts", "unbounded"),
    [
        (CHAT, "messages", {"type": "image_url", "image_url": {"url": DATA_URL}}, 1, False),
        (CHAT, "messages", {"type": "image_url", "image_url": DATA_URL}, 1, False),
        (CHAT, "messages", {"type": "image_url", "image_url": {"url": "https://example.com/a"}}, 1, False),
        (CHAT, "messages", {"type": "image_url", "image_url": None, "uuid": "u"}, 1, False),
        (CHAT, "messages", {"image_url": {"url": DATA_URL, "data": "x"}, "video_url": {"url": DATA_URL}}, 2, True),
        (CHAT, "messages", {"type": "input_audio", "input_audio": {"data": "A" * 4000, "format": "wav"}}, 1, False),
        (CHAT, "messages", {"type": "input_audio", "input_audio": {"format": "wav"}}, 1, False),
        (CHAT, "messages", {"type": "file", "file": {"file_data": DATA_URL}}, 1, True),
        (CHAT, "messages", {"type": "file", "file": {"file_id": "f"}}, 1, True),
        (CHAT, "messages", {"type": "image_embeds", "image_embeds": "A" * 4000}, 1, True),
        (CHAT, "messages", {"type": "text", "text": "x", "file_id": None}, 0, False),
        (CHAT, "messages", {"image": DATA_URL}, 1, False),
        (CHAT, "messages", {"type": "image", "image": {"url": DATA_URL}}, 1, False),
        (CHAT, "messages", {"type": "image", "data": "A" * 4000, "mimeType": "image/png"}, 1, False),
        (CHAT, "messages", {"type": "image", "url": DATA_URL}, 1, False),
        (CHAT, "messages", {"type": "image_base64", "image_base64": "A" * 4000}, 1, False),
        (CHAT, "messages", {"type": "media", "data": "A" * 4000}, 1, True),
        (CHAT, "messages", {"inline_data": {"mime_type": "image/png", "data": "A" * 4000}}, 1, False),
        (CHAT, "messages", {"inlineData": {"mimeType": "image/png", "data": "A" * 4000}}, 1, False),
        (CHAT, "messages", {"type": "audio", "audio": "A" * 4000}, 1, False),
        (CHAT, "messages", {"type": "video", "video": ["A" * 4000]}, 1, True),
        (CHAT, "messages", {"images": ["A" * 4000, DATA_URL, {"type": "image_url", "image_url": DATA_URL}]}, 3, False),
        (CHAT, "messages", {"image": None, "video": None, "images": []}, 0, False),
        (CHAT, "messages", {"type": "image", "url": None, "data": {"x": "y"}}, 0, False),
        (RESPONSES, "input", {"type": "input_image", "image_url": DATA_URL, "file_id": None}, 1, False),
        (RESPONSES, "input", {"type": "input_image", "file_id": "f"}, 1, True),
        (RESPONSES, "input", {"type": "input_file", "file_data": DATA_URL, "filename": "a.pdf"}, 1, True),
        (MESSAGES, "messages", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}, 1, False),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 4000}}, 1, True),
        (MESSAGES, "messages", {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}}, 1, False),
        (MESSAGES, "messages", {"type": "image", "source": {"type": "file", "file_id": "f"}}, 1, False),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "url", "url": "https://example.com/a"}}, 1, True),
        (MESSAGES, "messages", {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}]}, 1, False),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}]}}, 1, False),
    ],
)  # fmt: skip
def test_media_is_counted_by_the_piece_and_not_as_text(endpoint, field, part, parts, unbounded):
    read = facts(endpoint, **{field: user({"type": "text", "text": "what is this?"}, part, part)})
    assert (read.media_parts, read.unbounded_prompt) == (2 * parts, unbounded)
    assert read.prompt_bytes < 700


@pytest.mark.parametrize(
    ("endpoint", "field", "message", "parts", "unbounded"),
    [
        (CHAT, "messages", {"content": "", "images": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}, 1, False),
        (CHAT, "messages", {"content": "", "images": [DATA_URL, "A" * 4000]}, 2, False),
        (CHAT, "messages", {"content": None, "image": {"url": DATA_URL}}, 1, False),
        (CHAT, "messages", {"content": "x", "images": None, "image": None, "audio": None}, 0, False),
        (RESPONSES, "input", {"type": "image_generation_call", "id": "ig_1", "result": "A" * 4000}, 1, False),
        (RESPONSES, "input", {"type": "image_generation_call", "id": "ig_1"}, 0, True),
        (RESPONSES, "input", {"type": "code_interpreter_call", "outputs": [{"type": "image", "url": DATA_URL}]}, 1, False),
        (RESPONSES, "input", {"type": "mcp_call", "output": "image", "result": "text"}, 0, False),
    ],
)  # fmt: skip
def test_pictures_that_were_generated_before_are_media_in_the_history(endpoint, field, message, parts, unbounded):
    message = {"role": "assistant"} | message if "type" not in message else message
    read = facts(endpoint, **{field: [message, message]})
    assert (read.media_parts, read.unbounded_prompt) == (2 * parts, unbounded)
    assert read.prompt_bytes < 700
    texts = prompt_texts(Target(endpoint), read.prompt)
    assert texts is not None
    assert sum(map(len, texts)) < 200


def test_pictures_beside_a_prompt_and_in_its_object_are_media():
    for fields in (
        {"image_data": [{"data": "A" * 4000, "id": 10}]},
        {"images": ["A" * 4000]},
        {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["A" * 4000]}},
        {"prompt": ["x", {"prompt_string": "<__media__>", "multimodal_data": ["A" * 4000]}]},
    ):
        read = facts(COMPLETIONS, **fields)
        assert (read.media_parts, read.unbounded_prompt, read.prompt_tokens) == (1, False, None)
        assert read.prompt_bytes < 200
        assert "A" * 4000 not in prompt_texts(Target(COMPLETIONS), read.prompt)
    assert facts(COMPLETIONS, prompt=[1, 2], images=["A"]).prompt_tokens is None
    assert facts(COMPLETIONS, video_data="A" * 4000).unbounded_prompt is True
    deep: object = "A" * 4000
    for _ in range(50):
        deep = [deep]
    assert facts(COMPLETIONS, images=deep).media_parts == 1


@pytest.mark.parametrize(
    ("citations", "unbounded"), [({"enabled": True}, True), ({"enabled": False}, False), ([], False)]
)
def test_a_document_that_is_to_be_cited_is_rewritten_by_the_server(citations, unbounded):
    document = {"type": "document", "source": {"type": "text", "data": "x"}, "citations": citations}
    assert facts(MESSAGES, messages=user(document)).unbounded_prompt is unbounded


def test_media_is_found_in_the_result_of_a_tool_and_in_the_system_prompt():
    image = {"type": "input_image", "image_url": DATA_URL}
    output = [
        {"type": "function_call_output", "output": [image]},
        {"type": "computer_call_output", "output": image},
    ]
    assert facts(RESPONSES, input=output).media_parts == 2
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 4000}
    assert facts(MESSAGES, system=[{"type": "image", "source": source}]).media_parts == 1


@pytest.mark.parametrize(
    ("endpoint", "field", "part", "unbounded"),
    [
        (MESSAGES, "messages", {"type": "document", "source": {"type": "text", "data": "A" * 4000}}, False),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "content", "content": "A" * 4000}}, False),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "new", "data": "A" * 4000}}, True),
        (MESSAGES, "messages", {"type": "document", "source": "A" * 4000}, True),
        (MESSAGES, "messages", {"type": "tool_use", "input": {"source": {"type": "base64", "data": "A" * 4000}}}, False),
        (CHAT, "messages", {"type": "text", "text": '"image_url": {"url": "' + DATA_URL}, False),
        (CHAT, "messages", {"type": "text", "text": {"image_url": DATA_URL}}, False),
        (CHAT, "messages", {"data": "A" * 4000, "url": DATA_URL}, False),
    ],
)  # fmt: skip
def test_text_is_never_taken_for_media(endpoint, field, part, unbounded):
    image = {"type": "image_url", "image_url": {"url": DATA_URL}}
    read = facts(endpoint, **{field: user(part, image)})
    assert read.media_parts == 1
    assert read.prompt_bytes >= 4000
    assert read.unbounded_prompt is unbounded


def test_media_outside_of_content_is_text():
    message = {"role": "user", "content": "x", "image_url": {"url": DATA_URL}}
    assert facts(CHAT, messages=[message]).prompt_bytes > 4000
    deep: object = {"type": "image_url", "image_url": {"url": DATA_URL}}
    for _ in range(20):
        deep = {"content": [deep]}
    assert facts(CHAT, messages=[deep]).prompt_bytes > 4000


def test_no_request_has_thousands_of_tools():
    tool = {"type": "function"}
    assert facts(RESPONSES, tools=[tool] * 1024).unbounded_prompt is False
    for endpoint in TOOLED:
        assert problem(endpoint, tools=[tool] * 1025).param == "tools"


def test_an_answer_without_its_usage_can_not_be_asked_for():
    assert problem(COMPLETIONS, response_fields=["content"]).param == "response_fields"
    assert facts(COMPLETIONS, response_fields=None)


def test_a_field_with_an_escaped_name_carries_media_all_the_same():
    text = text_of(CHAT, messages=user({"image_url": {"url": "https://example.com/a"}}))
    read = read_facts(CHAT, text.replace(b'"image_url"', b'"image\\u005furl"'))
    assert (read.media_parts, read.unbounded_prompt) == (1, False)


def test_a_type_that_is_given_twice_is_not_believed():
    part = b'{"source":{"type":"base64","media_type":"image/png","type":"text","data":"%b"}}' % (b"A" * 4000)
    read = read_facts(MESSAGES, text_of(MESSAGES, messages=user(0)).replace(b"[0]", b"[%b]" % part))
    assert (read.media_parts, read.unbounded_prompt) == (0, True)
    assert read.prompt_bytes > 4000


def test_more_parts_than_anybody_sends_are_refused_where_media_is_among_them():
    image = {"image_url": {"url": DATA_URL}}
    assert facts(CHAT, messages=user(*[{}] * 70_000)).media_parts == 0
    assert problem(CHAT, messages=user(*[{}] * 70_000, image)).param == "messages"
    assert problem(CHAT, messages=user({f"f{i}": 0 for i in range(1001)} | image)).param == "messages"


def test_nesting_of_any_depth_gives_facts_or_a_complaint():
    # Opened once more for its media, a body may be nested too deeply that was not when it was first read. Since Python
    # 3.13 that begins at some 10,000.
    seen = set()
    for depth in (*range(1200), 20_000):
        nested = b"[" * depth + b'{"image_url":0}' + b"]" * depth
        for text in (nested, b'{"content":' * depth + nested + b"}" * depth):
            found = read(CHAT, text_of(CHAT, messages=user(0)).replace(b"[0]", text))
            seen.add(found.message if isinstance(found, Malformed) else None)
    assert seen == {None, "The body is nested too deeply."}


# ---------------------------------------------------------------- anything at all

OPTIONAL = {
    "stream": st.booleans() | st.none(),
    "max_tokens": st.integers(1, MAX_TOKENS),
    "max_output_tokens": st.integers(1, MAX_TOKENS) | st.none(),
    "n": st.integers(1, 9),
    "best_of": st.integers(1, 9) | st.none(),
    "tools": st.lists(st.fixed_dictionaries({"type": st.sampled_from(["function", "mcp"])}), max_size=2),
    "system": VALUES,
    "instructions": VALUES,
    "suffix": st.text(max_size=3),
    "größe": VALUES,
}
PARTS = st.recursive(
    st.dictionaries(st.sampled_from(["text", "image_url", "file", "source", "type", "url", "data"]), VALUES, max_size=3),
    lambda inner: st.fixed_dictionaries({"content": st.lists(inner, max_size=3)})
    | st.fixed_dictionaries({"source": inner}),
    max_leaves=5,
)  # fmt: skip
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(PARTS, max_size=3)}), max_size=3
)
PROMPTS = st.text(max_size=5) | st.lists(st.text(max_size=5)) | st.lists(st.integers(0, 9), min_size=1)


def finite(value: object) -> bytes:
    text = json.dumps(value).replace("NaN", "1e-400").replace("Infinity", "1e400")
    return text.encode(errors="replace")


BODIES = {
    CHAT: st.fixed_dictionaries({"model": st.just("m"), "messages": TURNS}, optional=OPTIONAL),
    COMPLETIONS: st.fixed_dictionaries({"model": st.just("m"), "prompt": PROMPTS}, optional=OPTIONAL),
    RESPONSES: st.fixed_dictionaries({"model": st.just("m"), "input": TURNS | st.text()}, optional=OPTIONAL),
    MESSAGES: st.fixed_dictionaries({"model": st.just("m"), "messages": TURNS}, optional=OPTIONAL),
}
BOUNDS = {RESPONSES: "max_output_tokens"}


def check(endpoint: Endpoint, text: bytes) -> RequestFacts | None:
    found = read(endpoint, text)
    if isinstance(found, Malformed):
        assert found.message
        assert found.code
        return None
    parsed = json.loads(text)
    assert found.model == (parsed.get("model") or UNNAMED)
    assert found.stream is (parsed.get("stream") or False)
    bound = parsed.get(BOUNDS.get(endpoint, "max_tokens")) or 0
    assert found.output_bound in ({bound} if bound > 0 else {None, 1})
    assert 0 <= found.prompt_bytes <= len(text)
    assert found.media_parts >= 0
    assert 1 <= found.choices <= MAX_CHOICES
    kept = json.loads(found.prompt)
    assert kept == {name: parsed[name] for name in kept}
    return found


@pytest.mark.parametrize("endpoint", KINDS)
@FEWER
@given(st.data())
def test_what_is_read_is_what_the_body_says(endpoint, data):
    body = data.draw(BODIES[endpoint])
    found = check(endpoint, finite(body))
    if found is not None and endpoint in (CHAT, COMPLETIONS):
        prompt = body.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) else 1
        assert found.choices == max(body.get("n", 1), body.get("best_of") or 1) * prompts


@pytest.mark.parametrize("endpoint", KINDS)
@FEWER
@given(st.data())
def test_a_body_with_errors_gives_facts_or_a_complaint(endpoint, data):
    text = data.draw(mutated(BODIES[endpoint].map(finite)))
    assert isinstance(read(endpoint, text), RequestFacts | Malformed)


@pytest.mark.parametrize("endpoint", KINDS)
@FEWER
@given(st.data())
def test_any_value_in_any_field_gives_facts_or_a_complaint(endpoint, data):
    names = [
        *OPTIONAL,
        *LEAST[endpoint],
        "messages",
        "input",
        "prompt",
        "stream_options",
        "thinking",
        "background",
    ]
    fields = data.draw(st.dictionaries(st.sampled_from(names), VALUES))
    assert isinstance(read(endpoint, finite(LEAST[endpoint] | fields)), RequestFacts | Malformed)
