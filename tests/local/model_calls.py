"""What the tests of the sample model ask of it, one request of each endpoint, and how they read its streams."""

import io
import json
import wave
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from extproc.local.model import FAULT_HEADER, USAGE_HEADER

MODEL = "tokenweir-sample"


def wav(seconds=1.5, samples_per_s=8000):
    """So much silence."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(samples_per_s)
        file.writeframes(bytes(2 * int(seconds * samples_per_s)))
    return written.getvalue()


TURNS = [{"role": "user", "content": "1 + 1 =?"}]
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Call:
    """One request; `endpoint` is its key under `by_endpoint`."""

    endpoint: str
    path: str
    body: dict
    stream: dict | None = None

    @property
    def is_form(self):
        return self.endpoint == "audio_transcriptions"

    def streamed(self):
        return Call(self.endpoint, self.path, self.body | (self.stream or {}))


def transcription(**fields):
    return Call("audio_transcriptions", "/v1/audio/transcriptions", {"model": MODEL, **fields})


CALLS = {
    call.endpoint: call
    for call in (
        Call("chat_completions", "/v1/chat/completions", {"model": MODEL, "messages": TURNS}, WITH_USAGE),
        Call("completions", "/v1/completions", {"model": MODEL, "prompt": "1 + 1 =?"}, WITH_USAGE),
        Call("responses", "/v1/responses", {"model": MODEL, "input": "1 + 1 =?"}, {"stream": True}),
        Call("messages", "/v1/messages", {"model": MODEL, "max_tokens": 50, "messages": TURNS}, {"stream": True}),
        Call("embeddings", "/v1/embeddings", {"model": MODEL, "input": ["a river", "a weir"]}),
        Call("rerank", "/v1/rerank", {"model": MODEL, "query": "a river", "documents": ["a weir", "the river"]}),
        Call("score", "/v1/score", {"model": MODEL, "queries": "a river", "documents": ["a weir", "the river"]}),
        Call(
            "audio_transcriptions",
            "/v1/audio/transcriptions",
            {"model": MODEL},
            {"stream": "true", "stream_include_usage": "true"},
        ),
        Call("audio_speech", "/v1/audio/speech", {"model": MODEL, "input": "A river.", "voice": "alloy"}),
        Call("images", "/v1/images/generations", {"model": MODEL, "prompt": "a river", "n": 2}),
        Call("predict", f"/v1/models/{MODEL}:predict", {"instances": [[1, 2], [3, 4.5]]}),
        Call(
            "infer",
            f"/v2/models/{MODEL}/infer",
            {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]},
        ),
        Call("tokenize", "/tokenize", {"model": MODEL, "prompt": "a river"}),
    )
}
STREAMS = {name: call for name, call in CALLS.items() if call.stream}


@asynccontextmanager
async def calling(app):
    """A client of the app, in this process."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model") as client:
        yield client


def payload(call, audio=None):
    """The body of a request, as arguments of httpx."""
    if not call.is_form:
        return {"json": call.body}
    return {"data": call.body, "files": {"file": ("speech.wav", wav() if audio is None else audio)}}


async def post(client, call, *, fault=None, usage=None, audio=None):
    headers = {FAULT_HEADER: fault or "", USAGE_HEADER: usage or ""}
    return await client.post(call.path, headers=headers, **payload(call, audio))


async def answer(client, call, **options):
    response = await post(client, call, **options)
    assert response.status_code == 200, response.text
    return response.json()


def events_of(text, *, done=False):
    """The (name, document) of each event; a name is None where there is none."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    if done:
        assert parts.pop() == "data: [DONE]"
    assert "data: [DONE]" not in parts
    events = []
    for part in parts:
        *names, data = part.split("\n")
        assert len(names) <= 1
        events.append(
            (names[0].removeprefix("event: ") if names else None, json.loads(data.removeprefix("data: ")))
        )
    return events


async def stream(client, call, *, done=False, **options):
    response = await post(client, call.streamed(), **options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events_of(response.text, done=done)


def keys(value):
    """The nested keys of a document in their order; of values only their types."""
    if isinstance(value, dict):
        return [(key, keys(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [keys(inner) for inner in value]
    return None if value is None else type(value).__name__
