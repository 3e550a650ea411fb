"""Answer POST /v1/audio/transcriptions with some text, in vLLM's format or in that of gpt-4o-transcribe."""

import io
import wave
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING

from starlette.datastructures import FormData, UploadFile

from extproc.local.model import usage
from extproc.local.model.api import GenerationRequest
from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.events import Document, Event
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Job, Planner, Wanted
from extproc.local.model.service import Service, aside, generated, read_asked
from extproc.local.model.shapes import ChoiceEnd, Shape

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.generator import Step
    from extproc.local.model.sending import Reply

# Tokens of one second of audio.
AUDIO_TOKENS_PER_S = 10

# Assume 128 kbit/s for audio that is no WAV, because its length is unknown.
BYTES_PER_S = 16_000

_FORMATS = ("json", "text", "verbose_json")
_YES = {"true": True, "1": True, "false": False, "0": False, "": False}


class TranscriptionRequest(GenerationRequest, frozen=True, kw_only=True):
    """Hold a form whose fields are all strings."""

    prompt: str = ""
    language: str = "en"
    response_format: str = "json"
    include_usage: bool = False
    continuous_usage: bool = False
    max_completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    digest: str
    seconds: float

    @property
    def whole_seconds(self) -> int:
        """Return the seconds, rounded up, as they are charged."""
        return ceil(self.seconds)

    @property
    def tokens(self) -> int:
        return AUDIO_TOKENS_PER_S * self.whole_seconds


async def transcribe(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise malformed("Unsupported Media Type: Only 'multipart/form-data' is allowed")
    async with request.form() as form:
        audio = await _audio(form)
        parsed = _read_form(form)
    job = _plan(service.planner, parsed, audio)
    shaped = SpokenShape if asked.details.by_tokens else TranscriptionShape
    return generated(service, asked, job, partial(shaped, request=parsed, audio=audio))


async def _audio(form: FormData) -> Audio:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise malformed("Expected 'file' to be a file-like object.", "file")
    content = await file.read()
    if not content:
        raise malformed("The audio file is empty.", "file")
    return await aside(partial(_heard, content), len(content))


def _heard(content: bytes) -> Audio:
    return Audio(sha256(content).hexdigest(), _duration_s(content))


def _duration_s(content: bytes) -> float:
    try:
        with wave.open(io.BytesIO(content)) as file:
            frames, per_s = file.getnframes(), file.getframerate()
            return float(frames / per_s)
    except (wave.Error, EOFError, ZeroDivisionError):
        return len(content) / BYTES_PER_S


def _read_form(form: FormData) -> TranscriptionRequest:
    model = _field(form, "model")
    if not model:
        raise malformed("Object missing required field `model`", "model")
    stream = _flag(form, "stream")
    include_usage = _flag(form, "stream_include_usage")
    continuous = _flag(form, "stream_continuous_usage_stats")
    if (include_usage or continuous) and not stream:
        param = "stream_include_usage" if include_usage else "stream_continuous_usage_stats"
        raise malformed("Stream options can only be defined when `stream=True`.", param)
    response_format = _field(form, "response_format") or "json"
    if response_format not in _FORMATS:
        raise ApiError("Currently only support response_format: `text`, `json` or `verbose_json`")
    if response_format == "verbose_json" and stream:
        raise ApiError("verbose_json format doesn't support streaming case")
    return TranscriptionRequest(
        model=model,
        stream=stream,
        prompt=_field(form, "prompt"),
        language=_field(form, "language") or "en",
        response_format=response_format,
        include_usage=include_usage,
        continuous_usage=include_usage and continuous,
        max_completion_tokens=_number(form, "max_completion_tokens"),
        ignore_eos=_flag(form, "ignore_eos"),
    )


def _field(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise malformed(f"{name} must not be a file", name)
    return value


def _flag(form: FormData, name: str) -> bool:
    value = _field(form, name).lower()
    if value not in _YES:
        raise malformed(f"{name} must be true or false", name)
    return _YES[value]


def _number(form: FormData, name: str) -> int | None:
    value = _field(form, name)
    if not value:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise malformed(f"{name} must be a number", name) from error


def _plan(planner: Planner, request: TranscriptionRequest, audio: Audio) -> Job:
    planner.check_model(request.model)
    tokens = audio.tokens + len(planner.tokenizer.encode(request.prompt))
    wanted = Wanted(request.max_completion_tokens, "max_completion_tokens")
    prompt = planner.prompt(request, [audio.digest, request.prompt], "", tokens, wanted)
    return Job(
        Kind.TRANSCRIPTIONS,
        request.model,
        (prompt,),
        stream=bool(request.stream),
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
        audio_seconds=audio.whole_seconds,
    )


@dataclass(kw_only=True)
class TranscriptionShape(Shape):
    """Format like vLLM: plain answers report seconds, streams report tokens if asked to, verbose ones nothing."""

    request: TranscriptionRequest
    audio: Audio

    def token(self, index: int, step: "Step", produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        choice: Document = {"delta": {"content": step.text}}
        if step.finish_reason is not None:
            choice |= {"finish_reason": step.finish_reason, "stop_reason": step.stop_reason}
        document = self._chunk([choice])
        if self.job.continuous_usage:
            document["usage"] = usage.counts(self.job.prompt_tokens, produced)
        return [Event(document)]

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        if not self.job.include_usage:
            return []
        return [Event(self._chunk([]) | {"usage": usage.counts(self.job.prompt_tokens, produced)})]

    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document | str:
        text = ends[0].text
        match self.request.response_format:
            case "text":
                return f"{text}\n"
            case "verbose_json":
                return self._verbose(text)
            case _:
                return {"text": text, "usage": self._usage(produced)}

    def _usage(self, produced: int) -> Document:  # noqa: ARG002  the shape of both
        return {"type": "duration", "seconds": self.audio.whole_seconds}

    def _verbose(self, text: str) -> Document:
        segment: Document = {
            "id": 0,
            "avg_logprob": 0.0,
            "compression_ratio": 1.0,
            "end": self.audio.seconds,
            "no_speech_prob": None,
            "seek": 0,
            "start": 0.0,
            "temperature": 0.0,
            "text": text,
            "tokens": [],
        }
        return {
            "duration": str(self.audio.seconds),
            "language": self.request.language,
            "text": text,
            "segments": [segment],
            "words": None,
        }

    def _chunk(self, choices: list[Document]) -> Document:
        return {
            "id": f"transcribe-{self.request_id}",
            "object": "transcription.chunk",
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
        }


class SpokenShape(TranscriptionShape):
    """Format like gpt-4o-transcribe: plain answers and the end of streams report tokens."""

    has_done = False

    def token(self, index: int, step: "Step", produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        return [Event({"type": "transcript.text.delta", "delta": step.text})] if step.text else []

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:
        done = {"type": "transcript.text.done", "text": ends[0].text, "usage": self._usage(produced)}
        return [Event(done)]

    def _usage(self, produced: int) -> Document:
        read = self.job.prompt_tokens
        return {
            "type": "tokens",
            "total_tokens": read + produced,
            "input_tokens": read,
            "input_token_details": {
                "text_tokens": read - self.audio.tokens,
                "audio_tokens": self.audio.tokens,
            },
            "output_tokens": produced,
        }
