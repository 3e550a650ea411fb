"""Redis: counters that all replicas share, the journal of what the ledger has not got yet, and their epochs."""

from extproc.stores.redis.counters import RedisCounters
from extproc.stores.redis.topology import RedisOptions

__all__ = ["RedisCounters", "RedisOptions"]
