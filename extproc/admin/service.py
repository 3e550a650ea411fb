"""Run the admin's use cases over ports. A store's failure is a `StoreError`, an operator's mistake an
`AdminError`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta

from extproc.admin.applying import Planned, Progress, carry_out, no_progress, plan
from extproc.admin.change import Change, Changed
from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.explaining import Explanation, explanation_of, identity_of
from extproc.admin.exporting import Exported, exported
from extproc.admin.history import History
from extproc.admin.names import client_ip as address
from extproc.admin.names import named
from extproc.admin.replacing import replace_document
from extproc.admin.tenants import TenantLimits
from extproc.admin.usage import a_date
from extproc.admin.views import TenantView, policy_of
from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Subject
from extproc.core.quota.policies import Defaults
from extproc.core.request.addresses import IPV6_PREFIX
from extproc.core.request.endpoints import Endpoint
from extproc.ports.audit import AuditLog
from extproc.ports.counters import Counters
from extproc.ports.documents import Document
from extproc.ports.ledger import DailyUsage, UsageFilter, UsageReports
from extproc.ports.tenants import TenantStore

__all__ = ["MAX_ROWS", "Admin", "AdminError", "Explanation", "NotFoundError", "TenantView"]

# Reports are for people: a reader who wants more rows should use a filter.
MAX_ROWS = 10_000


class Admin:
    """Run use cases. Stateless. `limits` has those on tenants' limits, `history` those on the audit log."""

    def __init__(
        self,
        tenants: TenantStore,
        reports: UsageReports,
        counters: Counters,
        defaults: Defaults,
        now: Callable[[], datetime],
        *,
        audit: AuditLog,
        ipv6_prefix: int = IPV6_PREFIX,
    ) -> None:
        self.limits = TenantLimits(tenants, defaults, now)
        self.history = History(tenants, audit, now)
        self._tenants = tenants
        self._reports = reports
        self._counters = counters
        self._defaults = defaults
        self._now = now
        self._ipv6_prefix = ipv6_prefix

    async def apply(
        self,
        documents: Sequence[object],
        change: Change,
        *,
        prune: str | None = None,
        progress: Progress = no_progress,
    ) -> list[Planned]:
        """Replace the limits of tenants by whole documents: of none if one document can't be used.

        With `prune`, the documents become managed by that name, and others that are managed by it are deleted. A
        version may be named in each document; `if_version` of the change does not count.
        """
        now = self._now()
        planned = await plan(self._tenants, self._defaults, documents, now, prune=prune, progress=progress)
        if not change.dry_run:
            await carry_out(self._tenants, planned, change, now, progress=progress)
        return planned

    def export(self) -> AsyncIterator[Exported]:
        """Yield all tenants' documents as `apply` takes them back."""
        return exported(self._tenants)

    async def replace(self, document: Mapping[str, object], change: Change) -> Changed:
        """Replace the whole document of the tenant that it names, or create it."""
        return await replace_document(self._tenants, self._defaults, document, change, self._now())

    async def documents(self) -> list[Document]:
        """Return all tenants' documents as they are stored."""
        return await self._tenants.documents()

    async def daily(self, wanted: UsageFilter, at_most: int = MAX_ROWS) -> list[DailyUsage]:
        """Return daily usage, newest first. Raise `AdminError` for a filter that can't match anything."""
        return await self._reports.daily(checked_filter(wanted, self._ipv6_prefix), at_most)

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        """Return the ledger's entries, newest first. Raises as `daily`."""
        return await self._reports.entries(checked_filter(wanted, self._ipv6_prefix), at_most)

    def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        """Yield the whole ledger, oldest admission first. Raises as `daily`."""
        return self._reports.replay(checked_filter(wanted, self._ipv6_prefix))

    async def gone_before(self, wanted: UsageFilter) -> datetime | None:
        """Return the instant before which entries may be deleted, if the filter asks for any of them.

        Raises as `daily`.
        """
        since = checked_filter(wanted, self._ipv6_prefix).since
        gone = await self._reports.gone_before(self._now())
        if gone is None or since is None:
            return gone
        # A tenant's date begins up to 14 hours before that of UTC.
        first = datetime.combine(date.fromisoformat(since), time(), UTC) - timedelta(hours=14)
        return gone if first < gone else None

    async def explain(
        self,
        tenant: str,
        service_account: str,
        client_ip: str,
        *,
        model: str | None = None,
        endpoint: Endpoint | None = None,
    ) -> Explanation:
        """Return the limits that bind this identity now: used, held, remaining, reset."""
        identity = identity_of(tenant, service_account, client_ip, self._ipv6_prefix)
        subject = Subject(named("model", model) if model is not None else None, endpoint)
        document = await self._tenants.document(identity.tenant)
        policy, problem = policy_of(document, identity.tenant, self._defaults)
        return await explanation_of(
            self._counters, policy, identity, self._now(), subject, problem=problem, addressed=True
        )


def checked_filter(wanted: UsageFilter, ipv6_prefix: int = IPV6_PREFIX) -> UsageFilter:
    """Return the filter in the form in which usage is stored. Raise `AdminError`."""
    since, until = a_date("since", wanted.since), a_date("until", wanted.until)
    if since is not None and until is not None and since > until:
        raise AdminError(f"'since' ({since}) must not be after 'until' ({until})")
    for what, name in (("tenant", wanted.tenant), ("service account", wanted.service_account)):
        if name is not None:
            named(what, name)
    client_ip = address(wanted.client_ip, ipv6_prefix) if wanted.client_ip is not None else None
    return replace(wanted, client_ip=client_ip, since=since, until=until)
