"""Where the books are kept."""

from dataclasses import dataclass

from extproc.ports.counters import Counters
from extproc.ports.journal import Journal
from extproc.ports.ledger import Ledger
from extproc.ports.records import Records
from extproc.ports.spool import Spool


@dataclass(frozen=True, slots=True)
class Stored:
    """The stores, as ports."""

    counters: Counters
    journal: Journal
    ledger: Ledger
    records: Records
    spool: Spool
