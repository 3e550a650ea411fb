"""Answer POST /v1/responses: OpenAI's Responses API in vLLM's dialect."""

from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from extproc.local.model import usage
from extproc.local.model.api import ChatMessage, GenerationRequest, countable
from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.events import Document, Event
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Job, Planner, Wanted
from extproc.local.model.service import Service, generated, read_asked, read_json
from extproc.local.model.shapes import ChoiceEnd, Shape, new_request_id
from extproc.local.model.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from extproc.local.model.generator import Step
    from extproc.local.model.sending import Reply


class ResponsesRequest(GenerationRequest, frozen=True, kw_only=True):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[Any] | None = None
    metadata: dict[str, Any] | None = None


async def respond(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, job = await read_json(request, ResponsesRequest, partial(_plan, service.planner))
    return generated(service, asked, job, partial(ResponsesShape, request=parsed))


def _plan(planner: Planner, request: ResponsesRequest) -> Job:
    planner.check_model(request.model)
    given = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    messages = [_message(item) for item in given]
    if request.instructions and messages:
        messages.insert(0, Message("system", request.instructions))
    wanted = Wanted(request.max_output_tokens, "max_output_tokens")
    prompt = planner.conversation(request, messages, wanted, "input")
    return Job(Kind.RESPONSES, request.model, (prompt,), stream=bool(request.stream))


def _message(item: Document) -> Message:
    role, content = item.get("role"), item.get("content", item.get("output"))
    if not isinstance(role, str):
        # A tool call, its output or a reasoning item: no turn of the template.
        text = content if isinstance(content, str) else ""
        return Message(str(item.get("type", "")), text, plain=False)
    if not isinstance(content, str | list) or not all(isinstance(part, str | dict) for part in content):
        raise malformed("An input message needs text or content parts", "input")
    return countable(ChatMessage(role, content), "input")


@dataclass(kw_only=True)
class ResponsesShape(Shape):
    # Four events open a stream; then there is one per token.
    strike_after: ClassVar[int] = 6
    has_done: ClassVar[bool] = False

    request: ResponsesRequest
    numbers: "Iterator[int]" = field(default_factory=count)
    item_id: str = field(default_factory=lambda: f"msg_{new_request_id()}")

    def preamble(self) -> list[Event]:
        created = self._response("in_progress")
        names = ("response.created", "response.in_progress")
        return [self._event(name, response=created) for name in names]

    def opening(self) -> list[Event]:
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return [
            self._event("response.output_item.added", item=self._item("in_progress"), output_index=0),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def token(self, index: int, step: "Step", produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        if not step.text:
            return []
        return [self._event("response.output_text.delta", **self._place(), delta=step.text, logprobs=[])]

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:
        text = ends[0].text
        item = self._item("completed", text)
        return [
            self._event("response.output_text.done", **self._place(), logprobs=[], text=text),
            self._event("response.content_part.done", **self._place(), part=_part(text)),
            self._event("response.output_item.done", item=item, output_index=0),
            # vLLM uses this name for a cut answer too; OpenAI would send response.incomplete.
            self._event("response.completed", response=self.whole(ends, produced)),
        ]

    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document:
        cut = ends[0].finish_reason == "length"
        response = self._response("incomplete" if cut else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["output"] = [self._item("completed", ends[0].text)]
        response["usage"] = usage.responses(self.job.prompt_tokens, produced, self.job.details)
        return response

    def failed(self, error: ApiError) -> Event:
        return self._event("error", code=error.kind, message=error.message, param=error.param)

    def _event(self, name: str, **fields: Any) -> Event:
        document = {"sequence_number": next(self.numbers), "type": name, **fields}
        # vLLM sorts the fields of an event by name.
        return Event(dict(sorted(document.items())), name)

    def _place(self) -> Document:
        return {"content_index": 0, "item_id": self.item_id, "output_index": 0}

    def _item(self, status: str, text: str | None = None) -> Document:
        return {
            "id": self.item_id,
            "content": [] if text is None else [_part(text)],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _response(self, status: str) -> Document:
        request = self.request
        return {
            "id": f"resp_{self.request_id}",
            "created_at": self.created,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata,
            "model": self.job.model,
            "object": "response",
            "output": [],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto" if request.tools else "none",
            "tools": request.tools or [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": request.max_output_tokens or self.job.prompts[0].sampling.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _part(text: str) -> Document:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
