"""Answer POST /v1/chat/completions and /v1/completions."""

from typing import TYPE_CHECKING

from extproc.local.model.api import ChatRequest, CompletionRequest
from extproc.local.model.service import Service, generated, read_asked, read_json
from extproc.local.model.shapes import ChatShape, CompletionShape

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.sending import Reply


async def chat(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    _, job = await read_json(request, ChatRequest, service.planner.chat)
    return generated(service, asked, job, ChatShape)


async def completion(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    _, job = await read_json(request, CompletionRequest, service.planner.completion)
    return generated(service, asked, job, CompletionShape)
