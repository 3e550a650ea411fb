"""Map method and path to the endpoint that is asked for. Other spellings of a metered path are metered too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from extproc.core.request.path_models import model_in

MAX_MODEL_CHARS: Final = 256
# Longer than any endpoint of an API with a model's name in it. Each reading takes a microsecond for 4 characters.
MAX_PATH_CHARS: Final = 2048


class Endpoint(StrEnum):
    """List the kinds of endpoint that are metered or answered by us. All but the last four count tokens."""

    CHAT_COMPLETIONS = "chat_completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    RERANK = "rerank"
    SCORE = "score"
    TRANSCRIPTIONS = "audio_transcriptions"
    SPEECH = "audio_speech"
    IMAGES = "images"
    PREDICT = "predict"  # KServe v1, a model that is no LLM: counts requests
    INFER = "infer"  # KServe v2 (Open Inference Protocol): counts requests
    ROUTE = "route"  # any route that Envoy's ratelimit filter asks about: counts requests
    QUOTA = "quota"  # a caller asks for its own limits: we answer, free of charge


class PathProblem(StrEnum):
    """Say why a path can't be read. The value is the error's code."""

    TOO_LONG = "path_too_long"
    AMBIGUOUS = "ambiguous_path"


class Shape(StrEnum):
    """Say what a body at an endpoint looks like."""

    USUAL = "usual"
    STORED_PROMPT = "stored_prompt"  # a chat whose messages, or a part of them, are stored at the server
    ANY = "any"  # a chat, a completion or a text of another API


@dataclass(frozen=True, slots=True)
class Target:
    """Describe the target of a request. `model` comes from the path; None if the path names none.

    A name from a path is decoded but otherwise as the client wrote it, at most `MAX_MODEL_CHARS` + 1 characters.
    `read_request` checks that it can be metered. It counts if the body names no model, and if it `decides`.
    """

    endpoint: Endpoint
    model: str | None = None
    decides: bool = False
    shape: Shape = Shape.USUAL


_LAST_TWO: Final = {
    ("chat", "completions"): Endpoint.CHAT_COMPLETIONS,
    ("completions", "batch"): Endpoint.CHAT_COMPLETIONS,  # vLLM: many conversations in one request
    ("responses", "compact"): Endpoint.RESPONSES,
    ("audio", "transcriptions"): Endpoint.TRANSCRIPTIONS,
    ("audio", "translations"): Endpoint.TRANSCRIPTIONS,
    ("audio", "speech"): Endpoint.SPEECH,
    ("images", "generations"): Endpoint.IMAGES,
    ("images", "edits"): Endpoint.IMAGES,
    ("images", "variations"): Endpoint.IMAGES,
    ("v1", "quota"): Endpoint.QUOTA,
}
_LAST: Final = {
    "completions": Endpoint.COMPLETIONS,
    "responses": Endpoint.RESPONSES,
    "messages": Endpoint.MESSAGES,
    "embeddings": Endpoint.EMBEDDINGS,
    "rerank": Endpoint.RERANK,
    "score": Endpoint.SCORE,
    # Paths beside the standard: vLLM's and SGLang's pooling, Cohere's embed, llama.cpp's own names.
    "completion": Endpoint.COMPLETIONS,
    "infill": Endpoint.COMPLETIONS,
    "embedding": Endpoint.EMBEDDINGS,
    "embed": Endpoint.EMBEDDINGS,
    "encode": Endpoint.EMBEDDINGS,
    "pooling": Endpoint.EMBEDDINGS,
    "classify": Endpoint.EMBEDDINGS,
    "reranking": Endpoint.RERANK,
    "generative_scoring": Endpoint.SCORE,
    # SageMaker's path takes any kind of body.
    "invocations": Endpoint.CHAT_COMPLETIONS,
}
_BATCH: Final = ["chat", "completions", "batch"]
_TARGETS: Final = {endpoint: Target(endpoint) for endpoint in Endpoint}
# Nearly every request has one of these paths, so they skip the parsing below.
_EXACT: Final = {
    "/v1/" + name: _TARGETS[endpoint]
    for name, endpoint in (
        ("chat/completions", Endpoint.CHAT_COMPLETIONS),
        ("completions", Endpoint.COMPLETIONS),
        ("embeddings", Endpoint.EMBEDDINGS),
        ("responses", Endpoint.RESPONSES),
        ("messages", Endpoint.MESSAGES),
    )
}
# TensorFlow Serving adds two verbs to v1.
_V1_VERBS: Final = frozenset({"predict", "explain", "classify", "regress"})
_V2_VERBS: Final = frozenset({"infer", "explain", "generate", "generate_stream"})
_VERSIONS: Final = frozenset({"versions", "labels"})
# A request with one of these methods generates nothing.
READING: Final = frozenset({"GET", "HEAD"})
# With one of these headers some frameworks take a GET for a POST.
OVERRIDES: Final = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})
NO_GET: Final = OVERRIDES | {"upgrade"}  # or it opens a WebSocket
# A server decodes a path once; a proxy before it may decode it once more.
_DECODINGS: Final = 3


def classify(method: str, path: str) -> Target | PathProblem | None:
    """Return the target of a request, or None if nothing is metered, or why the path can't be read.

    Model servers mount their API under prefixes of their own (`/openai/v1/...`), so the last segments decide.
    Percent-escapes, doubled slashes, dot segments, path parameters, backslashes, a trailing slash and letter case
    make no difference: a client must not bypass the meter because the upstream is lenient about one of them.

    Servers differ in how often they decode a path, and in whether an escaped "?" or "#" ends it. All readings are
    compared. A path is metered if one of them is; it is `AMBIGUOUS` if two of them lead to different endpoints.

    A metered path has its target whatever the method is; the caller of this function decides which methods pass.
    The method decides here in one case only: a GET may ask for the description of a model whose name is that of
    an endpoint.
    """
    exact = _EXACT.get(path)
    if exact is not None:
        return exact
    if len(path.partition("?")[0]) > MAX_PATH_CHARS:
        return PathProblem.TOO_LONG
    found: Target | None = None
    for whole, cut in _readings(path):
        target = _classified(method, whole)
        other = _classified(method, cut) if cut != whole else target
        if target is not None and other is not None and target != other:
            return PathProblem.AMBIGUOUS
        target = target or other
        if found is None:
            found = target  # most decoded: the model's name as the server reads it
        elif target is not None and target.endpoint is not found.endpoint:
            return PathProblem.AMBIGUOUS
    return found


def spellings(path: str) -> Iterator[tuple[str, ...]]:
    """Yield the segments of a path, in lower case, for each way in which a server may read it. Some come twice."""
    for reading in _readings(path):
        for each in reading:
            yield tuple(_plain(segment).lower() for segment in _segments(each))


def _readings(path: str) -> Iterator[tuple[str, str]]:
    """Yield what a server may read, the most decoded first: the whole path, and the path up to an escaped "?"."""
    levels = [_before_query(path)]
    while len(levels) <= _DECODINGS and (decoded := unquote(levels[-1])) != levels[-1]:
        levels.append(decoded)
    for level in reversed(levels):
        yield level, _before_query(level)


def _before_query(path: str) -> str:
    return path.partition("?")[0].partition("#")[0]


def _classified(method: str, path: str) -> Target | None:
    raw = _segments(path)
    names = [_plain(segment) for segment in raw]
    plain = [name.lower() for name in names]
    if not plain:
        return None
    kserve = _v1(raw, names, plain) or _v2(names, plain)
    if kserve is not None:
        return kserve if kserve.model or method not in READING else None
    endpoint = _LAST_TWO.get((plain[-2], plain[-1])) if len(plain) > 1 else None
    if endpoint is None:
        endpoint = _LAST.get(plain[-1])
        if endpoint is Endpoint.MESSAGES and plain[-3:-2] == ["threads"] and plain[-2] != "v1":
            return None  # an assistant's thread: it stores text and generates none
        if endpoint is not None and method in READING and "models" in plain[:-1]:
            return None
        tail = 1
    else:
        tail = len(_BATCH) if plain[-3:] == _BATCH else 2
    return None if endpoint is None else _target(endpoint, names[:-tail], plain[:-tail], plain[-1])


def _target(endpoint: Endpoint, names: Sequence[str], plain: Sequence[str], last: str) -> Target:
    """Return the target of a path that ends with `last`, after the segments `names`."""
    found = model_in(names, plain)
    if last == "invocations":
        shape = Shape.ANY
    elif last == "completions" and plain[-2:-1] == ["prompts"]:  # Portkey's: the name of the prompt is in between
        endpoint, shape = Endpoint.CHAT_COMPLETIONS, Shape.STORED_PROMPT
    elif found is None:
        return _TARGETS[endpoint]
    else:
        shape = Shape.USUAL
    if found is None:
        return Target(endpoint, shape=shape)
    return Target(endpoint, found.name[: MAX_MODEL_CHARS + 1], found.decides, shape)


def _v1(raw: Sequence[str], names: Sequence[str], plain: Sequence[str]) -> Target | None:
    """Match `.../models/NAME[/versions/V]:predict`. A path parameter may stand before or after the verb."""
    if "models" not in plain[:-1]:
        return None
    for last in (names[-1], raw[-1].strip()):
        name, colon, verb = last.rpartition(":")
        if colon and verb.lower() in _V1_VERBS:
            return Target(Endpoint.PREDICT, _model([*names[_after_models(plain) : -1], name]))
    return None


def _v2(names: Sequence[str], plain: Sequence[str]) -> Target | None:
    """Match `.../v2/models/NAME[/versions/V]/infer`, and Triton's generate extension (no OpenAI API either)."""
    if plain[-1] not in _V2_VERBS or "models" not in plain[:-1]:
        return None
    start = _after_models(plain)
    if plain[start - 2 : start - 1] != ["v2"]:
        return None
    return Target(Endpoint.INFER, _model(names[start:-1]))


def _after_models(plain: Sequence[str]) -> int:
    return len(plain) - 1 - plain[-2::-1].index("models")


def _model(parts: Sequence[str]) -> str:
    # A slash in a name may have been escaped: join the parts to one name, without a version at its end.
    if len(parts) > 2 and parts[-2].lower() in _VERSIONS:  # noqa: PLR2004 - name, "versions", version
        parts = parts[:-2]
    return "/".join(parts)[: MAX_MODEL_CHARS + 1]


def _segments(path: str) -> list[str]:
    kept: list[str] = []
    for raw in path.replace("\\", "/").split("/"):
        segment = _plain(raw)
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(raw)
    return kept


def _plain(segment: str) -> str:
    return segment.partition(";")[0].strip()
