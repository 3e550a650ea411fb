"""Record denied requests: the first of a minute and bucket singly, the others in sums."""

import asyncio

from extproc.core.quota.ledger import Entry, denied_entry
from extproc.core.quota.reservation import Denied, Reservation
from extproc.metering.denials import Denials
from extproc.metering.shards import Shards
from extproc.observe.metrics import Metrics


class DenialWriter:
    """Have denied requests recorded in the ledger."""

    def __init__(self, shards: Shards, denials: Denials, metrics: Metrics) -> None:
        self._shards = shards
        self._denials = denials
        self._metrics = metrics

    def deny(self, reservation: Reservation, reason: str, bucket: str, denied: Denied | None = None) -> None:
        """Record a denial. Return at once. `denied` is the decision, if a limit denied the request.

        In a long outage of the ledger, denials of more callers than there is room for are lost, and counted.
        """
        if self._denials.is_single(reservation, bucket) and self._put(denied_entry(reservation, reason, denied)):
            return
        if not self._denials.add(reservation, reason, denied):
            self._put_sums()
            if not self._denials.add(reservation, reason, denied):
                self._metrics.lost("denied", 1)

    async def run(self) -> None:
        """Write the sums now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._denials.options.write_s)
            self._put_sums()

    def flush(self) -> None:
        """Queue all sums, whatever waits already: this process ends."""
        self._put_sums(beyond=True)

    def __len__(self) -> int:
        """Return how many sums are in this process alone."""
        return len(self._denials)

    def _put_sums(self, *, beyond: bool = False) -> None:
        """Queue the sums, oldest first, as far as there is room."""
        while (entry := self._denials.oldest()) is not None and self._put(entry, beyond=beyond):
            self._denials.drop_oldest()

    def _put(self, entry: Entry, *, beyond: bool = False) -> bool:
        return self._shards.of(entry.identity.tenant).ledger_writer.put_denial(entry, beyond=beyond)
