"""Spread tenants over a small fixed number of partitions. All counters of a tenant are in one partition.

A partition is the hash tag of its keys, so a Redis Cluster keeps it on one node. A partition is rebuilt as a whole
if its counters are lost. There are few enough to read all of them in one round trip.
"""

from functools import lru_cache
from typing import Final
from zlib import crc32

from extproc.core.request.identity import TenantId

PARTITIONS: Final = 16


@lru_cache(maxsize=4096)  # asked five times for a request
def partition_of(tenant: TenantId) -> int:
    """Return the tenant's partition: the same on every replica and in every version."""
    return crc32(tenant.encode()) % PARTITIONS
