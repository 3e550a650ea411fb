"""When the ledger may be written to."""

from typing import Protocol

from extproc.metering.shards import Part


class WriteFence(Protocol):
    """Says when the ledger may be written to."""

    def is_open(self, part: Part) -> bool:
        """Whether this process is known to take part in the current life of a part, which is not being rebuilt."""

    async def passes(self, part: Part) -> None:
        """Returns when it is open."""

    def release(self) -> None:
        """From now on it always passes: this process ends."""


class OpenGate:
    """Where counters are never rebuilt."""

    def is_open(self, part: Part) -> bool:  # noqa: ARG002 - whatever part it is
        """Always."""
        return True

    async def passes(self, part: Part) -> None:
        """Always."""

    def release(self) -> None:
        """It is open."""
