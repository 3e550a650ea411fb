"""Spools on a disk that outlives the processes which wrote them."""

import asyncio
from pathlib import Path

from extproc.ports.base import StoreError
from extproc.stores.spool import LeftBehind

_SYNC_S = 0.002


class Disk:
    """One machine's: a spool for each process that ran there, until what is in it is recorded."""

    def __init__(self):
        self.spools = []

    def left_behind(self):
        """Those of processes that are gone: nobody holds a lock on them."""
        return [spool for spool in self.spools if spool.owner_is_gone()]

    def used(self):
        return any(spool.opened_ones or spool.ended_ones for spool in self.spools)


class Spool:
    """Implements `ports.Spool`. `full`: nothing more is opened."""

    def __init__(self, disk, owner_is_gone):
        self._disk = disk
        self.owner_is_gone = owner_is_gone
        self.opened_ones, self.ended_ones = {}, {}
        self.full = False
        disk.spools.append(self)

    @property
    def unended(self):
        return [r for each, r in self.opened_ones.items() if each not in self.ended_ones]

    def left(self):
        return LeftBehind(Path("disk.spool"), self.unended, list(self.ended_ones.values()))

    def remove(self):
        self._disk.spools.remove(self)

    async def opened(self, reservation):
        await asyncio.sleep(_SYNC_S)
        if self.full:
            raise StoreError("the spool is full", transient=True)
        self.opened_ones[reservation.id] = reservation

    def ended(self, closing):
        self.ended_ones[closing.reservation.id] = closing

    def done(self, ids):
        for each in ids:
            self.opened_ones.pop(each, None)
            self.ended_ones.pop(each, None)

    async def keep(self, closings):
        await asyncio.sleep(_SYNC_S)
        self.ended_ones.update({closing.reservation.id: closing for closing in closings})
