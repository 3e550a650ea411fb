"""Report usage: sums of the ledger by tenant, caller, model and endpoint, in tokens and money."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Final

from extproc.admin.errors import AdminError
from extproc.admin.names import client_ip as address
from extproc.admin.names import named, tenant_id
from extproc.admin.paging import MAX_PAGE, Page, checked_page, cursor_of, key_of
from extproc.admin.views import policy_of
from extproc.core.quota.policies import Defaults
from extproc.core.request.addresses import IPV6_PREFIX
from extproc.core.request.endpoints import Endpoint
from extproc.ports.reports import By, Grain, Measure, Place, ReportFilter, RollupRepair, Sums, UsageRow, UsageSums
from extproc.ports.tenants import TenantStore

# Rows per model of one tenant or service account: more are for a report.
_MODELS: Final = 20
_CALLERS: Final = (By.SERVICE_ACCOUNT, By.CLIENT_IP)


@dataclass(frozen=True, slots=True)
class UsageNow:
    """Hold what a tenant, or one of its service accounts, uses: today and this month by the tenant's clock.

    `models` has the largest ones of this month.
    """

    tenant: str
    service_account: str | None
    date: str
    month: str
    today: Sums
    this_month: Sums
    models: tuple[UsageRow, ...]


class UsageAdmin:
    """Run the use cases on usage reports. Stateless.

    Every call raises `AdminError` for a filter that can't match anything, `StoreError`, and `SlowReportError` for
    a report that took too long.
    """

    def __init__(
        self,
        sums: UsageSums,
        tenants: TenantStore,
        defaults: Defaults,
        now: Callable[[], datetime],
        *,
        ipv6_prefix: int = IPV6_PREFIX,
    ) -> None:
        self._sums = sums
        self._tenants = tenants
        self._defaults = defaults
        self._now = now
        self._ipv6_prefix = ipv6_prefix

    async def report(
        self, by: By, grain: Grain, wanted: ReportFilter, at_most: int = MAX_PAGE, cursor: str | None = None
    ) -> Page[UsageRow]:
        """Return a row for each period and name: the newest period first, then in the order of names."""
        checked_page(at_most)
        after = key_of(cursor, Place) if cursor is not None else None
        rows = await self._sums.report(by, grain, self.checked(wanted), at_most + 1, after)
        page = tuple(rows[:at_most])
        return Page(page, cursor_of(page[-1].place) if len(rows) > at_most else None)

    async def top(
        self, by: By, wanted: ReportFilter, measure: Measure = Measure.USAGE, at_most: int = 10
    ) -> tuple[UsageRow, ...]:
        """Return the largest rows over all dates that are wanted, the largest first."""
        return tuple(await self._sums.top(by, self.checked(wanted), measure, checked_page(at_most)))

    async def total(self, wanted: ReportFilter) -> Sums:
        """Return the sums of all that is wanted."""
        return await self._sums.total(self.checked(wanted))

    async def of(self, tenant: str, service_account: str | None = None) -> UsageNow:
        """Return what a tenant, or one of its service accounts, uses now."""
        who = self.checked(ReportFilter(tenant=tenant_id(tenant), service_account=service_account))
        policy, _ = policy_of(await self._tenants.document(tenant_id(tenant)), tenant_id(tenant), self._defaults)
        today = self._now().astimezone(policy.zone).date()
        month = of_month(who, f"{today:%Y-%m}")
        return UsageNow(
            tenant=tenant,
            service_account=service_account,
            date=today.isoformat(),
            month=f"{today:%Y-%m}",
            today=await self._sums.total(replace(who, since=today.isoformat(), until=today.isoformat())),
            this_month=await self._sums.total(month),
            models=tuple(await self._sums.top(By.MODEL, month, Measure.USAGE, _MODELS)),
        )

    async def incomplete(self, by: By | None, wanted: ReportFilter) -> bool:
        """Return whether entries of the ledger are missing in a report: they are being added to the rollups.

        Reports of service accounts and client IPs are whole: they do not read rollups.
        """
        if by in _CALLERS or wanted.service_account is not None or wanted.client_ip is not None:
            return False
        return (await self._sums.missing()).entries

    def checked(self, wanted: ReportFilter) -> ReportFilter:
        """Return the filter in the form in which usage is stored. Raise `AdminError`."""
        since, until = a_date("since", wanted.since), a_date("until", wanted.until)
        if since is not None and until is not None and since > until:
            raise AdminError(f"'since' ({since}) must not be after 'until' ({until})")
        names = (("tenant", wanted.tenant), ("service account", wanted.service_account), ("model", wanted.model))
        for what, name in names:
            if name is not None:
                named(what, name)
        if wanted.endpoint is not None and wanted.endpoint not in {str(each) for each in Endpoint}:
            raise AdminError(f"the endpoint must be one of {', '.join(Endpoint)}, not {wanted.endpoint!r}")
        ip = address(wanted.client_ip, self._ipv6_prefix) if wanted.client_ip is not None else None
        return replace(wanted, client_ip=ip, since=since, until=until)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Tell what the sums of a month lacked of the ledger; negative: what they had too much.

    `lacked` is of the dates if they lacked something, else of the month, else of its service accounts.
    """

    month: str
    lacked: Sums
    dry_run: bool


async def rebuild(
    repair: RollupRepair,
    month: str,
    *,
    dry_run: bool,
    gone_before: datetime | None,
    tell: Callable[[str], None],
) -> Rebuilt:
    """Correct the sums of a month by the ledger, one date after the other, then the month; `tell` is told each.

    Raise `AdminError` if entries of the month may be deleted: the sums have more than the ledger then.
    """
    dates = of_month(ReportFilter(), month)
    first, last = date.fromisoformat(dates.since or ""), date.fromisoformat(dates.until or "")
    if gone_before is not None and datetime(first.year, first.month, first.day, tzinfo=UTC) < gone_before:
        raise AdminError(f"entries of {month} may be deleted by ledger retention: its sums can't be rebuilt")
    lacked = Sums()
    for day in (date.fromordinal(each) for each in range(first.toordinal(), last.toordinal() + 1)):
        tell(day.isoformat())
        lacked += await repair.rebuild(day.isoformat(), dry_run=dry_run)
    tell(a_month(month))
    in_month = await repair.rebuild_month(a_month(month), dry_run=dry_run)
    of_accounts = await repair.rebuild_accounts(a_month(month), dry_run=dry_run)
    found = next((each for each in (lacked, in_month, of_accounts) if each != Sums()), Sums())
    return Rebuilt(a_month(month), found, dry_run)


def a_date(name: str, text: str | None) -> str | None:
    """Return the date as it is stored. Raise `AdminError` if the text is no date."""
    if text is None:
        return None
    try:
        # Python reads other forms of ISO 8601 too; usage is stored in this one.
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise AdminError(f"'{name}' must be a date such as 2026-01-31, not {text!r}") from None


def a_month(text: str) -> str:
    """Return the month as it is stored. Raise `AdminError` if the text is no month."""
    try:
        return f"{datetime.strptime(text, '%Y-%m').replace(tzinfo=UTC):%Y-%m}"
    except ValueError:
        raise AdminError(f"the month must be such as 2026-01, not {text!r}") from None


def of_month(wanted: ReportFilter, month: str) -> ReportFilter:
    """Return the filter for all dates of a month. Raise `AdminError` if the text is no month."""
    first = date.fromisoformat(f"{a_month(month)}-01")
    last = date.fromordinal(first.replace(day=28).toordinal() + 4)
    last = date.fromordinal(last.replace(day=1).toordinal() - 1)
    return replace(wanted, since=first.isoformat(), until=last.isoformat())
