"""The lines about tenants that have too many requests in flight."""

import logging

from extproc.observe.cap_log import CapLog


def test_a_flood_of_refusals_is_one_line_in_ten_seconds_that_names_a_tenant(caplog):
    now = [100.0]
    log = CapLog(7, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            log.refused("acme")
        now[0] += 9.9
        log.refused("acme")
        now[0] += 0.1
        log.refused("other")
    assert [(line.tenant, line.in_flight, line.refused) for line in caplog.records] == [
        ("acme", 7, 1),
        ("other", 7, 1001),
    ]
