"""Define who calls the admin side: an actor, with a role, for all tenants or for named ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.names import tenant_id
from extproc.ports.audit import Actor

# A caller with more tenants than these has the role of a viewer for all of them.
MAX_TENANTS: Final = 100


class Role(StrEnum):
    """List the roles, the least one first. Each may do what those before it may."""

    VIEWER = "viewer"  # reads
    TEAM_LEAD = "team-lead"  # also changes the service accounts of named tenants
    ADMIN = "admin"  # also changes everything else, of all tenants

    def covers(self, least: "Role") -> bool:
        """Return whether this role may do what `least` may."""
        order = list(Role)
        return order.index(self) >= order.index(least)


class ForbiddenError(AdminError):
    """Report that the caller's role does not allow it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Hold a role, and the tenants that it is for; None: all of them."""

    role: Role
    tenants: frozenset[str] | None = None

    @classmethod
    def checked(cls, role: Role, tenants: Iterable[str] | None) -> Self:
        """Return the grant. Raise `AdminError` if role and tenants do not fit together.

        An admin is for all tenants, a team lead for named ones; a viewer may be either.
        """
        names = frozenset(tenant_id(name) for name in tenants) if tenants is not None else None
        if role is Role.ADMIN and names is not None:
            raise AdminError("the role 'admin' is for all tenants: name no 'tenants'")
        if role is Role.TEAM_LEAD and names is None:
            raise AdminError("the role 'team-lead' is for named tenants: name its 'tenants'")
        if names is not None and not 0 < len(names) <= MAX_TENANTS:
            raise AdminError(f"'tenants' must be 1 to {MAX_TENANTS} names")
        return cls(role, names)


@dataclass(frozen=True, slots=True)
class Caller:
    """Hold who calls, and what it may do."""

    actor: Actor
    grant: Grant

    @property
    def role(self) -> Role:
        return self.grant.role

    @property
    def tenants(self) -> frozenset[str] | None:
        return self.grant.tenants

    def sees(self, tenant: str) -> bool:
        """Return whether the tenant is among those of the caller."""
        return self.tenants is None or tenant in self.tenants

    def require(self, least: Role) -> None:
        """Raise `ForbiddenError` if the caller's role is less than `least`."""
        if not self.role.covers(least):
            raise ForbiddenError(f"this needs the role '{least}'; yours is '{self.role}'")

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFoundError` for a tenant that is not the caller's: nobody learns the names of others."""
        if not self.sees(tenant):
            raise NotFoundError(f"tenant '{tenant}' is not known")
