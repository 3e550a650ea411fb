"""Describe one operation of the admin API, and one call of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from extproc.admin.access import Caller, Role
from extproc.admin.api.services import Services
from extproc.admin.change import MAX_NOTE_CHARS, Change

Q = TypeVar("Q")

# A page of the API is smaller than what a use case allows: an answer stays below a few MB.
MAX_ROWS: Final = 1000
JSON: Final = "application/json"


class Tenancy(StrEnum):
    """Say how an operation is bound to tenants, for callers who may see some tenants only."""

    PATH = "path"  # the tenant in its path: those of others are not found
    QUERY = "query"  # the parameter `tenant`: those of others are not found, and one must be named
    ROWS = "rows"  # all tenants: the rows of others are left out
    NONE = "none"  # nothing in it is of a tenant
    ALL = "all"  # all tenants at once: only for callers who may see all


class Parameters(Struct, kw_only=True, forbid_unknown_fields=True):
    """Declare the parameters of a query."""


class Paged(Parameters, kw_only=True):
    """Ask for one page of rows."""

    at_most: Annotated[int, Meta(ge=1, le=MAX_ROWS, description="Rows at most.")] = 100
    cursor: Annotated[str, Meta(max_length=4096, description="The `cursor` of the page before.")] | None = None


class Writing(Parameters, kw_only=True):
    """Say how something is written."""

    dry_run: Annotated[bool, Meta(description="Return the changes, and write nothing.")] = False
    note: (
        Annotated[str, Meta(max_length=MAX_NOTE_CHARS, description="Why; it is kept in the audit log.")] | None
    ) = None


@dataclass(frozen=True, slots=True)
class Call:
    """Hold what a caller asks of an operation, checked.

    `path` has the texts in the path, `query` and `body` are of the operation's types, `change` is set where
    something is written.
    """

    services: Services
    caller: Caller
    path: Mapping[str, str]
    query: Any
    body: Any = None
    change: Change | None = None
    key: str | None = None

    @property
    def tenant(self) -> str:
        """Return the tenant in the path."""
        return self.path["tenant"]

    @property
    def writing(self) -> Change:
        """Return how something is written."""
        if self.change is None:
            raise RuntimeError("the operation writes nothing")
        return self.change


@dataclass(frozen=True, slots=True)
class Reply:
    """Hold the answer: a result that becomes JSON, or `text` of another media type. `version` becomes the ETag."""

    result: object = None
    version: int | None = None
    status: HTTPStatus = HTTPStatus.OK
    text: bytes | None = None
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Operation:
    """Describe an operation.

    `least` is the least role that may call it. `query`, `body` and `result` are the types of the parameters, of
    the body and of the answer. A `body` that is `free` is checked, and given as it came: null is not the same as
    missing. `versioned` operations change a tenant's document; with `versioned_answer` only the answer has its
    version. With `repeated`, an `Idempotency-Key` names what is made, and `repeated` returns the answer if it was
    made before. `also` has further media types of the answer.
    """

    id: str
    method: str
    path: str
    summary: str
    least: Role
    tenancy: Tenancy
    handler: Handler
    result: Any
    query: type[Parameters] = Parameters
    body: Any = None
    free: bool = False
    versioned: bool = False
    versioned_answer: bool = False
    also: tuple[str, ...] = ()
    repeated: Callable[[Call, str], Awaitable[Reply | None]] | None = None
    tag: str = ""
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.path.strip("/").split("/")))

    def takes(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """Return the texts in a path of this operation; None: it is the path of another one."""
        if len(segments) != len(self.segments):
            return None
        found: dict[str, str] = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{"):
                found[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return found

    @property
    def keyed(self) -> bool:
        """Return whether an `Idempotency-Key` names what is made."""
        return self.repeated is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the parts of the path."""
        return tuple(each[1:-1] for each in self.segments if each.startswith("{"))

    @property
    def lists(self) -> frozenset[str]:
        """Return the parameters of the query that may be repeated."""
        fields = msgspec.structs.fields(self.query)
        return frozenset(each.encode_name for each in fields if _is_list(msgspec.inspect.type_info(each.type)))


def _is_list(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _is_list(kind.type)
    return isinstance(kind, msgspec.inspect.ListType)
