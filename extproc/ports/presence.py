"""Declare presence: which replicas are here now, and which holds a replica that is gone left open."""

from typing import Final, Protocol

from extproc.core.quota.reservation import Reservation
from extproc.ports.base import ShardId

# A replica is forgotten when it was not noted for so long. One call returns at most so many replicas.
FORGOTTEN_S: Final = 3600.0
REPLICAS_AT_MOST: Final = 1000
# While no replica is noted at all, the store is away or its clock is set. Of such a silence so many seconds count.
SILENCE_S: Final = 0.5


class Presence(Protocol):
    """Note the replicas that are here, beside the counters and as volatile as they are.

    Presence belongs to no epoch: the calls work while no epoch is ready, and before this replica is registered.
    Each shard has notes of its own. Every call raises `StoreError` and may be repeated.
    """

    async def seen(self, replica: str, shard_id: ShardId = None) -> dict[str, float]:
        """Note that the replica is here now. Return the replicas that are noted, at most 1,000, the longest
        unseen first, each with the seconds since it was last noted (0 or more; this one: 0).

        Seconds are by the store's clock, and what is lost with the store is not noted any more. Of a time in
        which no replica was noted, half a second counts: so nobody seems gone after the store was away, or after
        its clock was set. A replica that was not noted for an hour is forgotten.
        """

    async def forget_replica(self, replica: str, shard_id: ShardId = None, *, older_than_s: float = 0.5) -> bool:
        """Forget the replica if it was last noted `older_than_s` seconds ago or earlier; one atomic step.

        Return False, and change nothing, if it was noted since then: it is back. True: it is not noted (any
        more). By the store's clock.
        """

    async def opened_by(self, replica: str, shard_id: ShardId = None) -> list[Reservation]:
        """Return the replica's reservations, as granted, that are open in the shard's current epochs.

        The epochs need not be ready, nor this process registered in them. A reservation that is opened or ended
        during the call may or may not be included. Raise `UnreadyError` if an epoch is over, and `StoreError`
        if one of the partitions can't be reached: the list would not be complete.
        """
