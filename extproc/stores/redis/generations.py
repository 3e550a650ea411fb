"""The ledger's generation, noted on every server: one that lost it learns it from the others."""

from typing import Final

from extproc.core.quota.partitions import PARTITIONS
from extproc.ports.base import StoreError
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import generation_key
from extproc.stores.redis.server import Call

# Then even a month's window, in any time zone, is over.
_KEPT_S: Final = 32 * 86_400


class RedisGenerations(RedisClient):
    """Implement `ports.Generations`."""

    async def note_generation(self, number: int) -> int:
        """Take one round trip."""
        calls = [Call(p, "generation", (generation_key(p),), (number, _KEPT_S)) for p in range(PARTITIONS)]
        replies = await self.try_all(calls)
        noted = [int(reply) for reply in replies if not isinstance(reply, StoreError)]
        if not noted:
            raise replies[0]
        return max(noted)
