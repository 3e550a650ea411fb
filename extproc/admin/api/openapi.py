"""Describe the operations as OpenAPI 3.1."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

import extproc
from extproc.admin.api.operation import JSON, Operation
from extproc.admin.api.problems import MEDIA_TYPE, ProblemDocument
from extproc.core.request.identity import MAX_NAME_CHARS

_REFERENCE: Final = "#/components/schemas/{name}"
_NAME: Final = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS}
_DESCRIPTION: Final = """\
Every error is `application/problem+json` (RFC 9457) with a `request_id`. Every list has `at_most` and a `cursor`.
What changes a tenant needs its version: `If-Match` with the `ETag` of an answer (`*`: whatever it is), or
`If-None-Match: *` to create it. `dry_run=true` returns the changes and writes nothing. `x-role` is the least role
of an operation, `x-tenancy` how it is bound to tenants: callers with named tenants see those, and no others.
"""
_ERRORS: Final = {
    HTTPStatus.BAD_REQUEST: "A parameter or the body can't be used; `field` names it.",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it proves nothing.",
    HTTPStatus.FORBIDDEN: "The role does not allow it.",
    HTTPStatus.NOT_FOUND: "It does not exist, or is of a tenant that the caller may not see.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests: wait for `retry-after` seconds.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault; the log has it by the request id.",
    HTTPStatus.BAD_GATEWAY: "A store refused it for good.",
    HTTPStatus.SERVICE_UNAVAILABLE: "A store can't be reached.",
}
_VERSION_ERRORS: Final = {
    HTTPStatus.PRECONDITION_FAILED: "The tenant has another version than the one in the request.",
    HTTPStatus.PRECONDITION_REQUIRED: "If-Match or If-None-Match is missing.",
}


_BODY_ERRORS: Final = {
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is no JSON.",
}
_KEY_ERRORS: Final = {HTTPStatus.CONFLICT: "The Idempotency-Key was used for something else."}


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document."""
    kinds = [ProblemDocument, *(kind for each in operations for kind in _kinds(each))]
    found, components = msgspec.json.schema_components(kinds, schema_hook=_any, ref_template=_REFERENCE)
    schemas = {id(kind): schema for kind, schema in zip(kinds, found, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, schemas, components)
    used = {name: components[name] for name in sorted(components) if name not in _queries(operations)}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Tokenweir admin API", "version": extproc.__version__, "description": _DESCRIPTION},
        "security": [{"bearer": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": used,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `tokenweir admin token issue`, or a JWT of the configured issuer. "
                    "Behind a gateway that verifies JWTs, the former is sent as `Authorization: Token twa_...`.",
                }
            },
        },
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def _any(kind: type) -> dict[str, Any]:
    """Return the schema of what may be anything: a value of a document."""
    if kind is not object:
        raise NotImplementedError
    return {"description": "Any value of JSON."}


def _kinds(operation: Operation) -> Iterable[Any]:
    yield operation.query
    yield operation.result
    if operation.body is not None:
        yield operation.body


def _queries(operations: Iterable[Operation]) -> frozenset[str]:
    return frozenset(each.query.__name__ for each in operations)


def _operation(operation: Operation, schemas: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "x-role": operation.least.value,
        "x-tenancy": operation.tenancy.value,
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation, components),
            *_headers(operation),
        ],
        "responses": _responses(operation, schemas),
    }
    if operation.body is not None:
        content = {JSON: {"schema": schemas[id(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": _NAME} for name in operation.names]


def _query_parameters(operation: Operation, components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components[operation.query.__name__]
    parameters = []
    for name, found in schema["properties"].items():
        described = _without_null(dict(found))
        text = described.pop("description", None)
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                **({"description": text} if text is not None else {}),
                "schema": described,
            }
        )
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter: one that is absent has no null."""
    if schema.get("default", "") is None:
        del schema["default"]
    others = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(others) == 1:
        del schema["anyOf"]
        schema |= others[0]
    return schema


def _headers(operation: Operation) -> list[dict[str, Any]]:
    headers = []
    if operation.versioned:
        headers += [
            _header(
                "If-Match", 'The ETag of the tenant, such as "7"; `*`: whatever it is.', r'^(\*|"[0-9]{1,15}")$'
            ),
            _header("If-None-Match", "`*`: the tenant must not exist yet.", r"^\*$"),
            _header("X-Tokenweir-Note", "Why; the same as the parameter `note`.", r"^[!-~]([ -~]*[!-~])?$"),
        ]
    if operation.keyed:
        headers.append(
            _header("Idempotency-Key", "Names what is made: a repeated request makes nothing.", r"^[!-~]{1,64}$")
        )
    return headers


def _header(name: str, description: str, pattern: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern, "maxLength": 200}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _responses(operation: Operation, schemas: dict[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schemas[id(operation.result)]}}
    content |= {media_type: {"schema": {"type": "string"}} for media_type in operation.also}
    about: dict[str, Any] = {"description": "Done.", "content": content}
    headers = {"x-request-id": {"schema": {"type": "string"}}}
    etag = {"ETag": {"schema": {"type": "string"}}} if operation.versioned or operation.versioned_answer else {}
    responses = {"200": {**about, "headers": headers | etag}}
    errors = _ERRORS | (_VERSION_ERRORS if operation.versioned else {})
    errors |= _BODY_ERRORS if operation.body is not None else {}
    errors |= _KEY_ERRORS if operation.keyed else {}
    problem = {"schema": schemas[id(ProblemDocument)]}
    for status, text in sorted(errors.items()):
        responses[str(status.value)] = {"description": text, "content": {MEDIA_TYPE: problem}, "headers": headers}
    return responses
