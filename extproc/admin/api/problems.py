"""Answer errors as RFC 9457 describes them (`application/problem+json`)."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from extproc.admin.access import ForbiddenError
from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.ports.base import StoreError
from extproc.ports.reports import SlowReportError

MEDIA_TYPE: Final = "application/problem+json"
_PREFIX: Final = "urn:tokenweir:problem:"
# Messages of the use cases name the field first, or after the tenant.
_FIELD: Final = re.compile(
    r"^(?:tenant '[^']*': |document \d+: )?'([A-Za-z_$][\w$.\[\]+-]*)'(?! is no IP address)"
)
_BREVITY: Final = 2000


class Problem(Exception):  # noqa: N818 - the RFC's word
    """Report an error to the caller. `kind` ends the URI of its type, `field` names the field that is wrong."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """Describe an error: RFC 9457. `field` names the parameter or the field of the body that is wrong."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    field: str | None = None


def document_of(problem: Problem, request_id: str) -> bytes:
    """Return the body that reports a problem."""
    detail = problem.detail if len(problem.detail) <= _BREVITY else problem.detail[:_BREVITY] + "..."
    return msgspec.json.encode(
        ProblemDocument(
            type=_PREFIX + problem.kind,
            title=problem.status.phrase,
            status=problem.status.value,
            detail=detail,
            request_id=request_id,
            field=problem.field,
        )
    )


def problem_of(error: Exception) -> Problem | None:
    """Return how an error of a use case or a store is reported; None: it is a fault of the program."""
    match error:
        case Problem():
            return error
        case StaleVersionError():
            return Problem(HTTPStatus.PRECONDITION_FAILED, "stale-version", str(error))
        case NotFoundError():
            return Problem(HTTPStatus.NOT_FOUND, "not-found", str(error))
        case ForbiddenError():
            return Problem(HTTPStatus.FORBIDDEN, "forbidden", str(error))
        case AdminError():
            return invalid(str(error))
        case SlowReportError():
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too-slow", str(error))
        case StoreError(transient=False):
            return Problem(HTTPStatus.BAD_GATEWAY, "store-refused", str(error))
        case StoreError():
            headers = {"retry-after": "1"}
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable", str(error), headers=headers)
    return None


def invalid(detail: str, field: str | None = None) -> Problem:
    """Return the problem of an input that can't be used. Without `field`, the message may name it."""
    found = _FIELD.match(detail)
    return Problem(
        HTTPStatus.BAD_REQUEST, "invalid", detail, field=field or (found[1] if found is not None else None)
    )
