"""Keep the tenants' limits in memory, following their store: no I/O on the request path.

A change stream reports changes at once; without one, the store is polled. In both cases all documents are read
again, so memory always holds one state of the store and never a sum of events.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from extproc.core.quota.binding import Policy
from extproc.core.quota.policies import BadDocument, Defaults, Repaired, repaired_policy
from extproc.core.request.identity import TenantId
from extproc.metering.direct_changes import DirectChanges
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.documents import Document
from extproc.ports.tenants import TenantStore
from extproc.timing.events import happens_within

_log = logging.getLogger(__name__)
# Of so many tenants without a document the policies are kept.
_DEFAULTS_AT_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class LimitsCacheOptions:
    """Set the durations of the cache, in seconds.

    Limits are at most `poll_s` old without a change stream, `refresh_s` with one. Changes that come within
    `settle_s` of each other are read once.
    """

    poll_s: float = 2.0
    refresh_s: float = 30.0
    settle_s: float = 0.05


class LimitsCache:
    """Implement `ports.tenants.Limits` from memory."""

    def __init__(
        self,
        store: TenantStore,
        defaults: Defaults,
        clock: Clock,
        metrics: Metrics,
        options: LimitsCacheOptions,
        *,
        direct: DirectChanges | None = None,
    ) -> None:
        """Keep the limits of `store`. `direct` notices changes that were made in it past Tokenweir."""
        self._store = store
        self._defaults = defaults
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._policies: dict[TenantId, Policy] = {}
        self._without_document: dict[TenantId, Policy] = {}
        self._last_good: dict[TenantId, Document] = {}
        self._complained: dict[str, tuple[object, str]] = {}
        self._direct = direct
        self._read_last: Sequence[Document] = ()
        self._loaded = asyncio.Event()
        self._changed = asyncio.Event()
        self._watching = False
        self._loading = asyncio.Lock()  # two reads at once could arrive in the wrong order

    def policy(self, tenant: TenantId) -> Policy:
        """Return the same object as long as nothing changes: what was computed of it is found by it."""
        return self._policies.get(tenant) or self._without_document.get(tenant) or self._by_default(tenant)

    def tenants(self) -> Collection[TenantId]:
        """Return the tenants that have a document."""
        return self._policies.keys()

    def _by_default(self, tenant: TenantId) -> Policy:
        if len(self._without_document) >= _DEFAULTS_AT_MOST:
            self._without_document.clear()
        policy = self._without_document[tenant] = self._defaults.policy(tenant)
        return policy

    async def load(self) -> None:
        """Read all limits. Raise `StoreError`; the known limits stay then.

        A field that can't be used keeps its last good value, else its default. All others apply.
        """
        async with self._loading:
            documents = await self._store.documents()
            self._take(documents)
            if self._direct is not None:
                self._read_last = documents
                self._loaded.set()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._refresh())
            if self._direct is not None:
                group.create_task(self._notice(self._direct))

    def _take(self, documents: Sequence[Document]) -> None:
        policies: dict[TenantId, Policy] = {}
        good: dict[TenantId, Document] = {}
        problems: dict[str, tuple[object, str]] = {}
        fields = 0
        for document in documents:
            read = self._read(document)
            if isinstance(read, BadDocument):
                found: tuple[str, ...] = (read.message,)
                self._keep(read, policies, good)
            else:
                found, tenant = read.problems, read.policy.tenant
                policies[tenant], good[tenant] = read.policy, read.document
            if found:
                problems[str(document.get("tenant_id", "?"))] = (document.get("version"), "; ".join(found))
                fields += len(found)
        self._policies, self._last_good = policies, good
        self._complain(problems)
        self._metrics.limits_loaded(len(policies), len(problems), fields, self._clock.now().timestamp())

    def _read(self, document: Document) -> Repaired | BadDocument:
        tenant = document.get("tenant_id")
        last = self._last_good.get(TenantId(tenant)) if isinstance(tenant, str) else None
        return repaired_policy(document, self._defaults, last)

    def _keep(self, bad: BadDocument, policies: dict[TenantId, Policy], good: dict[TenantId, Document]) -> None:
        """Keep the policy of a tenant whose document can't be used at all."""
        tenant = TenantId(bad.tenant or "")
        if tenant in self._policies:
            policies.setdefault(tenant, self._policies[tenant])
            good.setdefault(tenant, self._last_good[tenant])

    def _complain(self, problems: dict[str, tuple[object, str]]) -> None:
        """Log the problems of each version of a document once."""
        for tenant, problem in problems.items():
            if self._complained.get(tenant) != problem:
                version, message = problem
                _log.error(
                    "limits: fields of a document can't be used: their last good values stay, else the defaults",
                    extra={"tenant": tenant, "version": str(version), "problem": message},
                )
        self._complained = problems

    async def _watch(self) -> None:
        while True:
            try:
                async for _ in self._store.changes():
                    self._watching = True
                    self._changed.set()
            except StoreError as error:
                if self._watching:
                    _log.warning("mongodb: no change stream: limits are polled", extra={"error": str(error)})
            if self._watching:
                self._watching = False
                self._changed.set()  # else the current wait would be as long as with a change stream
            await asyncio.sleep(self._options.poll_s)

    async def _notice(self, direct: DirectChanges) -> None:
        """Compare the limits with the audit log after each load. Never delays a load."""
        while True:
            await self._loaded.wait()
            self._loaded.clear()
            try:
                await direct.notice(self._read_last)
            except StoreError as error:
                _log.warning(
                    "mongodb: limits could not be compared with the audit log", extra={"error": str(error)}
                )
                await asyncio.sleep(self._options.refresh_s)
                self._loaded.set()

    async def _refresh(self) -> None:
        while True:
            wait_s = self._options.refresh_s if self._watching else self._options.poll_s
            if await happens_within(self._changed, wait_s):
                await asyncio.sleep(self._options.settle_s)
            self._changed.clear()
            try:
                await self.load()
            except StoreError as error:
                _log.warning(
                    "mongodb: limits could not be read: the known limits stay", extra={"error": str(error)}
                )
                await asyncio.sleep(self._options.poll_s)
                self._changed.set()
