"""The order in which workers take files: those that take long begin first, so that no worker ends long after the others.

pytest-xdist's own order is by the number of tests, which puts a file of one long test last. `make test` turns it off
(`--no-loadscope-reorder`): then workers take files in the order of the items.
"""

from collections import Counter

# Those that take longest though they have few tests: they start processes, browsers or stacks, or wait for bounds.
LONG = (
    "admin_api/test_schema.py",
    "system/test_outages.py",
    "system/test_local_up.py",
    "charts/test_live_queries.py",
    "charts/test_tokenweir_live.py",
    "charts/live/test_limits_enforced.py",
    "charts/live/test_callers.py",
    "charts/test_chart_properties.py",
    "contract/test_audit_kills.py",
    "contract/test_redis_outages.py",
    "contract/test_redis_restarts.py",
    "contract/test_redis_topologies.py",
    "contract/test_daily_migration.py",
    "contract/test_erasure.py",
    "contract/test_rollups_killed.py",
    "contract/test_rollup_backfill.py",
    "contract/test_reports.py",
    "contract/test_mongo_faults.py",
    "security/test_hostile_requests.py",
    "security/test_bounds.py",
    "security/test_stalls.py",
    "security/test_stalls_through_envoy.py",
    "security/test_large_bodies.py",
    "onboarding_ui/test_form_browser.py",
    "cli/test_cli_mistakes.py",
    "cli/test_cli_model.py",
    "deploy/test_flux.py",
    "benchmarks/test_programs.py",
    "structure/test_image.py",
    "test_wheel.py",
)


def longest_first(items, folder):
    """Sort the tests below `folder`: files of `LONG` in its order, then those with most tests. A file stays whole."""
    tests = Counter(item.path for item in items)
    ranks = {folder / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (ranks.get(item.path, len(LONG)), -tests[item.path], str(item.path)))
