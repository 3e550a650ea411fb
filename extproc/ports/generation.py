"""Declare the ledger's generation: a number in the ledger's store that grows, and that the counters' store notes.

A ledger whose generation is lower than the one that was noted went back: it was restored from a backup.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Generation:
    """Hold the ledger's generation, and the one at which its sums were last corrected (0: never)."""

    number: int
    corrected: int


class Generations(Protocol):
    """Note the ledger's generation beside the counters. Belongs to no epoch."""

    async def note_generation(self, number: int) -> int:
        """Note that the ledger has this generation. Return the highest one that was noted and is not lost.

        Raise `StoreError` if no server can be reached. Safe to repeat.
        """
