"""Where the books are kept."""

from dataclasses import dataclass

from extproc.ports import Counters, Journal, Ledger, Records, Spool


@dataclass(frozen=True, slots=True)
class Stored:
    """The stores, as ports."""

    counters: Counters
    journal: Journal
    ledger: Ledger
    records: Records
    spool: Spool
