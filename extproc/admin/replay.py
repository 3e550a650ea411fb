"""Replay the ledger against proposed limits."""

from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from extproc.admin.applying import refuse_twice
from extproc.admin.errors import AdminError
from extproc.admin.views import policy_of
from extproc.core.quota.binding import Policy
from extproc.core.quota.ledger import Entry
from extproc.core.quota.models import Models
from extproc.core.quota.policies import BadDocument, Defaults, policy_from
from extproc.core.quota.simulation import Simulation
from extproc.core.quota.simulation_report import Report, Toll, Who, shadow_report
from extproc.core.request.identity import TenantId
from extproc.ports.documents import AMOUNTS, BOOKKEEPING, FIELDS, Document

# The fields that defaults can have: no service accounts, and nothing that expires.
_DEFAULT_FIELDS: Final = frozenset({*AMOUNTS, "limits", "mode", "shadows", "timezone", "unlimited", "note"})
_TOLD_EVERY: Final = 5000


@dataclass(slots=True)
class Proposal:
    """Hold proposed limits: of the named tenants, of tenants that keep their stored limits, and of all others."""

    defaults: Defaults
    named: Mapping[TenantId, Policy]
    stored: dict[TenantId, Document] = field(default_factory=dict)
    problems: dict[TenantId, str] = field(default_factory=dict)
    _others: dict[TenantId, Policy] = field(default_factory=dict)

    def policy(self, tenant: TenantId) -> Policy:
        """Return the tenant's proposed policy. Stored limits that can't be used are noted in `problems`."""
        found = self.named.get(tenant) or self._others.get(tenant)
        if found is None:
            found, problem = policy_of(self.stored.get(tenant), tenant, self.defaults)
            if problem is not None:
                self.problems[tenant] = problem
            self._others[tenant] = found
        return found

    def keep(self, documents: Sequence[Document]) -> None:
        """Use stored documents for the tenants without a proposal."""
        self.stored = {TenantId(str(document.get("tenant_id", ""))): document for document in documents}


def proposal_from(value: object, defaults: Defaults) -> Proposal:
    """Read `{default: ..., tenants: [...]}`, a list of documents, or one document.

    Raise `AdminError` with a line for each that can't be used.
    """
    if isinstance(value, Mapping) and "tenant_id" not in value:
        _refuse_others(value, {"default", "tenants"}, "", "give 'tenant_id', or 'default' and 'tenants'")
        proposed = _defaults(value.get("default"), defaults)
        documents = value.get("tenants")
    else:
        proposed, documents = defaults, value if isinstance(value, list) else [value]
    if documents is not None and not isinstance(documents, list):
        raise AdminError("'tenants' must be a list of documents")
    named: dict[TenantId, Policy] = {}
    problems: list[str] = []
    for number, document in enumerate(documents or [], start=1):
        try:
            policy = _policy(document, f"document {number}", proposed)
            refuse_twice(policy.tenant, named)
            named[policy.tenant] = policy
        except AdminError as error:
            problems.append(str(error))
    if problems:
        raise AdminError("\n".join(problems))
    if not named and proposed is defaults:
        raise AdminError("no limits are proposed in it")
    return Proposal(proposed, named)


async def simulate(
    entries: AsyncIterable[Entry], proposal: Proposal, models: Models, progress: Callable[[int], None]
) -> Report:
    """Replay entries, oldest admission first. `progress` is called now and then with the number of entries."""
    simulation = Simulation(proposal.policy, models)
    taken = 0
    async for entry in entries:
        simulation.take(entry)
        taken += 1
        if not taken % _TOLD_EVERY:
            progress(taken)
    return simulation.finish()


async def shadowed(entries: AsyncIterable[Entry], progress: Callable[[int], None]) -> Report:
    """Report the denials that the active shadow limits really counted, in the same form."""
    report, taken = Report(), 0
    async for entry in entries:
        shadow_report(report, entry)
        taken += 1
        if not taken % _TOLD_EVERY:
            progress(taken)
    return report


def ranked(report: Report) -> list[tuple[Who, Toll]]:
    """Return the denied callers, those with the most tokens first."""
    return sorted(
        report.tolls.items(),
        key=lambda row: (
            -row[1].tokens,
            -row[1].requests,
            row[0].tenant,
            row[0].service_account,
            row[0].client_ip,
            row[0].limit,
        ),
    )


def _defaults(value: object, defaults: Defaults) -> Defaults:
    if value is None:
        return defaults
    if not isinstance(value, Mapping):
        raise AdminError("'default' must be an object of limits")
    _refuse_others(value, _DEFAULT_FIELDS, "default.", f"use {', '.join(sorted(_DEFAULT_FIELDS))}")
    policy = policy_from({**value, "tenant_id": "default"}, defaults)
    if isinstance(policy, BadDocument):
        raise AdminError(f"'default': {policy.message}")
    return Defaults(policy.limits, policy.zone)


def _policy(document: object, what: str, defaults: Defaults) -> Policy:
    if not isinstance(document, Mapping) or not all(isinstance(name, str) for name in document):
        raise AdminError(f"{what}: must be an object with 'tenant_id' and limits")
    read = policy_from(document, defaults)
    whose = f"tenant '{read.tenant}'" if read.tenant is not None else what
    if isinstance(read, BadDocument):
        raise AdminError(f"{whose}: {read.message}")
    _refuse_others(document, FIELDS | BOOKKEEPING, "", f"use {', '.join(sorted(FIELDS))}", f"{whose}: ")
    return read


def _refuse_others(
    value: Mapping[object, object], known: frozenset[str] | set[str], path: str, fix: str, whose: str = ""
) -> None:
    for name in value:
        if name not in known:
            raise AdminError(f"{whose}'{path}{name}' is no field here: {fix}")
