"""Answer POST /v1/messages and /v1/messages/count_tokens: Anthropic's API in vLLM's dialect."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from extproc.local.model import usage
from extproc.local.model.api import ChatMessage, GenerationRequest, countable
from extproc.local.model.errors import ApiError, Dialect, malformed
from extproc.local.model.events import Document, Event, typed
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Job, Planner, Wanted
from extproc.local.model.service import Ready, Service, generated, given, read_asked, read_json
from extproc.local.model.shapes import ChoiceEnd, Shape

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.generator import Step
    from extproc.local.model.sending import Reply
    from extproc.local.model.tokenizer import Message


class CountRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: list[ChatMessage]
    system: str | list[str | dict[str, Any]] | None = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None


async def message(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    _, job = await read_json(request, MessagesRequest, partial(_plan, service.planner))
    return generated(service, asked, job, MessagesShape)


async def count_tokens(service: Service, request: "Request") -> "Reply":
    """Count a prompt without answering it. This costs nothing."""
    asked = read_asked(request)
    parsed, tokens = await read_json(request, CountRequest, partial(_count, service.planner))
    counted = {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
    return given(service, asked, Ready(Kind.TOKENIZE, parsed.model, counted, dialect=Dialect.ANTHROPIC))


def _plan(planner: Planner, request: MessagesRequest) -> Job:
    planner.check_model(request.model)
    stop = tuple(request.stop_sequences or ())
    wanted = Wanted(request.max_tokens, "max_tokens", stop, "stop_sequences")
    prompt = planner.conversation(request, _turns(request), wanted)
    return Job(Kind.MESSAGES, request.model, (prompt,), stream=bool(request.stream))


def _count(planner: Planner, request: CountRequest) -> int:
    planner.check_model(request.model)
    return planner.tokenizer.count_chat(_turns(request))


def _turns(request: CountRequest) -> "list[Message]":
    if not request.messages:
        raise malformed("messages must have at least one message", "messages")
    system = [ChatMessage("system", request.system)] if request.system else []
    return [countable(turn) for turn in (*system, *request.messages)]


@dataclass
class MessagesShape(Shape):
    # Two events open a stream; then there is one per token.
    strike_after: ClassVar[int] = 4
    has_done: ClassVar[bool] = False
    dialect: ClassVar[Dialect] = Dialect.ANTHROPIC

    in_block: bool = False

    def opening(self) -> list[Event]:
        # vLLM does not know the cached part at the start: the whole prompt counts as input until the end.
        told = {"input_tokens": self.job.prompt_tokens, "output_tokens": 0}
        document = self._message() | {"stop_reason": None, "stop_sequence": None, "usage": told}
        return [typed("message_start", message=document)]

    def token(self, index: int, step: "Step", produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        if not step.text:
            return []
        events = []
        if not self.in_block:
            self.in_block = True
            events.append(typed("content_block_start", content_block={"type": "text", "text": ""}, index=0))
        delta = {"type": "text_delta", "text": step.text}
        return [*events, typed("content_block_delta", delta=delta, index=0)]

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:
        block = [typed("content_block_stop", index=0)] if self.in_block else []
        told = usage.messages(self.job.prompt_tokens, produced, self.job.details)
        return [*block, typed("message_delta", delta=_stopped(ends[0]), usage=told), typed("message_stop")]

    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document:
        text = ends[0].text
        # As in vLLM, without fields that are null.
        stopped = {key: value for key, value in _stopped(ends[0]).items() if value is not None}
        told = usage.messages(self.job.prompt_tokens, produced, self.job.details)
        content = [{"type": "text", "text": text}] if text else []
        return self._message() | {"content": content} | stopped | {"usage": told}

    def failed(self, error: ApiError) -> Event:
        return Event(error.body(self.dialect), "error")

    def _message(self) -> Document:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.job.model,
        }


def _stopped(end: ChoiceEnd) -> Document:
    if end.stop_reason is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stop_reason}
    reason = "max_tokens" if end.finish_reason == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}
