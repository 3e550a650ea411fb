"""Answer KServe's protocols v1 and v2 for models that are no LLM: they count requests, and no tokens."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from extproc.local.model.errors import ApiError, Dialect, malformed
from extproc.local.model.ledger import Kind
from extproc.local.model.models import model_card
from extproc.local.model.service import Ready, Service, given, json_response, read_asked, read_json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from extproc.local.model.sending import Reply

_DEFAULT_VERSION = "1"


class PredictRequest(msgspec.Struct, frozen=True, kw_only=True):
    instances: list[Any] | None = None
    inputs: list[Any] | None = None


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    inputs: list[Tensor]
    id: str | None = None


async def predict(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    model = _served(service, request)
    _, instances = await read_json(request, PredictRequest, _instances)
    document = {"predictions": [_number(instance) for instance in instances]}
    return given(service, asked, Ready(Kind.PREDICT, model, document, dialect=Dialect.KSERVE))


async def infer(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    model = _served(service, request)
    parsed, outputs = await read_json(request, InferRequest, _outputs)
    document = {
        "model_name": model,
        "model_version": request.path_params.get("version", _DEFAULT_VERSION),
        "id": parsed.id or asked.request_id,
        "parameters": None,
        "outputs": outputs,
    }
    return given(service, asked, Ready(Kind.INFER, model, document, dialect=Dialect.KSERVE))


async def model_status(service: Service, request: "Request") -> "Response":
    """Answer ``GET /v1/models/{name}`` with KServe's fields and those that OpenAI's clients need."""
    model = _served(service, request)
    card = model_card(model, service.planner.max_model_len, service.created)
    return json_response({"name": model, "ready": True} | card)


async def model_metadata(service: Service, request: "Request") -> "Response":
    tensor = {"datatype": "FP64", "shape": [-1]}
    return json_response(
        {
            "name": _served(service, request),
            "versions": [_DEFAULT_VERSION],
            "platform": "sample",
            "inputs": [{"name": "input-0"} | tensor],
            "outputs": [{"name": "output-0"} | tensor],
        }
    )


async def model_ready(service: Service, request: "Request") -> "Response":
    return json_response({"name": _served(service, request), "ready": True})


async def server_ready(_: Service, __: "Request") -> "Response":
    return json_response({"ready": True})


async def server_live(_: Service, __: "Request") -> "Response":
    return json_response({"live": True})


def _served(service: Service, request: "Request") -> str:
    name: str = request.path_params["name"]
    if name not in service.planner.models:
        message = f"Model with name {name} does not exist."
        raise ApiError(message, status=HTTPStatus.NOT_FOUND, kind="NotFoundError", param="model")
    return name


def _instances(request: PredictRequest) -> list[Any]:
    instances = request.inputs if request.instances is None else request.instances
    if instances is None:
        raise malformed('Expected key "instances" or "inputs" in request body', "instances")
    return instances


def _outputs(request: InferRequest) -> list[dict[str, Any]]:
    return [
        {
            "name": f"output-{index}",
            "shape": [len(tensor.data)],
            "datatype": "FP64",
            "parameters": None,
            "data": [_number(row) for row in tensor.data],
        }
        for index, tensor in enumerate(request.inputs)
    ]


def _number(value: Any) -> float:
    """Compute the model's result for a value: the sum of its numbers."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 2**53 else 0.0
    if isinstance(value, list):
        return sum(map(_number, value))
    if isinstance(value, dict):
        return sum(map(_number, value.values()))
    return 0.0
