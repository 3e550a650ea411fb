"""A process is killed while it changes tenants, again and again: each change has its entry, and each entry its change."""

import asyncio
import os
import random
import sys
import uuid
from pathlib import Path

from extproc.ports.audit import AuditFilter, EntryState
from extproc.ports.documents import digest
from extproc.stores.mongo.audit import MongoAudit
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.tenants import MongoTenants
from tests.sizes import sized

from .changing_tenants import TENANTS

ROUNDS = sized(4, 40)
LONGEST_S = 0.4


async def _changing(url, database, name):
    """A process that has begun to change tenants."""
    root = str(Path(__file__).parents[2])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.contract.changing_tenants", url, database, name,
        env={**os.environ, "PYTHONPATH": root}, cwd=root, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        assert await child.stdout.readline() == b"ready\n"
    return child


async def _killed(child, after_s):
    await asyncio.sleep(after_s)
    child.kill()
    await child.wait()


async def test_killed_at_any_moment_every_version_has_its_entry_and_every_entry_its_change(mongo_url):
    database, dice = f"test_{uuid.uuid4().hex[:12]}", random.Random(7)
    for number in range(ROUNDS):
        pair = await asyncio.gather(*(_changing(mongo_url, database, f"p{number}{which}") for which in "ab"))
        await asyncio.gather(*(_killed(child, dice.uniform(0.05, LONGEST_S)) for child in pair))
    mongo = Mongo(MongoOptions(mongo_url, database, timeout_s=30.0))
    try:
        changes = await _check(MongoTenants(mongo), MongoAudit(mongo))
    finally:
        await mongo.aclose()
    assert changes >= 2 * ROUNDS


async def _check(tenants, audit):
    """Return the number of changes that were made."""
    changes = 0
    for tenant in TENANTS:
        entries = sorted(await audit.entries(AuditFilter(tenant=tenant), 10_000), key=lambda each: each.number)
        assert [each.number for each in entries] == list(range(1, len(entries) + 1))
        assert {each.action for each in entries} <= {"tenant.set", "tenant.delete", "tenant.apply"}
        done = [each for each in entries if each.state is EntryState.DONE]
        before = None
        for each in done:
            assert digest(each.before) == digest(before), f"{each.id}: a change before it has no entry"
            if each.after is not None:
                assert each.version == (before or {}).get("version", 0) + 1
            before = each.after
        document = await tenants.document(tenant)
        assert digest(document) == digest(before)
        assert (document or {}).get("version") == (before or {}).get("version")
        changes += len(done)
    return changes
