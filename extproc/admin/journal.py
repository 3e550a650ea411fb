"""What waits to be written to the ledger, and what the ledger refused."""

from dataclasses import dataclass

import msgspec

from extproc.core.quota.ledger import Entry
from extproc.ports.base import StoreError
from extproc.ports.journal import Aside, Backlog, Journal
from extproc.ports.ledger import Ledger


@dataclass(frozen=True, slots=True)
class SetAside:
    """An entry that the ledger refused, and why; `entry` is None where the text can't be read.

    `written`: whether it is in the ledger now; None: nobody tried.
    """

    aside: Aside
    entry: Entry | None
    reason: str
    written: bool | None = None


class JournalAdmin:
    """Use cases on the journal; holds no state of its own. Faults are `StoreError`."""

    def __init__(self, journal: Journal, ledger: Ledger) -> None:
        self._journal = journal
        self._ledger = ledger

    async def backlog(self) -> Backlog:
        """How much waits, and for how long."""
        return await self._journal.backlog()

    async def set_aside(self, at_most: int) -> list[SetAside]:
        """What was set aside, oldest first."""
        return [SetAside(each, _entry(each), each.reason) for each in await self._journal.aside(at_most)]

    async def write(self, at_most: int) -> list[SetAside]:
        """Tries what was set aside once more, each by itself; what the ledger takes is set aside no longer.

        An entry that is in the ledger already changes nothing there. Raises where the ledger can't be reached:
        what was not tried by then stays as it was.
        """
        return [await self._write(each) for each in await self.set_aside(at_most)]

    async def _write(self, each: SetAside) -> SetAside:
        if each.entry is None:
            return SetAside(each.aside, None, each.reason, written=False)
        try:
            await self._ledger.append([each.entry])
        except StoreError as error:
            if error.transient:
                raise
            return SetAside(each.aside, each.entry, str(error), written=False)
        # In this order: in between it is in both, and the next try finds it in the ledger.
        await self._journal.forget_aside([each.aside.receipt])
        return SetAside(each.aside, each.entry, each.reason, written=True)


def _entry(aside: Aside) -> Entry | None:
    try:
        return msgspec.json.decode(aside.text, type=Entry)
    except (msgspec.MsgspecError, RecursionError):
        return None
