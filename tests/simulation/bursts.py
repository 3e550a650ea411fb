"""A tenant that first asks for small answers, then for many long ones at once, in a world as any other."""

import asyncio

from extproc.core.quota.binding import Policy, StoreFailure
from extproc.core.quota.limits import Limit, Mode, Scope, Window
from extproc.core.request.identity import ClientIP, Identity, ServiceAccount, TenantId

from .clients import Plan
from .world import ZONE, World

_NAME = TenantId("mallory")
_WHO = Identity(_NAME, ServiceAccount("sa"), ClientIP("10.0.0.1"))
# More than a replica needs to have learned from them.
_LESSONS = 40
_LONG = 300


class Bursts(World):
    replay = " --bursts"

    def _tenants(self, rng):
        identities, limits = super()._tenants(rng)
        day = Limit(Scope.TENANT, Window.DAY, rng.choice((700, 1500)), mode=Mode.RESERVE)
        failure = rng.choice((StoreFailure.DENY, StoreFailure.DENY, StoreFailure.ALLOW))
        limits.policies[_NAME] = Policy(_NAME, (day,), ZONE, on_store_failure=failure)
        return identities, limits

    def _further(self):
        self.start(self._bursts())

    async def _bursts(self):
        rng = self.rng
        for _ in range(3):
            await asyncio.sleep(rng.random() * self.length_s / 4)
            while not self.open:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
            process = rng.choice(self.open)  # what is learned is each replica's own
            for _ in range(rng.choice((0, _LESSONS, _LESSONS))):
                self.asks(process, self._plan(output=1, length_s=0.001))
                await asyncio.sleep(0.005)
            if process not in self.open:
                continue
            self.say(f"a burst at {process.name}")
            for _ in range(150):
                self.asks(process, self._plan(output=_LONG, length_s=rng.choice((0.05, 0.3, 1.0))))

    def _plan(self, *, output, length_s):
        rng = self.rng
        chunks = rng.choice((1, 1, 4)) if output > 1 else 1
        end = rng.choice(("usage", "usage", "usage", "none", "left"))
        return Plan(_WHO, 1, None, output, chunks, length_s / chunks, end)
