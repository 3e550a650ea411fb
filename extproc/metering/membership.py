"""Know which replicas are alive: each counts up its own heartbeat in the records."""

import asyncio
from dataclasses import dataclass

from extproc.ports.records import Records


@dataclass(frozen=True, slots=True)
class MembershipOptions:
    """Set the durations of membership, in seconds.

    A replica whose heartbeat stands still for `gone_s` is deregistered by any other.
    """

    heartbeat_s: float = 2.0
    gone_s: float = 15.0


class Membership:
    """Keep this replica registered as alive, and deregister replicas that are gone."""

    def __init__(self, replica: str, records: Records, options: MembershipOptions | None = None) -> None:
        self.replica = replica
        self.options = options or MembershipOptions()
        self._records = records
        self._heartbeats: dict[str, tuple[int, float]] = {}  # the last number of each replica, and when it was new
        self._looked_at = float("-inf")

    async def alive(self) -> set[str]:
        """Return the replicas that are registered, this one included. Raise `StoreError`."""
        return set(await self._records.heartbeat(self.replica)) | {self.replica}

    async def heartbeat(self) -> None:
        """Show that this replica is alive, and deregister those that are gone. Raise `StoreError`."""
        numbers, now = await self._records.heartbeat(self.replica), asyncio.get_running_loop().time()
        # A replica that did not look for a while can't say that a heartbeat stood still meanwhile.
        known = self._heartbeats if now - self._looked_at < 3 * self.options.heartbeat_s else {}
        self._heartbeats, self._looked_at = {}, now
        for replica, number in numbers.items():
            last, since = known.get(replica, (-1, now))
            self._heartbeats[replica] = (number, since if number == last else now)
            if now - self._heartbeats[replica][1] > self.options.gone_s:
                await self._records.deregister(replica)

    async def deregister(self) -> None:
        """Remove this replica: it has ended and holds nothing any more. Raise `StoreError`."""
        await self._records.deregister(self.replica)
