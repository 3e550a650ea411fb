"""A process that changes tenants until it is killed: `python -m tests.contract.changing_tenants URL DATABASE NAME`."""

import asyncio
import random
import sys
from contextlib import suppress
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from extproc.admin.applying import carry_out, plan
from extproc.admin.change import Change
from extproc.admin.errors import AdminError
from extproc.admin.tenants import TenantLimits
from extproc.core.quota.policies import Defaults, limits_from
from extproc.ports.audit import Actor, ActorKind
from extproc.ports.base import StoreError
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.tenants import MongoTenants

DEFAULTS = Defaults(limits_from({"sa_limit": 1}), ZoneInfo("UTC"))
TENANTS = [f"t{number}" for number in range(6)]


def now():
    return datetime.now(UTC)


async def change_for_ever(url, database, name):
    tenants = MongoTenants(Mongo(MongoOptions(url, database, timeout_s=5.0)))
    limits = TenantLimits(tenants, DEFAULTS, now)
    change = Change(Actor(name, ActorKind.OS_USER, "test"), "by chance")
    dice = random.Random(name)
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    while True:
        amount = dice.randrange(10**9)
        with suppress(AdminError, StoreError):
            match dice.randrange(10):
                case 0:
                    await limits.delete(dice.choice(TENANTS), change)
                case 1 | 2:
                    some = [{"tenant_id": tenant, "sa_limit": amount} for tenant in dice.sample(TENANTS, 3)]
                    planned = await plan(tenants, DEFAULTS, some, now())
                    await carry_out(tenants, planned, change, now())
                case _:
                    await limits.set(dice.choice(TENANTS), {"sa_limit": amount}, change)


if __name__ == "__main__":
    asyncio.run(change_for_ever(*sys.argv[1:]))
