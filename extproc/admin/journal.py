"""Show the entries that wait for the ledger, and those that the ledger refused."""

from dataclasses import dataclass

import msgspec

from extproc.core.quota.ledger import Entry
from extproc.ports.base import StoreError
from extproc.ports.journal import Aside, Backlog, Journal
from extproc.ports.ledger import Ledger


@dataclass(frozen=True, slots=True)
class SetAside:
    """Describe an entry that the ledger refused, with the reason; `entry` is None if the text can't be read.

    `written`: it is in the ledger now; None: not tried.
    """

    aside: Aside
    entry: Entry | None
    reason: str
    written: bool | None = None


class JournalAdmin:
    """Run use cases on the journal. Stateless. Raises `StoreError`."""

    def __init__(self, journal: Journal, ledger: Ledger) -> None:
        self._journal = journal
        self._ledger = ledger

    async def backlog(self) -> Backlog:
        """Return the number of waiting entries and the age of the oldest one."""
        return await self._journal.backlog()

    async def set_aside(self, at_most: int) -> list[SetAside]:
        """Return the entries that were set aside, oldest first."""
        return [SetAside(each, _entry(each), each.reason) for each in await self._journal.aside(at_most)]

    async def write(self, at_most: int) -> list[SetAside]:
        """Retry each entry that was set aside. An entry that the ledger accepts is no longer set aside.

        An entry that is already in the ledger changes nothing there. Raise `StoreError` if the ledger can't be
        reached; entries that were not tried by then stay set aside.
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
        # This order is safe: in between the entry is in both places, and the next try finds it in the ledger.
        await self._journal.forget_aside([each.aside.receipt])
        return SetAside(each.aside, each.entry, each.reason, written=True)


def _entry(aside: Aside) -> Entry | None:
    try:
        return msgspec.json.decode(aside.text, type=Entry)
    except (msgspec.MsgspecError, RecursionError):
        return None
