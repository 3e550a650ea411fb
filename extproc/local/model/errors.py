"""Errors as the protocols word them: OpenAI's, Anthropic's and KServe's."""

from enum import Enum, auto
from http import HTTPStatus


class Dialect(Enum):
    """Whose words an error is told in."""

    OPENAI = auto()
    ANTHROPIC = auto()
    KSERVE = auto()


class ApiError(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: The HTTP status, 400 or above.
        kind: The ``type`` of the error body.
        param: The request field at fault, if it is one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    def body(self, dialect: Dialect) -> dict[str, object]:
        match dialect:
            case Dialect.ANTHROPIC:
                return {"type": "error", "error": {"type": self.kind, "message": self.message}}
            case Dialect.KSERVE:
                return {"error": self.message}
            case Dialect.OPENAI:
                error = {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": int(self.status),
                }
                return {"error": error}


def dialect_of(path: str) -> Dialect:
    """Whose words the clients of a path understand."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith(("/v2/models", "/v2/health", "/v1/models/")):
        return Dialect.KSERVE
    return Dialect.OPENAI


def malformed(message: str, param: str | None = None) -> ApiError:
    """A body that is not the request it should be: vLLM names these by the phrase of the status."""
    return ApiError(message, kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def unfit(message: str, param: str, value: int) -> ApiError:
    """A well-formed request that asks for what the model cannot do."""
    return ApiError(f"{message} (parameter={param}, value={value})", param=param)
