"""Look for what is wrong with a deployment: stores, clocks, epochs, journal, and Envoy's set-up.

Each check stands alone: if one can't be made, the others still are. Nothing is changed anywhere.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final

from extproc.admin.doctor_envoy import PART, Expected, judged_envoy
from extproc.admin.doctor_stores import judged_backlog, judged_counters, judged_database
from extproc.admin.envoy_dump import read_dump
from extproc.admin.findings import Finding, Level, error, note
from extproc.ports.base import StoreError
from extproc.ports.inspection import Inspection
from extproc.ports.journal import Journal

# Returns the JSON behind a path of Envoy's admin port; raises OSError or ValueError.
Fetch = Callable[[str], Awaitable[object]]

_CONFIG: Final = "/config_dump?include_eds"
_CLUSTERS: Final = "/clusters?format=json"


class Doctor:
    """Run the checks. Stateless."""

    def __init__(self, inspection: Inspection | None, journal: Journal, now: Callable[[], datetime]) -> None:
        """Take None for stores in memory: there is nothing to inspect."""
        self._inspection = inspection
        self._journal = journal
        self._now = now

    async def stores(self) -> list[Finding]:
        """Check Redis, MongoDB, clocks, epochs and the journal."""
        inspection = self._inspection
        if inspection is None:
            return [
                note(
                    "stores",
                    "a store is in memory, inside the serving process",
                    "counters, limits and the ledger are lost when it ends",
                    "set redis.url and mongo.url for anything but a trial",
                )
            ]
        found: list[Finding] = []
        found += await _checked(
            "redis", "check redis.url, the network, the login and TLS", self._counters(inspection)
        )
        found += await _checked(
            "mongodb", "check mongo.url, the network, the login and TLS", self._database(inspection)
        )
        found += await _checked("journal", "bring Redis back first", self._backlog())
        return found

    async def envoy(self, fetch: Fetch, expected: Expected) -> list[Finding]:
        """Check the set-up of one Envoy, by its admin port."""
        try:
            dump = read_dump(await fetch(_CONFIG), await fetch(_CLUSTERS))
        except (OSError, ValueError) as problem:
            return [
                error(
                    PART,
                    f"its admin port does not answer as one: {problem}",
                    "its set-up is not checked",
                    "give the URL of the admin port, such as http://127.0.0.1:9901; for Istio: kubectl "
                    "port-forward POD 15000, then http://127.0.0.1:15000",
                )
            ]
        return list(judged_envoy(dump, expected))

    async def _counters(self, inspection: Inspection) -> Iterable[Finding]:
        return judged_counters(await inspection.counters())

    async def _database(self, inspection: Inspection) -> Iterable[Finding]:
        return judged_database(await inspection.database(), self._now())

    async def _backlog(self) -> Iterable[Finding]:
        return judged_backlog(await self._journal.backlog())


def is_sound(findings: Iterable[Finding]) -> bool:
    """Return whether none of the findings is an error."""
    return all(finding.level is not Level.ERROR for finding in findings)


async def _checked(part: str, fix: str, check: Awaitable[Iterable[Finding]]) -> list[Finding]:
    try:
        return list(await check)
    except StoreError as problem:
        return [error(part, f"can't be asked: {problem}", "requests get 503, or wait for it", fix)]
