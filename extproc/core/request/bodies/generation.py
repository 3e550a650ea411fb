"""Read the bodies of endpoints that generate text: chat, completions, responses, Anthropic's messages."""

from typing import Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import MAX_CHOICES, FieldError, RequestFacts
from extproc.core.request.bodies.hidden import HIDING, TEMPLATE_VALUES, hides_prompt
from extproc.core.request.bodies.json_body import AnyObject, JsonBody, head
from extproc.core.request.bodies.media import OF_BODIES, PART, Media
from extproc.core.request.bodies.texts import Texts, texts_in

# The fields that bound the output. `n_predict` and `n_cmpl` are llama.cpp's, which prefers them to the others.
CHAT_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
COMPLETION_BOUNDS: Final = ("max_tokens", "n_predict")
_COMMON_BOUNDS: Final = frozenset({"max_tokens", "max_completion_tokens"})
RESPONSE_BOUNDS: Final = ("max_output_tokens",)
MESSAGE_BOUNDS: Final = ("max_tokens",)
# The output bound that OpenAI, vLLM and SGLang assume for a completion without one. A larger bound would give the
# client more than it asked for.
COMPLETION_DEFAULT_TOKENS: Final = 16
_COUNTS: Final = ("n", "best_of", "n_cmpl")
_COMPLETION_HIDING: Final = HIDING - {"tools", TEMPLATE_VALUES}  # a completion has none

CHAT_PROMPT: Final = (
    *("messages", "tools", "functions", "response_format"),
    *("documents", "chat_template", "chat_template_kwargs"),  # vLLM's
)
# The last three are those of llama.cpp's infill.
_BESIDE_PROMPT: Final = ("suffix", "input_prefix", "input_suffix", "input_extra")
COMPLETION_PROMPT: Final = ("prompt", *_BESIDE_PROMPT, "response_format")
RESPONSE_PROMPT: Final = (
    *("input", "instructions", "tools", "text", "previous_input_messages", "previous_response"),
    "chat_template_kwargs",  # vLLM's
)
MESSAGE_PROMPT: Final = ("system", "messages", "tools", "chat_template_kwargs")

# vLLM cuts the prompt to so many tokens.
TRUNCATING: Final = "truncate_prompt_tokens"

_SAID: Final = ("model", "stream", "stream_options")
CHAT_FIELDS: Final = frozenset({*_SAID, *CHAT_BOUNDS, *_COUNTS, *CHAT_PROMPT, *HIDING, "prompt", TRUNCATING})
COMPLETION_FIELDS: Final = frozenset(
    {
        *(*_SAID, "response_fields", TRUNCATING),
        *(*OF_BODIES, *COMPLETION_BOUNDS, *_COUNTS, *COMPLETION_PROMPT, *_COMPLETION_HIDING),
    }
)
RESPONSE_FIELDS: Final = frozenset({*_SAID, *RESPONSE_BOUNDS, *RESPONSE_PROMPT, *HIDING, "prompt", "background"})
MESSAGE_FIELDS: Final = frozenset({*_SAID, *MESSAGE_BOUNDS, *MESSAGE_PROMPT, *HIDING, "thinking"})

# Texts of other APIs, which some servers take beside chats and completions: Text Generation Inference, embeddings.
_OTHER_PROMPT: Final = ("inputs", "input", "text", "texts")
INVOCATION_FIELDS: Final = CHAT_FIELDS | COMPLETION_FIELDS | frozenset(_OTHER_PROMPT)

_OPTIONS: Final = frozenset({"include_usage", "continuous_usage_stats"})


def read_chat(body: JsonBody) -> RequestFacts:
    """Read a chat, or vLLM's batch of chats. Raise `FieldError`."""
    return _chat(body, body.model(), *_conversations(body))


def read_stored_chat(body: JsonBody) -> RequestFacts:
    """Read a chat of which a part is stored at the server, so that nothing bounds it. Raise `FieldError`."""
    conversations, messages = _conversations(body) if body.given("messages") else (1, 1)
    return replace(_chat(body, body.model(), conversations, messages), unbounded_prompt=True)


def read_invocation(body: JsonBody) -> RequestFacts:
    """Read a chat, a completion, or a text whose API the body does not show. Raise `FieldError`."""
    if body.given("messages"):
        return read_chat(body)
    if body.given("prompt") or body.given("prompt_embeds"):
        return read_completion(body)
    media = _media_beside(body)
    for name in _OTHER_PROMPT:
        if body.given(name):
            media.find(body.fields[name], PART)
            media.find_urls(body.fields[name])
    prompt, prompt_bytes = body.prompt((*_OTHER_PROMPT, *OF_BODIES))
    return RequestFacts(
        model=body.model(),
        stream=body.flag("stream"),
        choices=1,
        output_bound=None,
        prompt_bytes=prompt_bytes - media.payload_bytes,
        further_bytes=body.small_bytes,
        media_parts=media.parts,
        unbounded_prompt=media.unbounded,
        wants_usage=True,  # the option is none of these APIs
        prompt=prompt,
    )


def _media_beside(body: JsonBody) -> Media:
    """Return the media in fields of a body that hold nothing else."""
    media = Media("prompt")
    for name in OF_BODIES:
        if body.given(name):
            media.take_from(body.fields[name], name)
    return media


def _chat(body: JsonBody, model: str, conversations: int, messages: int) -> RequestFacts:
    if body.given("prompt"):
        # A server that takes any kind of body would choose one of the two, and we could not tell which.
        raise FieldError("prompt", "left out where there are 'messages'; /v1/completions takes prompts")
    stream = body.flag("stream")
    bound = body.tokens(*CHAT_BOUNDS)
    choices = _bounded_choices("n", body.choices(*_COUNTS) * conversations)
    media = Media("messages")
    if "messages" in body.fields:
        media.find(body.fields["messages"])
    prompt, prompt_bytes = body.prompt(CHAT_PROMPT)
    wants_usage, wants_continuous = _usage_options(body)
    return RequestFacts(
        model=model,
        stream=stream,
        choices=choices,
        output_bound=bound,
        prompt_bytes=prompt_bytes - media.payload_bytes,
        further_bytes=body.small_bytes,
        media_parts=media.parts,
        wants_usage=wants_usage,
        wants_continuous=wants_continuous,
        prompt=prompt,
        messages=messages,
        boundable=True,
        bound_is_common=bound is None or body.has_any(_COMMON_BOUNDS),
        unbounded_prompt=media.unbounded or hides_prompt(body),
        tools=body.lists("tools") or body.lists("functions"),
        truncates=body.given(TRUNCATING),
    )


def read_completion(body: JsonBody) -> RequestFacts:
    """Read a completion of one prompt or of many. Raise `FieldError`."""
    model = body.model()
    rule = "a string, token ids, an object with a 'prompt_string', or an array of these"
    if body.given("response_fields"):
        raise FieldError("response_fields", "left out: the answer could come without its usage")
    # Without a prompt, servers begin with nothing; llama.cpp's infill has its texts in other fields.
    prompts = texts_in(body, "prompt", rule, mixed=True) if body.given("prompt") else Texts(0)
    if body.given("prompt_embeds"):  # vLLM's, instead of a prompt or beside it
        embeddings = texts_in(body, "prompt_embeds", "a string or an array of strings")
        prompts = Texts(prompts.count + embeddings.count)
    stream = body.flag("stream")
    # 0 returns the prompt's log probabilities. A server still generates one token.
    bound = body.tokens(*COMPLETION_BOUNDS, zero=1)
    asks_for_all = bound is None and body.has_any(COMPLETION_BOUNDS)
    choices = _bounded_choices("n", body.choices(*_COUNTS) * max(1, prompts.count))
    media = _media_beside(body)
    if body.given("prompt"):
        media.find(body.fields["prompt"], PART)
    prompt, prompt_bytes = body.prompt((*COMPLETION_PROMPT, *OF_BODIES))
    wants_usage, wants_continuous = _usage_options(body)
    return RequestFacts(
        model=model,
        stream=stream,
        choices=choices,
        output_bound=bound,
        prompt_bytes=prompt_bytes - media.payload_bytes,
        further_bytes=body.small_bytes,
        media_parts=media.parts,
        wants_usage=wants_usage,
        wants_continuous=wants_continuous,
        prompt=prompt,
        messages=max(1, prompts.count),
        prompt_tokens=None if body.has_any(_BESIDE_PROMPT) or media.parts else prompts.tokens,
        usual_bound=None if asks_for_all else COMPLETION_DEFAULT_TOKENS,
        boundable=True,
        bound_is_common=bound is None or body.has_any(_COMMON_BOUNDS),
        unbounded_prompt=media.unbounded or hides_prompt(body),
        truncates=body.given(TRUNCATING),
    )


def read_response(body: JsonBody) -> RequestFacts:
    """Read a request of OpenAI's Responses API. Raise `FieldError`."""
    model = body.model()
    messages, refers = _input_items(body)
    if body.flag("background"):
        raise FieldError("background", "false: what runs in the background can't be metered")
    stream = body.flag("stream")
    bound = body.tokens(*RESPONSE_BOUNDS)
    media = Media("input")
    if "input" in body.fields:
        media.find(body.fields["input"])
    prompt, prompt_bytes = body.prompt(RESPONSE_PROMPT)
    return RequestFacts(
        model=model,
        stream=stream,
        choices=1,
        output_bound=bound,
        prompt_bytes=prompt_bytes - media.payload_bytes,
        further_bytes=body.small_bytes,
        media_parts=media.parts,
        wants_usage=True,  # the last event always carries it
        prompt=prompt,
        messages=messages + body.given("instructions"),
        boundable=True,
        unbounded_prompt=media.unbounded or refers or body.given("prompt") or hides_prompt(body),
        tools=body.lists("tools"),
    )


def read_messages(body: JsonBody) -> RequestFacts:
    """Read a request of Anthropic's Messages API. Raise `FieldError`."""
    model = body.model()
    messages = body.objects("messages", "messages")
    stream = body.flag("stream")
    bound = body.tokens(*MESSAGE_BOUNDS, zero=1)  # with 0 Anthropic reads the prompt into its cache
    media = Media("messages")
    media.find(body.fields["messages"])
    if "system" in body.fields:
        media.find(body.fields["system"], PART)
    prompt, prompt_bytes = body.prompt(MESSAGE_PROMPT)
    return RequestFacts(
        model=model,
        stream=stream,
        choices=1,
        output_bound=bound,
        prompt_bytes=prompt_bytes - media.payload_bytes,
        further_bytes=body.small_bytes,
        media_parts=media.parts,
        wants_usage=True,  # every stream carries it
        prompt=prompt,
        messages=messages + body.given("system"),
        boundable=True,
        unbounded_prompt=media.unbounded or hides_prompt(body),
        tools=body.lists("tools"),
    )


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    result: Raw = Raw()


_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_chats: Final = msgspec.json.Decoder(list[list[AnyObject]]).decode
_items: Final = msgspec.json.Decoder(list[_Item]).decode


def _conversations(body: JsonBody) -> tuple[int, int]:
    """Return the number of chats, and the number of messages in all of them."""
    raw = body.fields.get("messages", Raw())
    start = head(raw, 64)
    if start[:1] != b"[" or start[1:].lstrip()[:1] != b"[":
        return 1, body.objects("messages", "messages")
    rule = f"an array of messages, or of arrays of them, at most {MAX_CHOICES}"
    # A list per chat is expensive: count the chats before millions of lists are built.
    many = len(body.read("messages", _elements, rule)) > MAX_CHOICES
    chats = [] if many else body.read("messages", _chats, rule)
    messages = sum(map(len, chats))
    if many or messages > MAX_CHOICES:
        raise FieldError("messages", rule)
    return len(chats), messages


def _input_items(body: JsonBody) -> tuple[int, bool]:
    """Return the number of input items, and whether one of them refers to something stored on the server."""
    rule = f"a string or an array of items, at most {MAX_CHOICES}"
    if not body.given("input"):
        return 0, False  # a stored prompt, or an earlier response to continue
    if head(body.fields["input"]) == b'"':
        return 1, False
    items = body.read("input", _items, rule)
    if len(items) > MAX_CHOICES:
        raise FieldError("input", rule)
    return len(items), any(map(_refers, items))


def _refers(item: _Item) -> bool:
    if item.type == "image_generation_call":  # the picture is here, or it is found by its id
        return not item.result
    return item.type == "item_reference" or (item.type is None and item.role is None)


def _bounded_choices(name: str, count: int) -> int:
    if count > MAX_CHOICES:
        raise FieldError(name, f"so small that there are at most {MAX_CHOICES} choices in all")
    return count


def _usage_options(body: JsonBody) -> tuple[bool, bool]:
    """Return whether usage is asked for, and whether in every chunk. The second one means nothing on its own."""
    if not body.given("stream_options"):
        return False, False
    name = "stream_options"
    options: list[tuple[str, Raw]] = body.read(name, jsonkeys.members, "an object")
    twice = jsonkeys.repeated(options, _OPTIONS)
    if twice is not None:
        raise FieldError(f"{name}.{twice}", "given once")
    if any(option not in _OPTIONS and option.casefold() in _OPTIONS for option, _ in options):
        raise FieldError(name, "spelled in lower case")
    flags = JsonBody({f"{name}.{option}": value for option, value in options}, 0)
    asked = flags.flag(f"{name}.include_usage")
    return asked, asked and flags.flag(f"{name}.continuous_usage_stats")
