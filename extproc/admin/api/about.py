"""Serve what a caller may know about itself, and about the deployment."""

from msgspec import Struct

from extproc.admin.access import Role
from extproc.admin.api.operation import Call, Operation, Reply, Tenancy
from extproc.admin.doctor import is_sound
from extproc.admin.findings import Finding
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


class Health(Struct):
    """Hold what a check of the stores found. `sound`: nothing is an error."""

    sound: bool
    findings: list[Finding]


async def health(call: Call) -> Reply:
    findings = await call.services.doctor.stores()
    return Reply(Health(is_sound(findings), findings))


OPERATIONS = (
    Operation(
        "me", "GET", "/v1/me", "Show who you are to this API, and what you may see.",
        Role.VIEWER, Tenancy.NONE, me, Me, tag="callers",
    ),
    Operation(
        "checkHealth", "GET", "/v1/health", "Check stores, clocks and the journal; each finding has its fix.",
        Role.VIEWER, Tenancy.ALL, health, Health, tag="health",
    ),
)  # fmt: skip
