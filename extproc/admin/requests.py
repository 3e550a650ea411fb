"""Tell the whole story of one request, and list requests.

A request is looked for in the ledger first, then among the entries that wait for it, then among the reservations
that are still open.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.names import client_ip as address
from extproc.admin.names import named
from extproc.admin.paging import Page, checked_page, cursor_of, key_of
from extproc.admin.request_story import Place, RequestStory, story_of, story_of_open
from extproc.core.quota.ledger import Entry
from extproc.core.quota.reservation import Reservation
from extproc.core.request.addresses import IPV6_PREFIX
from extproc.core.request.endpoints import Endpoint
from extproc.ports.base import StoreError
from extproc.ports.counters import Counters
from extproc.ports.journal import Journal
from extproc.ports.ledger import UsageReports
from extproc.ports.requests import RequestFilter, RequestPlace, RequestRecords

# Some clients send one request id several times: that many of its requests are shown.
_OF_ONE_ID: Final = 20
# So many waiting entries and open reservations are looked at for one that is not in the ledger.
LOOKED_AT: Final = 10_000
_NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)


class Requests:
    """Run the use cases on single requests. Stateless."""

    def __init__(
        self,
        records: RequestRecords,
        journal: Journal,
        counters: Counters,
        reports: UsageReports,
        now: Callable[[], datetime],
        *,
        singly_per_minute: int = 10,
        denied_recorded: bool = True,
        ipv6_prefix: int = IPV6_PREFIX,
    ) -> None:
        """Take `singly_per_minute` and `denied_recorded` from the settings of the replicas: messages name them."""
        self._records = records
        self._journal = journal
        self._counters = counters
        self._reports = reports
        self._now = now
        self._singly = singly_per_minute
        self._denied_recorded = denied_recorded
        self._ipv6_prefix = ipv6_prefix

    async def show(self, name: str) -> tuple[RequestStory, ...]:
        """Return the stories of a reservation id or an `x-request-id`, the last to end first; rarely several.

        Raise `NotFoundError` with the possible reasons if nothing is known of it, `StoreError` if MongoDB can't be
        asked.
        """
        wanted = named("id", name.strip())
        found = await self._records.of_id(wanted, _OF_ONE_ID)
        if found:
            return tuple(story_of(entry) for entry in found)
        unasked = ""
        try:
            waiting = await self._journal.waiting(0, LOOKED_AT)
            of_journal = [w.entry for w in waiting if w.entry is not None and _is(wanted, w.entry)]
            if of_journal:
                return tuple(story_of(entry, Place.WAITING) for entry in of_journal)
            opened = await self._counters.overdue(_NEVER, LOOKED_AT)
            still_open = [story_of_open(each) for each in opened if _is(wanted, each)]
            if still_open:
                return tuple(still_open)
            # It may have ended between the two looks.
            found = await self._records.of_id(wanted, _OF_ONE_ID)
            if found:
                return tuple(story_of(entry) for entry in found)
        except StoreError as error:
            unasked = f"; requests that run, or ended just now, could not be looked at ({error})"
        raise NotFoundError(await self._why_unknown(wanted) + unasked)

    async def find(
        self, wanted: RequestFilter, at_most: int = 100, cursor: str | None = None
    ) -> Page[RequestStory]:
        """Return the stories of the ledger's entries that fit, the last to end first. Raise `AdminError`."""
        bound = checked_page(at_most)
        after = RequestPlace(*key_of(cursor, tuple[datetime, str])) if cursor is not None else None
        entries = await self._records.newest(self._checked(wanted), bound + 1, after)
        more = len(entries) > bound
        kept = entries[:bound]
        last = cursor_of((kept[-1].ended_at, kept[-1].id)) if more else None
        return Page(tuple(map(story_of, kept)), last)

    async def gone_before(self, since: datetime | None) -> datetime | None:
        """Return the instant before which entries may be deleted, if a list from `since` on would need them."""
        gone = await self._reports.gone_before(self._now())
        return gone if gone is not None and (since is None or since < gone) else None

    def _checked(self, wanted: RequestFilter) -> RequestFilter:
        for what, text in (
            ("tenant", wanted.tenant),
            ("service account", wanted.service_account),
            ("model", wanted.model),
        ):
            if text is not None:
                named(what, text)
        if wanted.endpoint is not None and wanted.endpoint not in list(Endpoint):
            raise AdminError(f"the endpoint must be one of {', '.join(Endpoint)}, not {wanted.endpoint[:40]!r}")
        if wanted.since is not None and wanted.until is not None and wanted.since >= wanted.until:
            raise AdminError("'since' must be before 'until'")
        if wanted.client_ip is None:
            return wanted
        return replace(wanted, client_ip=address(wanted.client_ip, self._ipv6_prefix))

    async def _why_unknown(self, name: str) -> str:
        gone = await self._reports.gone_before(self._now())
        kept = f"only since {gone:%Y-%m-%dT%H:%M:%SZ}" if gone is not None else "from the start"
        denied = (
            "it was denied and counted, but not stored by itself: of the requests that one limit denies, each "
            f"replica stores the first {self._singly} of a minute and counts the others (`request list --outcome "
            "denied` shows the counts)"
            if self._denied_recorded
            else "it was denied: denied requests are not recorded here (denied.record)"
        )
        return (
            f"no request is known by the id {name!r}. Either {denied}; or it ended before the ledger begins: it "
            f"reaches back {kept}; or it never got as far as a limit: the answers 400, 401, 403 and 413, and "
            "paths that are not metered, have no entry; or the id is of another system"
        )


def _is(name: str, each: Entry | Reservation) -> bool:
    return name in (each.id, each.request_id)
