"""What people should know about how a Redis is configured, before it loses something."""

from typing import Any

from extproc.core.quota.partitions import PARTITIONS
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.server import command


async def warnings_of(client: RedisClient) -> list[str]:
    """Warnings about the servers. What a server does not tell (managed ones forbid CONFIG) is not warned of."""
    found: list[str] = []
    for partitions in await client.by_server(range(PARTITIONS)):
        infos = await client.try_all([command(partitions[0], "INFO")])
        info = infos[0] if isinstance(infos[0], dict) else {}
        found += [text for text in (_eviction(info), _persistence(info)) if text and text not in found]
    return found


def _eviction(info: dict[str, Any]) -> str | None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"Redis may evict keys (maxmemory-policy is {policy}): limits would be exceeded and ledger entries lost. "
        "Set maxmemory-policy noeviction."
    )


def _persistence(info: dict[str, Any]) -> str | None:
    if info.get("aof_enabled", 1) or info.get("connected_slaves", 0):
        return None
    return (
        "Redis writes no append-only file and has no replica: what waits for the ledger (normally less than a "
        "second of it) is gone with its process. Set appendonly yes."
    )
