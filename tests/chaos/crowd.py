"""Many clients of all replicas at once."""

import asyncio
import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field

from .clients import BrokenError, chat
from .sizes import CLIENTS, size
from .upstream import Upstream, events, granted, split

_AGAIN_S = size("AGAIN_S", full=0.1, short=0.3)  # until what could not be decided is asked again


@dataclass
class Crowd:
    """Asks until so many requests are decided. One that can't be decided (503, or its replica gone) is asked again.

    `spend(rng)` says how many tokens a request costs; the upstream generates what its hold allows.
    """

    doors: list
    caller: object
    rng: object
    prompt: int
    upstream: Upstream = field(default_factory=Upstream)
    outcomes: Counter = field(default_factory=Counter)
    kinds: tuple[str, ...] = ("json",)
    think_s: float = 0.0
    ended: list[str] = field(default_factory=list)  # requests whose whole answer has passed
    over: bool = False
    """Every client finishes what it has begun, and asks no more."""

    @property
    def decided(self):
        return self.outcomes["admitted"] + self.outcomes["denied"]

    async def ask(self, count, spend, *, clients=CLIENTS):
        """So many requests, by so many clients of each replica."""
        numbers = itertools.count()

        async def client(door):
            while next(numbers) < count and not self.over:
                await self._until_decided(door, spend(self.rng))

        async with asyncio.TaskGroup() as all_of_them:
            for door in self.doors:
                for _ in range(clients):
                    all_of_them.create_task(client(door))

    async def until_denied(self, cost):
        """Asks one after the other, at each replica, until all say no."""
        for door in self.doors:
            before = self.outcomes["denied"]
            while self.outcomes["denied"] == before:
                await self._until_decided(door, cost)

    async def _until_decided(self, door, cost):
        while not await self.one(door, cost):
            if self.over:
                return
            await asyncio.sleep(_AGAIN_S)

    async def one(self, door, cost):
        """One request; False where it could not be decided."""
        kind = self.rng.choice(self.kinds)
        exchange = door.exchange(self.caller)
        try:
            verdict = await exchange.request(chat(cost - self.prompt, stream=kind.startswith("sse")))
        except BrokenError:
            self.outcomes["broken before a verdict"] += 1
            return False
        if verdict.unavailable:
            self.outcomes["unavailable"] += 1
            exchange.leave()
            return False
        assert verdict.admitted or verdict.denied, verdict
        self.outcomes["admitted" if verdict.admitted else "denied"] += 1
        if verdict.admitted:
            with contextlib.suppress(BrokenError):
                await self._answered(exchange, verdict, kind)
        else:
            exchange.leave()
            # One that is denied would ask again at once, and take the time of those that are served.
            await self._think()
        return True

    async def stand(self, door, output):
        """Open a stream that stops at some byte. Return the exchange, and the rest of its pieces.

        It has any part of the output that its request allows. All of that counts as generated from now on.
        """
        exchange = await door.admitted(self.caller, chat(output, stream=True))
        self.outcomes["admitted"] += 1
        made = self.rng.randint(1, output)
        usage = {"prompt_tokens": self.prompt, "completion_tokens": made, "total_tokens": self.prompt + made}
        body = b"".join(events(made, usage))
        at = self.rng.randrange(1, len(body) // 2)
        self.upstream.generated[exchange.id] += self.prompt + made
        await exchange.head(content_type="text/event-stream")
        for piece in split(self.rng, body[:at], 3):
            await exchange.piece(piece)
        return exchange, split(self.rng, body[at:], 3)

    async def _think(self):
        if self.think_s:
            await asyncio.sleep(self.rng.uniform(0, self.think_s))

    async def _answered(self, exchange, verdict, kind):
        answer = self.upstream.answer(exchange, self.rng, prompt=self.prompt, output=granted(verdict), kind=kind)
        await self._think()
        try:
            await exchange.answer(answer)
        except BrokenError:
            self.outcomes["broken after a verdict"] += 1
            raise
        self.ended.append(exchange.id)
