"""Measure one variant: run the load, ask everybody what was used and counted, and compare the counts."""

import asyncio
import json
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.accounting import Used, machine_cpu_s, used
from benchmarks.counts import Recorded, Wire, get_json, processor_messages, redis_wire
from benchmarks.errors import CannotRunError
from benchmarks.fleet import Fleet, Stack
from benchmarks.forms import Phase, Step, request_bytes
from benchmarks.machine import pinned
from benchmarks.variants import Kind, Variant

_SETTLE_S: Final = 20.0
_POLL_S: Final = 0.03
_WARM_UP: Final = Step(Phase.PEAK, 8, 0.2)
_GIVE_UP_S: Final = 120.0


@dataclass(slots=True)
class Sample:
    """Hold one measurement.

    `problems`: why its figures do not count; empty if they do. `expected`: all of them are properties of the
    variant, such as a rate that it does not hold.
    """

    variant: str
    round: int
    step: str
    load: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Used] = field(default_factory=dict)
    redis: Wire | None = None
    operations: int | None = None
    messages: int = 0
    """Count the messages between Envoy and the processor, both ways together."""
    foreign_cores: float = 0.0
    """Give the cores' worth of time that programs outside of the benchmark took meanwhile."""
    problems: list[str] = field(default_factory=list)
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold everything that is counted, at one moment."""

    used: dict[str, Used]
    upstream: Used
    busy_s: float
    own_s: float
    children_s: float
    at: float
    redis: Wire | None
    served: dict[str, Any]
    recorded: Recorded | None
    messages: int


class Meter:
    """Measure the variants of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tokens: dict[str, str] = {}

    async def turn(self, variant: Variant, steps: tuple[Step, ...], number: int) -> list[Sample]:
        """Warm a variant up, and take its measurements one after the other."""
        await self._measure(variant, _WARM_UP, number)
        samples: list[Sample] = []
        for step in steps:
            peak = next((each for each in samples if each.step == Phase.PEAK), None)
            if step.phase is Phase.RATE and peak is not None and _per_second(peak) < step.rate:
                why = f"does not hold {step.rate:g}/s"
                samples.append(Sample(variant.name, number, step.key, problems=[why], expected=True))
                continue
            samples.append(await self._measure(variant, step, number))
        return samples

    async def idle(self, seconds: float) -> dict[str, dict[str, float]]:
        """Return the share of a core that each stack's processes use while nobody asks them."""
        before = {name: _used_by(stack) for name, stack in self._fleet.stacks.items()}
        began = time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        return {
            name: {role: each.since(before[name][role]).cpu_s / took for role, each in _used_by(stack).items()}
            for name, stack in self._fleet.stacks.items()
        }

    async def _measure(self, variant: Variant, step: Step, number: int) -> Sample:
        stack = self._fleet.stacks[variant.stack]
        before = await asyncio.to_thread(self._snapshot, stack)
        open_memory: dict[str, Used] = {}
        loading = asyncio.ensure_future(self._load(variant, stack, step))
        if step.phase is Phase.OPEN:
            open_memory = await self._while_open(stack, step, loading)
        load = await loading
        after = await self._settled(variant, stack, before)
        spent = {role: after.used[role].since(before.used[role]) for role in after.used}
        spent |= _generators(before, after)
        if step.phase is Phase.OPEN:
            spent = {role: each.since(before.used[role]) for role, each in open_memory.items()}
        operations = None
        if before.recorded and after.recorded and after.recorded.operations is not None:
            operations = after.recorded.operations - (before.recorded.operations or 0)
        wrong, known = (
            wrong_counts(variant, step, load, before, after),
            known_limits(variant, step, load, before, after),
        )
        return Sample(
            variant.name,
            number,
            step.key,
            load,
            spent,
            after.redis.since(before.redis) if after.redis and before.redis else None,
            operations,
            after.messages - before.messages,
            _foreign_cores(before, after),
            problems=[*wrong, *known],
            expected=not wrong,
        )

    async def _load(self, variant: Variant, stack: Stack, step: Step) -> dict[str, Any]:
        token = stack.token or self._token(variant.tenant)
        path = self._fleet.run_dir / f"{variant.name}-{step.key}.request"
        await asyncio.to_thread(path.write_bytes, request_bytes(step, token))
        exact = [] if step.chunks or variant.kind is Kind.LITELLM else [str(await self._plain_answer())]
        numbers = (step.connections, step.seconds, step.rate, step.chunks)
        argv = [str(self._fleet.programs.load), str(stack.gateway_port), str(path), *map(str, numbers), *exact]
        with pinned(self._fleet.cores.front):
            process = await asyncio.create_subprocess_exec(
                *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        try:
            async with asyncio.timeout(step.seconds + _GIVE_UP_S):
                output, complaint = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise CannotRunError(f"load on {variant.name}: {complaint.decode(errors='replace').strip()}")
        result: dict[str, Any] = json.loads(output)
        return result

    def _token(self, tenant: str) -> str:
        if tenant not in self._tokens:
            self._tokens[tenant] = self._fleet.token(tenant)
        return self._tokens[tenant]

    async def _plain_answer(self) -> Path:
        """Return a file with the upstream's JSON answer, which must pass byte for byte."""
        path = self._fleet.run_dir / "answer.json"
        if not path.exists():
            await asyncio.to_thread(path.write_bytes, PLAIN_ANSWER)
        return path

    async def _while_open(
        self, stack: Stack, step: Step, loading: "asyncio.Future[dict[str, Any]]"
    ) -> dict[str, Used]:
        """Return what is used once all streams are open; the last look if they never are."""
        wanted, last = round(step.rate * step.seconds), _used_by(stack)
        while not loading.done():
            served = await asyncio.to_thread(get_json, self._fleet.upstream_port, "/stats")
            last = _used_by(stack)
            if served["open"] >= wanted:
                await asyncio.sleep(0.2)
                return _used_by(stack)
            await asyncio.sleep(_POLL_S)
        return last

    async def _settled(self, variant: Variant, stack: Stack, before: Snapshot) -> Snapshot:
        """Wait until as much is recorded as was served, or too long."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            after = await asyncio.to_thread(self._snapshot, stack)
            if not _missing(variant, before, after) or time.monotonic() > deadline:
                return after
            await asyncio.sleep(_POLL_S)

    def _snapshot(self, stack: Stack) -> Snapshot:
        upstream = used(self._fleet.upstream.pid)
        everybody = sum(each.cpu_s for other in self._fleet.stacks.values() for each in _used_by(other).values())
        return Snapshot(
            _used_by(stack),
            upstream,
            machine_cpu_s(),
            everybody + upstream.cpu_s + time.process_time() + _children_s(),
            _children_s(),
            time.monotonic(),
            redis_wire(stack.redis_port) if stack.redis_port is not None else None,
            get_json(self._fleet.upstream_port, "/stats"),
            stack.counts.read() if stack.counts is not None else None,
            processor_messages(stack.admin_port) if stack.admin_port is not None else 0,
        )


PLAIN_ANSWER: Final = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1760000000,"model":"bench",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"1 + 1 = 2"},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"total_tokens":33,"completion_tokens":8,'
    b'"prompt_tokens_details":null}}'
)


def _children_s() -> float:
    """Return the seconds of children that ended: load generators, for all others run to the end."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _generators(before: Snapshot, after: Snapshot) -> dict[str, Used]:
    load = Used(after.children_s - before.children_s, 0, 0, 0)
    return {"upstream": after.upstream.since(before.upstream), "load": load}


def _foreign_cores(before: Snapshot, after: Snapshot) -> float:
    busy, own = after.busy_s - before.busy_s, after.own_s - before.own_s
    return max(busy - own, 0.0) / (after.at - before.at)


def _used_by(stack: Stack) -> dict[str, Used]:
    return {role: used(child.pid) for role, child in stack.roles.items()}


def _per_second(sample: Sample) -> float:
    return float(sample.load["ok"]) / float(sample.load["seconds"])


def _missing(variant: Variant, before: Snapshot, after: Snapshot) -> bool:
    """Return whether something that was served is not recorded yet."""
    if before.recorded is None or after.recorded is None:
        return False
    admitted = _admitted(before, after)
    if admitted is not None and admitted < _served(before, after):
        return True
    return variant.kind is not Kind.TALK and _tokens_recorded(before, after) < _tokens_served(before, after)


def _served(before: Snapshot, after: Snapshot) -> int:
    return int(after.served["requests"]) - int(before.served["requests"])


def _admitted(before: Snapshot, after: Snapshot) -> int | None:
    if before.recorded is None or after.recorded is None:
        return None
    if before.recorded.admitted is None or after.recorded.admitted is None:
        return None
    return after.recorded.admitted - before.recorded.admitted


def _tokens_served(before: Snapshot, after: Snapshot) -> int:
    return int(after.served["tokens"]) - int(before.served["tokens"])


def _tokens_recorded(before: Snapshot, after: Snapshot) -> int:
    return (after.recorded.tokens if after.recorded else 0) - (before.recorded.tokens if before.recorded else 0)


def wrong_counts(
    variant: Variant, step: Step, load: dict[str, Any], before: Snapshot, after: Snapshot
) -> list[str]:
    """Say which answers or counts are not as they must be."""
    wrong = []
    if load["failed"]:
        wrong.append(f"{load['failed']} of {load['begun']} answers were wrong: {load['first_error']}")
    served = _served(before, after)
    if served != load["begun"]:
        wrong.append(f"{load['begun']} requests were sent, and the upstream served {served}")
    if before.recorded is None or after.recorded is None:
        return wrong
    admitted = _admitted(before, after)
    if admitted is not None and admitted != served:
        wrong.append(f"the ledger has {admitted} entries of {served} admitted requests")
    recorded, tokens = _tokens_recorded(before, after), _tokens_served(before, after)
    counts_none = variant.kind is Kind.TALK and step.chunks and not recorded
    if recorded != tokens and not counts_none:
        wrong.append(f"{recorded} of {tokens} tokens are recorded")
    return wrong


def known_limits(
    variant: Variant, step: Step, load: dict[str, Any], before: Snapshot, after: Snapshot
) -> list[str]:
    """Say which figures the variant can't have by its design or its speed."""
    known = []
    if load["unsent"]:
        known.append(f"does not hold {step.rate:g}/s: {load['unsent']} requests were not begun in time")
    if variant.kind is Kind.TALK and step.chunks and not _tokens_recorded(before, after):
        known.append("this design counts no tokens of a stream")
    return known
