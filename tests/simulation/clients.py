"""What clients ask for, and what their streams do."""

import asyncio
from dataclasses import dataclass

from extproc.core.quota.drafting import Ask
from extproc.core.quota.reservation import Admitted
from extproc.core.quota.settlement import Estimates, released
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from tests.changing import replace

BYTES_PER_OUTPUT_TOKEN = 1
_GROWTH = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """One client: whom it is, what it asks for, how long the answer takes, and how it ends."""

    identity: Identity
    prompt: int
    bound: int | None
    output: int
    chunks: int
    pause_s: float
    end: str
    leaves_after_s: float | None = None
    twice: bool = False


ENDS = ("usage", "usage", "usage", "usage", "none", "left", "left_early", "refused", "cut_off", "not_forwarded")


def plan(rng, identities, ttl_s):
    bound = rng.randint(1, 40) if rng.random() < 0.6 else None
    output = rng.randint(0, bound) if bound is not None else rng.choice((0, 5, 20, 20, 60, 150))
    chunks = rng.choice((1, 1, 1, 2, 4)) if output else 1
    length_s = rng.choice((0.005, 0.02, 0.1, 0.5, 2.0, 8.0))
    if rng.random() < 0.04:
        length_s, chunks = ttl_s * (0.5 + 2 * rng.random()), 6
    return Plan(
        identity=rng.choice(identities),
        prompt=rng.randint(1, 60),
        bound=bound,
        output=output,
        chunks=chunks,
        pause_s=length_s * (0.5 + rng.random()) / chunks,
        end=rng.choice(ENDS),
        leaves_after_s=rng.random() * 0.01 if rng.random() < 0.03 else None,
        twice=rng.random() < 0.1,
    )


def ask_for(what, request_id):
    facts = RequestFacts(
        model="m",
        stream=what.chunks > 1,
        choices=1,
        output_bound=what.bound,
        prompt_bytes=what.prompt,
        media_parts=0,
        wants_usage=True,
        prompt_tokens=what.prompt,
        boundable=True,
    )
    return Ask(what.identity, Endpoint.CHAT_COMPLETIONS, facts, request_id)


async def exchange(what, process, oracle, loop, limit_s):
    """One request from admission to its end, as the servicer does it."""
    asked, pauses = loop.time(), process.pauses
    decision = await process.service.reserve(ask_for(what, f"q{asked}"))
    took = loop.time() - asked if process.pauses == pauses else 0.0
    oracle.decided(type(decision).__name__, took, limit_s)
    if not isinstance(decision, Admitted):
        return decision
    unbounded = what.prompt + what.output if what.bound is None else 0
    request = oracle.admitted(decision.reservation, process, unbounded)
    reader = _Stream(what, request, process, oracle)
    try:
        await reader.read()
    finally:
        settlement = reader.settlement()
        oracle.ended(request, settlement)
        process.service.close(request.reservation, settlement)
        if what.twice:
            process.service.close(request.reservation, settlement)
    return decision


class _Stream:
    def __init__(self, what, request, process, oracle):
        self.what, self.request, self.process, self.oracle = what, request, process, oracle
        self.complete = False
        self.strict = request.reservation.strict
        bound = request.reservation.output_bound
        self.output = min(what.output, bound) if bound is not None else what.output

    async def read(self):
        what, request = self.what, self.request
        for i in range(1, what.chunks + 1):
            await asyncio.sleep(what.pause_s)
            if what.end in ("left_early", "refused", "not_forwarded"):
                return
            if what.end == "left" and i == what.chunks:
                return
            request.written = self.output * i // what.chunks
            self._grow()
        self.complete = True

    def _grow(self):
        reservation, written = self.request.reservation, self.request.written
        enough = written <= reservation.output_held if self.what.bound else written < reservation.output_held
        if enough or self.strict or self.what.chunks == 1:
            return
        more = written - reservation.cost.output + max(_GROWTH, reservation.output_held)
        self.oracle.grew(self.request, replace(reservation, extra_output=more))
        self.process.service.grow(self.request.reservation)

    def settlement(self):
        what, request = self.what, self.request
        estimates = Estimates.of(request.reservation, BYTES_PER_OUTPUT_TOKEN)
        if not self.complete:
            if what.end == "refused":
                return released("upstream_error")
            if what.end == "not_forwarded":
                return released("not_forwarded", forwarded=False)
            return estimates.estimate(request.written, request.written, "left")
        if what.end == "none":
            return estimates.estimate(request.written, request.written, "no_usage", complete=True)
        prompt = what.prompt
        usage = Usage(prompt, request.written, total=prompt + request.written)
        return estimates.settle(usage, complete=what.end != "cut_off")
