"""Send requests of several tenants to all replicas, and note the fate of each as seen from outside."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

from .clients import BrokenError, Caller, chat
from .sizes import size
from .timeline import Timeline
from .upstream import events, granted, make_answer

# Envoy waits for an answer to one message so long; then the client gets 504, and the upstream is not asked. Here only
# replicas that stand still are given up: a slow one, on a busy machine, is waited for.
ENVOY_WAITS_S = 1.0
PROBE_EVERY_S = size("PROBE_S", full=0.025, short=0.05)
CONTROL_EVERY_S = 0.05
LOOK_EVERY_S = 0.1
CLIENTS = size("PAIR_CLIENTS", full=8, short=4)  # of each replica
THINK_S = size("PAIR_THINK_S", full=0.15, short=0.3)  # of a client between two requests, at the most
STREAM_S = size("PAIR_STREAM_S", full=4.0, short=1.5)  # at the most
STREAMED = 0.3  # of all requests
COST = 100
_AGAIN_S = 0.1


@dataclass(eq=False)
class Asked:
    """Hold one request and its fate. Moments are of the monotonic clock."""

    id: str
    caller: Caller
    replica: int
    sent_at: float
    probe: bool
    outcome: str = "open"
    """Says admitted, denied or unavailable; broken if the replica is gone; given up if it stands still."""
    decided_at: float | None = None
    tokens: int | None = None
    """Counts the tokens that the upstream generated; None if it was not asked."""
    ended_at: float | None = None
    """Marks the end of the answer; None if the answer has not passed as a whole."""

    @property
    def served(self):
        return self.tokens is not None

    @property
    def decided(self):
        return self.outcome in {"admitted", "denied"}

    @property
    def took_s(self):
        return self.decided_at - self.sent_at


@dataclass(frozen=True)
class Control:
    """Hold the duration of a request that needs no store."""

    replica: int
    sent_at: float
    took_s: float


@dataclass
class Traffic:
    """Run clients that come and go, probes that are denied at a steady rate, and requests that need no store.

    The upstream is asked for each admitted request; `Asked` has the tokens of its answer.
    """

    doors: list
    rng: object
    prompt: int
    callers: list[Caller]
    """Lists the tenants of the clients."""
    probed: list[Caller]
    """Lists the tenants of the probes: Redis denies all their requests, so that they do not fill the ledger."""
    timeline: Timeline
    watched: list[Caller] = field(default_factory=list)
    """Lists the tenants whose counters are read all the time."""
    most: Counter[Caller] = field(default_factory=Counter)
    """Holds the highest sum of used and held tokens that any replica told."""
    asked: list[Asked] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    over: bool = False
    """Ends the traffic: requests that have begun are finished, no others are sent."""

    async def run(self):
        """Ask until it is over."""
        async with asyncio.TaskGroup() as all_of_them:
            for number in range(len(self.doors)):
                all_of_them.create_task(self._control(number))
                all_of_them.create_task(self._watch(number))
                for caller in self.probed:
                    all_of_them.create_task(self._probe(number, caller))
                for _ in range(CLIENTS):
                    all_of_them.create_task(self._client(number))

    def served(self, caller):
        """Return the requests of a caller that the upstream was asked for, by id."""
        return {asked.id: asked for asked in self.asked if asked.caller == caller and asked.served}

    def decides(self, number, caller, since):
        """Tell whether a replica has admitted or denied a request of a caller that was sent after a moment."""
        recent = itertools.takewhile(lambda asked: asked.sent_at >= since, reversed(self.asked))
        return any(asked.decided and asked.replica == number and asked.caller == caller for asked in recent)

    async def _client(self, number):
        while not self.over:
            streamed = self.rng.random() < STREAMED
            asked = await self._one(number, self.rng.choice(self.callers), COST, streamed=streamed)
            await asyncio.sleep(self.rng.uniform(0, THINK_S) if asked.decided else _AGAIN_S)

    async def _probe(self, number, caller):
        while not self.over:
            began = time.monotonic()
            await self._one(number, caller, COST, probe=True)
            await asyncio.sleep(max(0.0, began + PROBE_EVERY_S - time.monotonic()))

    async def _control(self, number):
        while not self.over:
            exchange = self.doors[number].exchange(self.probed[0])
            began = time.monotonic()
            try:
                verdict = await self._while_it_runs(number, exchange.request(b'{"messages": '))
            except (BrokenError, TimeoutError):
                exchange.leave()
            else:
                assert verdict.status == 400, verdict
                self.controls.append(Control(number, began, time.monotonic() - began))
            await asyncio.sleep(max(0.0, began + CONTROL_EVERY_S - time.monotonic()))

    async def _watch(self, number):
        while not self.over:
            for caller in self.watched:
                rows = None
                with contextlib.suppress(BrokenError, TimeoutError):
                    rows = await self._while_it_runs(number, self.doors[number].quota(caller))
                if rows:
                    self.most[caller] = max(self.most[caller], rows[0]["used"])
                await asyncio.sleep(LOOK_EVERY_S)

    async def _one(self, number, caller, cost, *, streamed=False, probe=False):
        exchange = self.doors[number].exchange(caller)
        asked = Asked(exchange.id, caller, number, time.monotonic(), probe)
        self.asked.append(asked)
        try:
            verdict = await self._while_it_runs(
                number, exchange.request(chat(cost - self.prompt, stream=streamed))
            )
        except (BrokenError, TimeoutError) as error:
            asked.outcome = "broken" if isinstance(error, BrokenError) else "given up"
            exchange.leave()
            return asked
        asked.decided_at = time.monotonic()
        if verdict.admitted:
            asked.outcome = "admitted"
            await self._answer(exchange, asked, granted(verdict), streamed=streamed)
        else:
            assert verdict.denied or verdict.unavailable, verdict
            asked.outcome = "denied" if verdict.denied else "unavailable"
            exchange.leave()
        return asked

    async def _while_it_runs(self, number, answer):
        """Await a replica's answer. Raise `TimeoutError` if none comes in time and the replica stands still."""
        waiting = asyncio.ensure_future(answer)
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=ENVOY_WAITS_S)
                if done:
                    return waiting.result()
                if self.timeline.stands_still(number):
                    raise TimeoutError
        finally:
            waiting.cancel()

    async def _answer(self, exchange, asked, bound, *, streamed):
        output = self.rng.randint(1, bound)
        asked.tokens = self.prompt + output
        try:
            if streamed:
                await self._stream(exchange, output)
            else:
                await exchange.answer(make_answer(self.rng, self.prompt, output, "json"))
        except BrokenError:
            return
        asked.ended_at = time.monotonic()

    async def _stream(self, exchange, output):
        """Pass an answer that takes some seconds."""
        usage = {"prompt_tokens": self.prompt, "completion_tokens": output, "total_tokens": self.prompt + output}
        pieces = list(events(output, usage))
        lasts_s = self.rng.uniform(0, STREAM_S)
        await exchange.head(content_type="text/event-stream")
        for piece in pieces[:-1]:
            await exchange.piece(piece)
            await asyncio.sleep(lasts_s / len(pieces))
        await exchange.pieces(pieces[-1:])
