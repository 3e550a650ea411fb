"""Tenants are spread over partitions, the same way everywhere."""

from collections import Counter

from extproc.core.quota.partitions import PARTITIONS, partition_of


def test_a_tenant_stays_in_its_partition_in_every_version():
    assert [partition_of(name) for name in ("acme", "anonymous", "ünïcødé")] == [14, 14, 8]


def test_tenants_are_spread_over_all_partitions():
    found = Counter(partition_of(f"tenant-{i}") for i in range(1600))
    assert set(found) == set(range(PARTITIONS))
    assert max(found.values()) < 150
