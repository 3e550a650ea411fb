"""Answer POST /v1/audio/speech: silence, as long as saying the text would take. The answer has no usage."""

import io
import wave
from functools import partial
from typing import TYPE_CHECKING, Literal

from extproc.local.model.api import ModelRequest
from extproc.local.model.errors import malformed
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Planner
from extproc.local.model.sending import Content
from extproc.local.model.service import Ready, Service, given, read_asked, read_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.sending import Reply

SAMPLES_PER_S = 8000
_SAMPLE_BYTES = 2
SAMPLES_PER_TOKEN = SAMPLES_PER_S // 4

# A frame of silence: MPEG 1 layer III at 128 kbit/s and 44.1 kHz, without side information.
_MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)
_MEDIA_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}


class SpeechRequest(ModelRequest, frozen=True, kw_only=True):
    input: str
    voice: str
    response_format: Literal["mp3", "wav", "pcm"] = "mp3"


async def speak(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, read = await read_json(request, SpeechRequest, partial(_input_tokens, service.planner))
    audio = Content(_silence(parsed.response_format, read), _MEDIA_TYPES[parsed.response_format])
    return given(service, asked, Ready(Kind.SPEECH, parsed.model, audio, read))


def _input_tokens(planner: Planner, request: SpeechRequest) -> int:
    planner.check_model(request.model)
    if not request.input:
        raise malformed("input must be non-empty.", "input")
    return len(planner.input_tokens(request.input, "input"))


def _silence(form: str, tokens: int) -> bytes:
    if form == "mp3":
        return _MP3_FRAME * tokens
    samples = bytes(_SAMPLE_BYTES * SAMPLES_PER_TOKEN * tokens)
    if form == "pcm":
        return samples
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(_SAMPLE_BYTES)
        file.setframerate(SAMPLES_PER_S)
        file.writeframes(samples)
    return written.getvalue()
