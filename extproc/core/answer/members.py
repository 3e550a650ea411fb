"""Tell the members of a plain JSON answer apart: text, log probabilities, pictures, usage, and all the rest.

Names decide, not the endpoint: a gateway behind us may answer one API in the shape of another. A string of a name
that is not listed counts as text inside of a member that holds text. At the top level it counts only if the answer
has no text elsewhere.
"""

from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """Say what a value is to the meter."""

    SKIP = 0  # neither text nor usage: passed over, whatever is in it
    ANSWER = 1  # the answer itself, or one of a list of answers
    LIST = 2  # a list of answers
    TEXT = 3  # strings in it were generated
    STRING = 4  # as TEXT, but only if it is a string
    NESTED = 5  # as TEXT, but only if it is an object or an array
    UNKNOWN = 6  # strings in it may have been generated
    MEDIA = 7  # a string in it is a picture or a sound, or the place of one
    SEALED = 8  # a string in it was generated, but nobody can read it
    LOGPROBS = 9  # an object that lists tokens, or such a list
    ITEMS = 10  # an array with one element for each token
    NUMBERS = 11  # an array with one number for each token
    KEPT = 12  # read as a whole, with its name
    WRITTEN = 13  # all of it was generated, its names too: the arguments of a tool


_KEPT: Final = (
    *("usage", "error", "type", "object", "x_groq", "meta", "meta_info", "index", "timings"),
    *("tokens_evaluated", "tokens_predicted", "prompt_eval_count", "prompt_eval_cached_count", "eval_count"),
)
_NUMBERS: Final = ("token_ids", "output_ids", "tokens")
# Their names are the caller's: no name in them says what is no text.
_WRITTEN: Final = ("input", "arguments", "parameters", "args")
# `result` is a picture that the Responses API made with a tool: another model's work.
_SEALED: Final = ("encrypted_content", "signature", "result")
_MEDIA: Final = ("b64_json", "data", "url", "image_url", "image")
_PASSED_OVER: Final = (
    # Log probabilities and ids of the prompt, vectors, and what repeats the text.
    *("prompt_logprobs", "prompt_token_ids", "top_logprobs", "embedding", "embeddings", "kv_transfer_params"),
    *("bytes", "segments", "words", "prompt", "generation_settings", "routed_experts"),
    # Names, states and cited text.
    *("id", "object", "role", "type", "index", "model", "created", "created_at", "finish_reason", "stop_reason"),
    *("stop_sequence", "matched_stop", "status", "service_tier", "system_fingerprint", "call_id", "item_id"),
    *("annotations", "citations", "content_filter_results", "stop_type"),
    *("file_id", "filename", "mime_type", "media_type", "format", "expires_at", "provider"),
)
# What tools that the server runs have found or said, and their definitions: the model has not written it.
_FOUND: Final = (
    "tools",
    "results",
    "sources",
    "source",
    "outputs",
    "output",
    "stdout",
    "stderr",
    "title",
    "page_age",
)
# What an answer of the Responses API repeats of its request, and the like.
_REPEATED: Final = (
    *("instructions", "tools", "tool_choice", "metadata", "user", "reasoning", "truncation", "safety_identifier"),
    *("previous_response_id", "prompt_cache_key", "incomplete_details", "background", "conversation"),
    *("prompt_filter_results", "search_results", "language", "task", "container", "stopping_word", "done_reason"),
    *("output_format", "quality", "size", "request_id", "response_type"),
)

AT_THE_TOP: Final[dict[bytes, Role]] = {
    **dict.fromkeys(map(str.encode, (*_PASSED_OVER, *_REPEATED)), Role.SKIP),
    **dict.fromkeys(map(str.encode, ("choices", "content", "output", "delta", "data")), Role.TEXT),
    **dict.fromkeys(map(str.encode, ("text", "response", "thinking")), Role.STRING),
    b"message": Role.NESTED,
    **dict.fromkeys(map(str.encode, _NUMBERS), Role.NUMBERS),
    b"completion_probabilities": Role.ITEMS,
    **dict.fromkeys(map(str.encode, _KEPT), Role.KEPT),
}
INSIDE: Final[dict[bytes, Role]] = {
    **dict.fromkeys(map(str.encode, (*_PASSED_OVER, *_FOUND)), Role.SKIP),
    b"usage": Role.SKIP,
    **dict.fromkeys(map(str.encode, _NUMBERS), Role.NUMBERS),
    **dict.fromkeys(map(str.encode, _MEDIA), Role.MEDIA),
    **dict.fromkeys(map(str.encode, _SEALED), Role.SEALED),
    **dict.fromkeys(map(str.encode, _WRITTEN), Role.WRITTEN),
    b"logprobs": Role.LOGPROBS,
}
# The arrays of `logprobs`: in chat completions and Responses, and in completions.
OF_LOGPROBS: Final[dict[bytes, Role]] = {b"content": Role.ITEMS, b"refusal": Role.ITEMS, b"tokens": Role.ITEMS}
# In the blocks of Anthropic's messages and the items of Responses, addresses are found, and data is encrypted.
IN_BLOCKS: Final[dict[bytes, Role]] = {b"url": Role.SKIP, b"data": Role.SEALED}
BLOCKS: Final = (b"content", b"output")
# A name that shows the object to be the result of a tool.
OF_RESULTS: Final = b"tool_use_id"
