"""Read the bodies of endpoints that read text and generate none: embeddings, rerank, score."""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from extproc.core.request.bodies.facts import FieldError, RequestFacts
from extproc.core.request.bodies.generation import TRUNCATING
from extproc.core.request.bodies.hidden import brings_template
from extproc.core.request.bodies.json_body import JsonBody
from extproc.core.request.bodies.media import MESSAGE, OF_BODIES, PART, Media
from extproc.core.request.bodies.texts import Texts, texts_in

# OpenAI's field first, then those of vLLM, Cohere, Text Embeddings Inference, llama.cpp, SGLang and Ollama.
EMBEDDING_PROMPT: Final = ("input", "messages", "texts", "inputs", "content", "text", "input_ids", "prompt")
# A query is compared with each document.
QUERIES: Final = ("query", "queries", "text_1", "data_1")
DOCUMENTS: Final = ("documents", "texts", "items", "text_2", "data_2")
_ADDING: Final = ("chat_template", "mm_processor_kwargs", "media_io_kwargs")
_FURTHER_PROMPT: Final = ("chat_template", "chat_template_kwargs", "instruction", "instruct")
# vLLM cuts each text to so many tokens; Cohere does in embeddings, and each document that is ranked.
_TRUNCATING: Final = (TRUNCATING, "max_tokens", "max_tokens_per_doc")

# How the vectors come. vLLM's `bytes` has usage in a header, `bytes_only` has none at all.
ENCODING_FORMAT: Final = "encoding_format"
_WITHOUT_USAGE: Final = "bytes_only"

EMBEDDING_FIELDS: Final = frozenset(
    {"model", ENCODING_FORMAT, *EMBEDDING_PROMPT, *OF_BODIES, *_FURTHER_PROMPT, *_ADDING, *_TRUNCATING}
)
PAIR_FIELDS: Final = frozenset({"model", *QUERIES, *DOCUMENTS, *_FURTHER_PROMPT, *_ADDING, *_TRUNCATING})
_TEXTS_RULE: Final = "a string, an array of strings or objects, token ids or an array of such arrays"


def read_embedding(body: JsonBody) -> RequestFacts:
    """Read texts, token ids or chats to embed, classify or pool. Raise `FieldError`."""
    model = body.model()
    given = [name for name in EMBEDDING_PROMPT if body.given(name)]
    pictures = [name for name in OF_BODIES if body.given(name)]
    if not given and not pictures:
        raise FieldError("input", f"given: {_TEXTS_RULE}")
    media = Media((given + pictures)[0])
    for name in pictures:
        media.take_from(body.fields[name], name)
    texts = []
    for name in given:
        chat = name == "messages"
        texts.append(
            Texts(body.objects(name, "messages")) if chat else texts_in(body, name, _TEXTS_RULE, objects=True)
        )
        media.find(body.fields[name], MESSAGE if chat else PART)
        if not chat:
            media.find_urls(body.fields[name])
    exact = texts[0].tokens if len(texts) == 1 and not pictures else None
    count = sum(text.count for text in texts)
    facts = _facts(
        body, model, (*EMBEDDING_PROMPT, *OF_BODIES, *_FURTHER_PROMPT), media, messages=count, tokens=exact
    )
    form = body.read(ENCODING_FORMAT, msgspec.json.decode, "valid JSON", absent=None)
    return replace(facts, tells_usage=form != _WITHOUT_USAGE)


def read_pairs(body: JsonBody) -> RequestFacts:
    """Read a query and documents, or pairs of texts. Raise `FieldError`.

    A cross-encoder reads the query again for each document, so the prompt counts it as often.
    """
    model = body.model()
    queries, documents = _side(body, QUERIES), _side(body, DOCUMENTS)
    # One query goes with all documents; as many queries as documents go pair by pair.
    again = max(0, documents - 1) if queries == 1 else 0
    once, often = _media(body, DOCUMENTS), _media(body, QUERIES)
    query_bytes = sum(len(body.fields[name]) for name in QUERIES if body.given(name)) - often.payload_bytes
    once.parts += often.parts * (1 + again)
    once.payload_bytes += often.payload_bytes
    once.unbounded = once.unbounded or often.unbounded
    pairs = max(queries, documents)
    names = (*QUERIES, *DOCUMENTS, *_FURTHER_PROMPT)
    return _facts(body, model, names, once, messages=pairs, more_bytes=query_bytes * again)


def _side(body: JsonBody, names: Sequence[str]) -> int:
    given = [name for name in names if body.given(name)]
    if not given:
        raise FieldError(names[0], f"given: {_TEXTS_RULE}")
    counts = {name: texts_in(body, name, _TEXTS_RULE, objects=True).count for name in given}
    # A query counts as one, however many parts it has.
    return sum(1 if name == "query" else count for name, count in counts.items())


def _media(body: JsonBody, names: Sequence[str]) -> Media:
    given = [name for name in names if body.given(name)]
    media = Media(given[0])
    for name in given:
        media.find(body.fields[name], PART)
        media.find_urls(body.fields[name])
    return media


def _facts(
    body: JsonBody,
    model: str,
    names: Sequence[str],
    media: Media,
    *,
    messages: int,
    tokens: int | None = None,
    more_bytes: int = 0,
) -> RequestFacts:
    prompt, prompt_bytes = body.prompt(names)
    further = body.has_any(_FURTHER_PROMPT)
    return RequestFacts(
        model=model,
        stream=False,
        choices=1,
        output_bound=None,
        prompt_bytes=prompt_bytes - media.payload_bytes + more_bytes,
        media_parts=media.parts,
        wants_usage=True,
        prompt=prompt,
        messages=max(1, messages),
        prompt_tokens=None if further else tokens,
        unbounded_prompt=media.unbounded or body.has_any(_ADDING) or brings_template(body),
        generates=False,
        truncates=body.has_any(_TRUNCATING),
    )
