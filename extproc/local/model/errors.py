"""Define errors in the formats of OpenAI, Anthropic and KServe."""

from enum import Enum, auto
from http import HTTPStatus


class Dialect(Enum):
    """Select the format of an error."""

    OPENAI = auto()
    ANTHROPIC = auto()
    KSERVE = auto()


class ApiError(Exception):
    """Report a request that gets an error as its answer.

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
    """Return the error format that the clients of a path understand."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith(("/v2/models", "/v2/health", "/v1/models/")):
        return Dialect.KSERVE
    return Dialect.OPENAI


def malformed(message: str, param: str | None = None) -> ApiError:
    """Return the error for a malformed body. vLLM's error type is the phrase of the status."""
    return ApiError(message, kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def unfit(message: str, param: str, value: int) -> ApiError:
    """Return the error for a well-formed request that the model can't serve."""
    return ApiError(f"{message} (parameter={param}, value={value})", param=param)
