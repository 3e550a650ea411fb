"""Note in Redis which alerts on denials were told, so that of several replicas one tells each."""

from typing import Final
from urllib.parse import quote

from extproc.core.quota.partitions import partition_of
from extproc.core.request.identity import TenantId
from extproc.ports.alerts import Alert
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import alerts_key
from extproc.stores.redis.server import command

# The longest window and a day, as long as a bucket of it is kept.
_KEPT_S: Final = 32 * 86_400
_FORGOTTEN_AT_ONCE: Final = 100


class RedisAlertNotes(RedisClient):
    """Implement `ports.AlertNotes`: a sorted set of each partition, by the ends of the windows."""

    async def is_first(self, alert: Alert) -> bool:
        """Take one round trip; a second one now and then, to forget those whose window is over."""
        partition = partition_of(TenantId(alert.tenant))
        key = alerts_key(partition)
        name = f"{alert.reason.value}:{quote(alert.tenant, safe='')}:{alert.bucket.key}"
        over = int(alert.at.timestamp())
        added, _, forgotten = await self.call_all(
            [
                command(partition, "ZADD", key, "NX", alert.bucket.interval.end, name),
                command(partition, "EXPIRE", key, _KEPT_S),
                command(partition, "ZRANGEBYSCORE", key, "-inf", over, "LIMIT", 0, _FORGOTTEN_AT_ONCE),
            ]
        )
        if forgotten:
            await self.call_all([command(partition, "ZREM", key, *forgotten)])
        return bool(int(added))
