"""Partitions: tenants are spread over a small fixed number of them; what is counted of a tenant stays in one.

A partition is what a Redis Cluster keeps on one node (it is the hash tag of all its keys), and what is rebuilt as
a whole when its counters are lost. Few enough to look at all of them in one round trip.
"""

from typing import Final
from zlib import crc32

from extproc.core.request.identity import TenantId

PARTITIONS: Final = 16


def partition_of(tenant: TenantId) -> int:
    """The tenant's partition, the same on every replica and in every version."""
    return crc32(tenant.encode()) % PARTITIONS
