"""Path -> endpoint kind. What is spelled differently but means the same path is metered all the same."""

from enum import StrEnum
from urllib.parse import unquote


class Endpoint(StrEnum):
    """The kinds of endpoint that are metered, or answered by us. All but the last three count tokens."""

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
    PREDICT = "predict"  # KServe v1, a model that is no LLM: requests are counted
    INFER = "infer"  # KServe v2 (Open Inference Protocol): the same
    ROUTE = "route"  # any route that Envoy's ratelimit filter asks about: the same


_EXACT = {"/v1/chat/completions": Endpoint.CHAT_COMPLETIONS}
_LAST_SEGMENTS = {("chat", "completions"): Endpoint.CHAT_COMPLETIONS}
# A server decodes a path once, a proxy before it perhaps once more.
_DECODINGS = 3


def classify(path: str) -> Endpoint | None:
    """The endpoint kind of a request path, or None where nothing is metered.

    Model servers mount the API under prefixes of their own (`/openai/v1/...`), so the last segments decide.
    Percent-escapes, doubled slashes, dot segments, path parameters, backslashes, a trailing slash and letter
    case are all seen through: an upstream that is lenient about one of them must not be a way past the meter.
    """
    exact = _EXACT.get(path)
    if exact is not None:
        return exact
    segments = _segments(path.partition("?")[0].partition("#")[0])
    return _LAST_SEGMENTS.get((segments[-2], segments[-1])) if len(segments) > 1 else None


def _segments(path: str) -> list[str]:
    for _ in range(_DECODINGS):
        path = unquote(path)
    kept: list[str] = []
    for raw in path.replace("\\", "/").lower().split("/"):
        segment = raw.partition(";")[0].strip()
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return kept
