"""Serve what a caller may know about itself."""

from msgspec import Struct

from extproc.admin.access import Role
from extproc.admin.api.operation import Call, Operation, Reply, Tenancy
from extproc.ports.audit import ActorKind


class Me(Struct):
    """Describe the caller. `tenants` null: all of them."""

    name: str
    kind: ActorKind
    role: Role
    tenants: list[str] | None


async def me(call: Call) -> Reply:
    caller = call.caller
    tenants = sorted(caller.tenants) if caller.tenants is not None else None
    return Reply(Me(caller.actor.name, caller.actor.kind, caller.role, tenants))


OPERATIONS = (
    Operation(
        "me", "GET", "/v1/me", "Show who you are to this API, and what you may see.",
        Role.VIEWER, Tenancy.NONE, me, Me, tag="callers",
    ),
)  # fmt: skip
