"""Chats: what is read, what is refused and with which words, and usage asked for on the way upstream."""

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.body import (
    MAX_CHOICES,
    MAX_MODEL_CHARS,
    MAX_TOKENS,
    UNNAMED,
    Malformed,
    RequestFacts,
    Rewriting,
    read_request,
    upstream_body,
)
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.jsonkeys import MAX_MEMBERS
from tests.changing import replace
from tests.core.samples import FEWER, VALUES, mutated

MESSAGES = [{"role": "user", "content": "Grüße"}]
VALID = {"model": "tiny", "messages": MESSAGES}


CHAT = Target(Endpoint.CHAT_COMPLETIONS)


def read_chat(text: bytes) -> RequestFacts | Malformed:
    return read_request(CHAT, text, "application/json")


def with_usage(text: bytes) -> bytes:
    changed = upstream_body(CHAT, text, Rewriting(add_usage=True, output_bound=None))
    assert changed is not None
    return changed


def body(**fields) -> bytes:
    return json.dumps(VALID | fields, ensure_ascii=False).encode()


def raw_body(**fields: str) -> bytes:
    """A body with values written by hand."""
    texts = {name: json.dumps(value) for name, value in VALID.items()} | fields
    return ("{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}").encode()


def facts(text: bytes) -> RequestFacts:
    read = read_chat(text)
    assert isinstance(read, RequestFacts), read
    return read


def known(text: bytes) -> RequestFacts:
    """The facts but for what fields that nobody knows take up."""
    return replace(facts(text), further_bytes=0)


def problem(text: bytes) -> Malformed:
    read = read_chat(text)
    assert isinstance(read, Malformed), read
    assert read.message.endswith(".")
    return read


# ---------------------------------------------------------------- what is read


def test_the_smallest_request_is_read():
    assert facts(b'{"model":"m","messages":[]}') == RequestFacts(
        model="m",
        stream=False,
        choices=1,
        output_bound=None,
        prompt_bytes=2,
        media_parts=0,
        wants_usage=False,
        prompt=b'{"messages":[]}',
        messages=0,
        boundable=True,
        further_bytes=1,  # braces and commas are counted one field at a time
    )


@pytest.mark.parametrize("name", ["MAX_TOKENS", "Max_Tokens", "max_to\u212aens", "\u017ftream", "Model"])
def test_a_name_that_another_server_may_read_as_ours_is_refused(name):
    plain = name.casefold()
    found = problem(json.dumps({"model": "m", "messages": [], "max_tokens": 5, name: 6}).encode())
    assert found == Malformed(f"'{name}' must be spelled '{plain}'.", plain, "invalid_field_name")


def test_names_inside_of_fields_that_are_read_are_told_apart_by_case_too():
    options = {"include_usage": True, "INCLUDE_USAGE": False}
    found = problem(json.dumps({"model": "m", "messages": [], "stream": True, "stream_options": options}).encode())
    assert found.param == "stream_options"


@pytest.mark.parametrize("name", ["a\nb", " m", "m ", "\u001b[2J", "\u0000", "\u200b"])
def test_a_model_has_a_name_that_can_be_shown(name):
    assert problem(json.dumps({"model": name, "messages": []}).encode()).param == "model"


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}])
def test_a_body_may_leave_the_model_to_the_path_or_to_the_server(named):
    text = json.dumps({"messages": []} | named).encode()
    assert facts(text).model == UNNAMED
    for decides in (False, True):
        assert read_request(Target(Endpoint.CHAT_COMPLETIONS, "p", decides), text, "").model == "p"


@pytest.mark.parametrize(("decides", "model"), [(False, "m"), (True, "p")])
def test_a_name_in_the_path_counts_before_one_in_the_body_only_where_the_server_goes_by_it(decides, model):
    target = Target(Endpoint.CHAT_COMPLETIONS, "p", decides)
    assert read_request(target, b'{"model":"m","messages":[]}', "").model == model


def test_a_name_in_the_path_must_be_one_that_can_be_shown():
    found = read_request(Target(Endpoint.CHAT_COMPLETIONS, "a\nb"), b'{"messages":[]}', "")
    assert found.param == "model"
    found = read_request(Target(Endpoint.CHAT_COMPLETIONS, "a\nb"), b'{"messages":5}', "")
    assert found.param == "messages"


@pytest.mark.parametrize(("size", "counted"), [(0, 14), (400, 414), (1024, 1024), (5000, 1024)])
def test_small_fields_that_nobody_knows_are_told_apart_from_the_prompt(size, counted):
    text = json.dumps(
        {"model": "m", "messages": [], "max_tokens": 5, "unknown": "x" * size}, separators=(",", ":")
    )
    assert facts(text.encode()).further_bytes == counted


def test_everything_that_is_metered_is_read():
    read = facts(
        body(stream=True, stream_options={"include_usage": True}, max_tokens=5, max_completion_tokens=7, n=3)
    )
    assert (read.model, read.stream, read.wants_usage, read.output_bound, read.choices) == (
        "tiny",
        True,
        True,
        7,
        3,
    )


@pytest.mark.parametrize(
    "field",
    [
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "tools",
        "functions",
        "response_format",
    ],
)
def test_an_optional_field_that_is_null_is_as_good_as_left_out(field):
    read = facts(body(**{field: None}))
    assert (read.stream, read.output_bound, read.choices, read.wants_usage) == (False, None, 1, False)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 9),
        ({"max_tokens": 9, "n_predict": 50}, 50),
        ({"max_tokens": -1}, None),
        ({"max_completion_tokens": -1}, None),
        ({"n_predict": -1}, None),
        ({"n_predict": -2}, None),
        ({"max_tokens": 9, "n_predict": -1}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": 0, "n_predict": 9}, 9),
    ],
)
def test_of_two_output_bounds_the_larger_one_is_held(bounds, expected):
    assert facts(body(**bounds)).output_bound == expected


@pytest.mark.parametrize(
    ("bounds", "common"),
    [
        ({}, True),
        ({"max_tokens": 5}, True),
        ({"max_completion_tokens": 5}, True),
        ({"max_tokens": 5, "n_predict": 5}, True),
        ({"n_predict": 5}, False),
        ({"max_tokens": None, "n_predict": 5}, False),
    ],
)
def test_a_bound_that_most_servers_ignore_is_marked(bounds, common):
    assert facts(body(**bounds)).bound_is_common is common


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False}, False),
        ({"include_usage": True}, True),
    ],
)
def test_usage_is_wanted_only_by_those_who_say_so(options, wanted):
    assert facts(body(stream=True, stream_options=options)).wants_usage is wanted


@pytest.mark.parametrize("field", ["tools", "functions", "response_format"])
def test_all_that_becomes_prompt_is_counted(field):
    value = [{"name": "f", "parameters": {}}]
    extra = facts(body(**{field: value})).prompt_bytes - facts(body()).prompt_bytes
    assert extra == len(json.dumps(value))


@pytest.mark.parametrize("field", ["user", "metadata", "x"])
def test_what_is_no_prompt_is_not_counted(field):
    assert known(body(**{field: "long" * 100})) == known(body())


def test_the_bounds_of_numbers_and_names_are_themselves_allowed():
    read = facts(body(model="m" * MAX_MODEL_CHARS, max_tokens=MAX_TOKENS, n=MAX_CHOICES))
    assert (read.output_bound, read.choices) == (MAX_TOKENS, MAX_CHOICES)
    assert facts(body(max_tokens=1, n=1)).output_bound == 1


def test_white_space_around_everything_is_allowed():
    assert facts(b' \n{ "model" : "m" , "messages" : [ ] , "n" : 2 }\r\n').choices == 2


def test_values_of_fields_that_are_not_read_may_be_anything():
    odd = b'"temperature":1e400,"temperature":2,"seed":123456789012345678901234567890,"x":[{"n":"5"}],"":0'
    assert facts(b'{"model":"m","messages":[],' + odd + b"}").model == "m"


@pytest.mark.parametrize(
    ("part", "parts", "held_as_text"),
    [
        ({"image_url": {"url": "data:image/png;base64," + "A+/=" * 400}}, 1, False),
        ({"input_audio": {"data": "_-9z" * 400, "format": "wav"}}, 1, False),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 4000}}, 1, False),
        ({"image_url": {"url": "https://example.com/a.png"}}, 1, False),
        ({"image_url": {"url": "https://example.com/a.png?" + "A" * 4000}}, 1, False),
        ({"text": "data: " + "A" * 4000}, 0, True),
        ({"text": ";base64," + "A" * 4000}, 0, True),
        ({"text": '"image_url": {"url": "data:image/png;base64,' + "A" * 4000 + '"}'}, 0, True),
        ({"text": '"data":"' + "A" * 4000 + '"'}, 0, True),
    ],
)
def test_media_is_counted_as_parts_and_not_as_text_and_text_is_never_taken_for_media(part, parts, held_as_text):
    content = [{"type": "text", "text": "what is this?"}, part, part]
    read = facts(body(messages=[{"role": "user", "content": content}]))
    assert read.media_parts == 2 * parts
    assert (read.prompt_bytes > 500) is held_as_text


@pytest.mark.parametrize(
    "field", ["tools", "functions", "response_format", "documents", "chat_template", "unknown"]
)
def test_all_that_may_become_prompt_is_counted(field):
    plain = facts(body()).prompt_bytes
    text = "x" * 30_000
    more = facts(body(**{field: [{"name": text}] if field == "tools" else text})).prompt_bytes
    assert 30_000 <= more - plain + (1024 if field == "unknown" else 0) <= 30_100


def test_small_fields_that_are_no_prompt_are_not_counted():
    small = {"temperature": 0.5, "user": "somebody", "stop": ["a", "b"], "logit_bias": {"50256": -100}}
    assert facts(body(**small)).prompt_bytes == facts(body()).prompt_bytes


def test_a_byte_order_mark_before_the_body_makes_no_difference():
    assert facts(b"\xef\xbb\xbf" + body()) == facts(body())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("text", [b"", b" ", b"\n\t\r "])
def test_a_request_without_a_body_is_refused(text):
    assert problem(text) == Malformed("The request has no body; send a JSON object.", None, "empty_body")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"hello", "not valid JSON"),
        (b"{", "not valid JSON"),
        (body()[:-1], "not valid JSON"),
        (body() + b"x", "not valid JSON"),
        (body().replace(b'"', b"'"), "not valid JSON"),
        (b"model=tiny&messages=[]", "not valid JSON"),
        (b"\xef\xbb\xbf" * 2 + body(), "not valid JSON"),
        (b'{"model":"m","messages":[],"n":NaN}', "not valid JSON"),
        (b'{"model":"m","messages":[],"n":05}', "not valid JSON"),
        (b'{"model":"m","messages":["\x01"]}', "not valid JSON"),
        (b'{"model":"m","messages":["\\ud800"]}', "not valid JSON"),
        (b'{"model":"m","messages":[],"\\udc00":1}', "not valid JSON"),
        (b'{"model":"\\ud800","messages":[]}', "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b"5", "JSON object"),
        (b'"' + b"a" * 50 + b'"', "JSON object"),
        (b"[" + body() + b"]", "JSON object"),
        (b"\xff", "not valid UTF-8 (byte 0)"),
        (body(model="\x7f").replace(b"\x7f", b"\xc3\x28"), "not valid UTF-8 (byte 11)"),
        (body().replace(b"\xc3\xbc", b"\xed\xa0\x80"), "not valid UTF-8"),
        (body().replace(b"Gr", b"\xff"), "not valid UTF-8"),
        (body(tools="x").replace(b'"x"', b"[" * 100_000), "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:40]),
)
def test_a_body_that_can_not_be_read_is_refused(text, words):
    refused = problem(text)
    assert words in refused.message
    assert (refused.param, refused.code) == (None, "invalid_json")


@pytest.mark.parametrize("field", ["stream_options", "model", "n", "messages", "x"])
def test_nesting_of_any_depth_gives_facts_or_a_complaint(field):
    for depth in range(0, 3000, 1 if field == "stream_options" else 50):
        assert isinstance(
            read_chat(raw_body(**{field: '{"x":' * depth + "0" + "}" * depth})), RequestFacts | Malformed
        )


def test_a_body_with_more_fields_than_anybody_needs_is_refused():
    fields = {f"f{i}": 0 for i in range(MAX_MEMBERS - len(VALID))}
    assert facts(body(**fields)).model == facts(body()).model
    assert f"at most {MAX_MEMBERS} fields" in problem(body(**fields, one_more=0)).message


TOO_MANY = str(MAX_TOKENS + 1)
NO_COUNT = [
    "-1",
    "0",
    "-0",
    str(2**63),
    str(2**64),
    "1e400",
    "1e2",
    '"5"',
    "true",
    "false",
    "5.5",
    "5.0",
    "[5]",
    "{}",
    '""',
]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("value", [*NO_COUNT[3:], TOO_MANY])
def test_an_output_bound_that_is_no_number_of_tokens_is_refused(field, value):
    expected = f"'{field}' must be an integer of at most {MAX_TOKENS}; a negative one stands for no bound."
    assert problem(raw_body(**{field: value})) == Malformed(expected, field)


@pytest.mark.parametrize("value", [*NO_COUNT, str(MAX_CHOICES + 1)])
def test_a_number_of_choices_that_is_none_is_refused(value):
    assert problem(raw_body(n=value)) == Malformed(f"'n' must be an integer from 1 to {MAX_CHOICES}.", "n")


@pytest.mark.parametrize(
    "value", ["5", "true", "[]", '["m"]', "{}", '" "', '"' + "m" * (MAX_MODEL_CHARS + 1) + '"']
)
def test_a_model_that_is_no_name_is_refused(value):
    expected = f"'model' must be a string of 1 to {MAX_MODEL_CHARS} printable characters, without space around it."
    assert problem(raw_body(model=value)) == Malformed(expected, "model")


@pytest.mark.parametrize(
    "value", ["null", "5", "true", '"hi"', "{}", '"[]"', "[5]", '["hi"]', "[null]", "[{},[]]"]
)
def test_messages_that_are_no_list_of_objects_are_refused(value):
    assert problem(raw_body(messages=value)) == Malformed(
        f"'messages' must be an array of messages, at most {MAX_CHOICES}.", "messages"
    )


def test_messages_that_are_left_out_are_missed():
    rest = {name: value for name, value in VALID.items() if name != "messages"}
    assert problem(json.dumps(rest).encode()).param == "messages"


@pytest.mark.parametrize("value", ['"true"', "1", "0", '""', "[]", "{}", '"false"', "1.0"])
def test_a_stream_flag_that_is_no_flag_is_refused(value):
    assert problem(raw_body(stream=value)) == Malformed("'stream' must be true or false.", "stream")


@pytest.mark.parametrize("value", ['"include_usage"', "true", "1", "[]", '[{"include_usage":true}]', '""'])
def test_stream_options_that_are_no_object_are_refused(value):
    assert problem(raw_body(stream_options=value)) == Malformed(
        "'stream_options' must be an object.", "stream_options"
    )


def test_stream_options_without_end_are_refused():
    many = "{" + ",".join('"x":0' for _ in range(MAX_MEMBERS + 1)) + "}"
    assert problem(raw_body(stream_options=many)).param == "stream_options"


@pytest.mark.parametrize("value", ['"yes"', "1", "0", '"true"', "{}", "[true]"])
def test_an_include_usage_that_is_no_flag_is_refused(value):
    assert problem(raw_body(stream_options=f'{{"include_usage":{value}}}')) == Malformed(
        "'stream_options.include_usage' must be true or false.", "stream_options.include_usage"
    )


READ = {
    "model": '"tiny"',
    "messages": "[]",
    "stream": "true",
    "stream_options": "{}",
    "max_tokens": "5",
    "max_completion_tokens": "5",
    "n": "1",
    "tools": "[]",
    "functions": "[]",
    "response_format": "{}",
    "n_predict": "5",
    "n_cmpl": "1",
    "best_of": "1",
    "chat_template": '""',
}


def escaped(name: str) -> str:
    return name[:-1] + f"\\u{ord(name[-1]):04x}"


@pytest.mark.parametrize(
    "spell",
    [str, escaped, lambda name: "".join(f"\\u{ord(c):04X}" for c in name)],
    ids=["plain", "escaped", "escaped all"],
)
@pytest.mark.parametrize(("field", "value"), READ.items(), ids=READ)
def test_a_field_that_is_read_may_not_be_given_twice_in_any_spelling(field, value, spell):
    for first, second in ((field, spell(field)), (spell(field), field)):
        text = raw_body(user=f'"u","{first}":{value},"x":[0],"{second}":{value}')
        assert problem(text) == Malformed(f"'{field}' is given more than once.", field, "duplicate_field")


@pytest.mark.parametrize("spell", [str, escaped], ids=["plain", "escaped"])
@pytest.mark.parametrize("option", ["include_usage", "continuous_usage_stats"])
def test_a_stream_option_that_is_read_may_not_be_given_twice_in_any_spelling(option, spell):
    options = f'{{"{option}":false,"x":0,"{spell(option)}":true}}'
    name = f"stream_options.{option}"
    assert problem(raw_body(stream="true", stream_options=options)) == Malformed(
        f"'{name}' must be given once.", name
    )


@pytest.mark.parametrize(
    "extra",
    [
        '"user":"u","user":"v"',
        '"metadata":{"model":"a","n":"5"},"x":{"model":"b","model":"c"}',
        '"x":["model","messages","stream","model"]',
        '"stream_options":{"x":1,"x":2,"y":{"include_usage":1,"include_usage":2}}',
    ],
)
def test_a_field_that_is_not_read_may_be_given_twice(extra):
    assert known(body()[:-1] + b"," + extra.encode() + b"}") == known(body())


def test_a_field_with_an_escaped_name_is_read():
    assert facts(b'{"mod\\u0065l":"m","messages":[],"str\\u0065am":true}').stream is True


# ---------------------------------------------------------------- work


def nasty(size: int) -> dict[str, Callable[[], bytes]]:
    def wrapped(inner: bytes) -> bytes:
        return b'{"model":"m","stop":["model","base64"],"messages":[' + inner + b"]}"

    return {
        "empty strings": lambda: wrapped(b",".join([b'""'] * (size // 3))),
        "quotes": lambda: wrapped(b'"' + b'\\"' * (size // 2) + b'"'),
        "backslashes": lambda: wrapped(b'"' + b"\\\\" * (size // 2) + b'"'),
        "escaped characters": lambda: wrapped(b'"' + b"\\u4e2d" * (size // 6) + b'"'),
        "arrays": lambda: wrapped(b",".join([b"[]"] * (size // 3))),
        "deep arrays": lambda: wrapped(b",".join([b"[" * 300 + b"]" * 300] * (size // 601))),
        "brackets without end": lambda: wrapped(b"[" * size),
        "fields": lambda: b'{"model":"m","messages":[],' + b",".join([b'"":0'] * (size // 5)) + b"}",
        "starts of media": lambda: wrapped(b'"' + b";base64," * (size // 8) + b'"'),
        "media just too short": lambda: wrapped(b'"' + (b";base64," + b"A" * 255) * (size // 263) + b'"'),
        "data fields": lambda: wrapped(b"{" + b",".join([b'"data":""'] * (size // 10)) + b"}"),
        "white space": lambda: wrapped(b'{"data"' + b" " * size + b":0}"),
    }


@pytest.mark.parametrize("name", nasty(16))
def test_reading_takes_time_in_proportion_to_the_size(name):
    # What backtracks or reads on from every byte takes 256 times as long for 16 times the size.
    def best(text: bytes) -> float:
        times = []
        for _ in range(3):
            before = time.thread_time()
            read_chat(text)
            times.append(time.thread_time() - before)
        return min(times)

    small, large = best(nasty(1 << 18)[name]()), best(nasty(1 << 22)[name]())
    assert large < max(100 * small, 0.05)


FILLINGS = {"empty strings": '"",', "short strings": '"a",'}


def nested(filling: str, depth: int, size: int) -> bytes:
    """A chat whose innermost content has `size` bytes that are no content, and a picture at its very end."""
    beside = "[" + filling * (size // len(filling)) + "0]"
    opening, closing = '[{"type":"tool_result","content":' * depth, "}]" * depth
    inner = '[{"type":"text","text":"x","beside":' + beside + '},{"type":"image_url","image_url":{"url":"u"}}]'
    return f'{{"model":"m","messages":[{{"role":"user","content":{opening}{inner}{closing}}}]}}'.encode()


@pytest.mark.parametrize("filling", FILLINGS)
def test_media_is_found_in_the_time_of_a_few_readings_however_deep_it_lies(filling):
    # A search of the whole rest at each level took up to 39 times as long as Python's own reader, now 5.
    def best(reader: Callable[[bytes], object], text: bytes) -> float:
        times = []
        for _ in range(5):
            before = time.thread_time()
            reader(text)
            times.append(time.thread_time() - before)
        return min(times)

    for depth in (0, 4, 10):
        text = nested(FILLINGS[filling], depth, 1 << 20)
        assert best(read_chat, text) < 20 * best(json.loads, text)


# ---------------------------------------------------------------- what goes upstream


@pytest.mark.parametrize(
    ("options", "upstream"),
    [
        ("absent", {"include_usage": True}),
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": None}, {"include_usage": True}),
        ({"include_usage": False, "x": [1]}, {"include_usage": True, "x": [1]}),
        ({"continuous_usage_stats": True}, {"include_usage": True, "continuous_usage_stats": False}),
        ({"continuous_usage_stats": "?"}, {"include_usage": True, "continuous_usage_stats": False}),
    ],
)
def test_usage_is_asked_for_in_the_body_that_goes_upstream(options, upstream):
    fields = {} if options == "absent" else {"stream_options": options}
    assert json.loads(with_usage(body(stream=True, **fields))) == json.loads(
        body(stream=True, stream_options=upstream)
    )


def test_values_go_upstream_byte_by_byte_as_they_were_written():
    kept = b'"messages":[ {"content" : "Gr\\u00fc\\/\xc3\x9fe"} ],"seed":123456789012345678901234567890,"t":1.10,"e":1E+2'
    changed = with_usage(b'{"model":"m",' + kept + b',"stream":true}')
    assert kept in changed
    assert changed.endswith(b',"stream_options":{"include_usage":true}}')


def test_the_stream_options_are_found_under_an_escaped_name():
    changed = json.loads(
        with_usage(b'{"model":"m","messages":[],"stream_option\\u0073":{"\\u0069nclude_usage":false}}')
    )
    assert changed["stream_options"] == {"include_usage": True}


# ---------------------------------------------------------------- anything at all

FIELDS = {
    "stream": st.booleans() | st.none(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans() | st.none(), "continuous_usage_stats": VALUES, "x": VALUES}
    ),
    "max_tokens": st.integers(1, MAX_TOKENS),
    "max_completion_tokens": st.integers(1, MAX_TOKENS),
    "n": st.integers(1, MAX_CHOICES),
    "tools": VALUES,
    "temperature": VALUES,
    "größe": VALUES,
    "seed": st.integers(2**60, 2**90),
}


def dumps(value, ascii_only=False) -> bytes:
    # A lone surrogate can't be written in UTF-8, an infinite number not in JSON.
    text = json.dumps(value, ensure_ascii=ascii_only).replace("NaN", "1e-400").replace("Infinity", "1e400")
    return text.encode(errors="replace")


VALID_BODIES = st.builds(
    dumps,
    st.fixed_dictionaries(
        {"model": st.just("m"), "messages": st.just(MESSAGES) | st.lists(st.dictionaries(st.text(), VALUES))},
        optional=FIELDS,
    ),
    st.booleans(),
)


def check(text: bytes) -> None:
    read = read_chat(text)
    if isinstance(read, Malformed):
        assert read.message
        assert read.code
        return
    parsed = json.loads(text)
    assert read.model == (parsed.get("model") or UNNAMED)
    assert read.stream is (parsed.get("stream") or False)
    # A list of lists is vLLM's batch of chats.
    chats = parsed["messages"] if parsed["messages"][:1] and isinstance(parsed["messages"][0], list) else None
    assert read.choices == (parsed.get("n") or 1) * len(chats or [None])
    assert 1 <= len(read.model) <= MAX_MODEL_CHARS
    assert read.prompt_bytes >= 0
    assert read.messages == (len(parsed["messages"]) if chats is None else sum(map(len, chats)))
    assert json.loads(read.prompt)["messages"] == parsed["messages"]
    assert read.output_bound is None or 1 <= read.output_bound <= MAX_TOKENS
    assert read.wants_usage is ((parsed.get("stream_options") or {}).get("include_usage") or False)


@FEWER
@given(st.binary() | VALID_BODIES | mutated(VALID_BODIES))
def test_any_bytes_give_facts_or_a_complaint(text):
    check(text)


@FEWER
@given(
    st.fixed_dictionaries(
        {"model": VALUES | st.just("m"), "messages": VALUES | st.just([])},
        optional=dict.fromkeys(FIELDS, VALUES),
    )
)
def test_any_value_in_any_field_gives_facts_or_a_complaint(fields):
    check(dumps(fields))


class Number(str):
    """A number as it was written."""

    __slots__ = ()


def exact(text: bytes):
    return json.loads(text, parse_int=Number, parse_float=Number)


@FEWER
@given(VALID_BODIES)
def test_nothing_but_the_stream_options_changes_on_the_way_upstream(text):
    if isinstance(read_chat(text), Malformed):
        return
    before, after = exact(text), exact(with_usage(text))
    assert read_chat(with_usage(text)).wants_usage is True
    options = after.pop("stream_options")
    expected = before.pop("stream_options", None) or {}
    assert after == before
    assert list(after) == list(before)
    expected |= {"include_usage": True}
    if "continuous_usage_stats" in expected:
        expected["continuous_usage_stats"] = False
    assert options == expected
