"""Errors as the OpenAI protocol words them."""

from http import HTTPStatus


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

    @property
    def body(self) -> dict[str, object]:
        return error_body(self.message, self.kind, self.status, self.param)


def error_body(message: str, kind: str, status: HTTPStatus, param: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": int(status)}}


def malformed(message: str, param: str | None = None) -> ApiError:
    """A body that is not the request it should be: vLLM names these by the phrase of the status."""
    return ApiError(message, kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def unfit(message: str, param: str, value: int) -> ApiError:
    """A well-formed request that asks for what the model cannot do."""
    return ApiError(f"{message} (parameter={param}, value={value})", param=param)
