"""Number the outcomes of gRPC calls, and let a handler end a call with one of them."""

from enum import IntEnum


class Status(IntEnum):
    """Number the outcome of a call, as gRPC does."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RefusedError(Exception):
    """End a call with a status that is not OK, and with a text for the caller."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
