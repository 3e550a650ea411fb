"""End the reservations that dead processes left in their spools on this host's disk."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from msgspec.structs import replace

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import expiry
from extproc.metering.outcomes import Outcomes
from extproc.metering.shards import Shards
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing
from extproc.ports.records import Records
from extproc.ports.spool import SpoolFile
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
_LOOK_EVERY_S: Final = 30.0
_RETRY_S: Final = 1.0
_RECORDED_S: Final = 0.2


class SpoolReplay:
    """Replay spool files. A reservation whose end nobody knows is charged as held."""

    def __init__(self, shards: Shards, outcomes: Outcomes, records: Records) -> None:
        self._shards = shards
        self._outcomes = outcomes
        self._records = records

    async def run(self, files: Callable[[], Iterator[SpoolFile]]) -> NoReturn:
        """Replay what dead processes left, now and as long as this process lives.

        `files` iterates over their files, each locked until the next one; it runs in a thread.
        """

        async def replay_all() -> None:
            left = files()
            while (file := await asyncio.to_thread(next, left, None)) is not None:
                await self.replay_file(file)
                file.remove()

        def failed(error: OSError) -> None:
            _log.error("spool: files of dead processes can't be read", extra={"error": str(error)})

        await periodically(replay_all, _LOOK_EVERY_S, expected=OSError, on_failure=failed, at_once=True)

    async def replay_file(self, file: SpoolFile) -> None:
        """End what one file holds. When this returns, all of it is in the ledger."""
        while True:
            try:
                ended = await self.replay(file.ended, file.unended)
                # Only entries in the ledger are safe from all that may happen to the counters.
                while await self._is_unrecorded(file.ids):  # noqa: ASYNC110 - another replica may write it
                    await asyncio.sleep(_RECORDED_S)
            except StoreError as error:
                _log.warning("spool: replay failed: it will be repeated", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_S)
            else:
                break
        if file.unreadable:
            extra = {"file": file.path.name, "lines": file.unreadable}
            _log.error("spool: some lines can't be read: they are ignored", extra=extra)
        _log.warning("spool: replayed the reservations of a dead process", extra={"reservations": ended})

    async def replay(self, ended: Sequence[Closing], unended: Sequence[Reservation]) -> int:
        """End reservations; return how many nobody had ended yet.

        When this returns, those are charged and wait in the journal, to be written by this process; all others are
        in the ledger. Raise `StoreError`; safe to repeat then.
        """
        closings = [
            *ended,
            *(self._shards.of(r.identity.tenant).settler.closing_of(r, expiry(r), ()) for r in unended),
        ]
        replayed = 0
        for start in range(0, len(closings), _AT_ONCE):
            batch = closings[start : start + _AT_ONCE]
            partitions = self._shards.partitions_of(closing.reservation for closing in batch)
            known = await self._outcomes.of([closing.reservation.id for closing in batch], partitions)
            # Without an entry nothing shows later whether it was charged: only a reservation that is open is then.
            left = [
                closing
                if closing.entry is None
                else replace(closing, reservation=replace(closing.reservation, local=True))
                for closing in batch
                if closing.reservation.id not in known
            ]
            await self._shards.end_for_others(left)
            replayed += len(left)
            others = sorted(known.keys() - self._shards.unrecorded())
            if others and len(await self._records.outcomes(others)) < len(others):
                raise StoreError("some entries wait in the journal for other replicas", transient=True)
        return replayed

    async def _is_unrecorded(self, ids: Sequence[ReservationId]) -> bool:
        """Tell whether any of these is still on its way to the ledger. Raise `StoreError`."""
        all_here = self._shards.unrecorded()
        here = [each for each in dict.fromkeys(ids) if each in all_here]
        return bool(here) and len(await self._records.outcomes(here)) < len(here)
