"""Measure how long a peer can hold up the event loop, and how much longer another caller's requests take meanwhile.

An attacker sends a shape: the messages of one exchange. A bystander asks again and again on the same loop. Everything
is measured in processor time of the loop's thread, so a busy machine can't change a result by waiting. Channels are
objects of this process: gRPC, and the work of making a shape, are not measured.
"""

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from extproc.core.phase import ExchangeRules, ProtocolError
from extproc.core.request.identity import IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.reading import BodyReader, ReadHere
from extproc.envoy.servicer import Servicer
from extproc.envoy.turns import Turns
from extproc.observe.metrics import Metrics
from tests.envoy.channels import EachWaits
from tests.envoy.messages import EXCHANGE, NOW, REPLIES, Books, kinds

# Turns of the loop that a message takes through gRPC, in each direction.
_HOPS = 2
_METRICS = Metrics()
_EXCHANGE = [message.SerializeToString() for message in EXCHANGE]
_EVERY_S = 0.002
Reading = Callable[[], contextlib.AbstractAsyncContextManager[BodyReader]]
_ALONE = 50  # exchanges of the bystander before the attack: what one takes by itself


@dataclass(frozen=True)
class Shape:
    """Hold what an attacker sends in one exchange: a function that makes the messages, called before the measurement.

    `attackers` send it at the same time, each `times` times, one after the other.
    """

    messages: Callable[[], Sequence[pb.ProcessingRequest]]
    attackers: int = 1
    times: int = 1


@dataclass
class Stall:
    """Hold the result of one attack. Times are processor time of the loop's thread, in milliseconds.

    `longest_turn` is the longest turn of the event loop, `rise` how much the slowest exchange of the bystander took
    longer than it takes alone, `p99` the same for 99 of 100 exchanges, and `spent` all that was used while the attack
    went on. `ends` are the settlements of
    the attackers' exchanges as (outcome, reason), and `passed` the replies to their messages.
    """

    longest_turn: float = 0.0
    rise: float = 0.0
    p99: float = 0.0
    spent: float = 0.0
    asked: int = 0
    failed: int = 0
    ends: list[tuple[str, str]] = field(default_factory=list)
    passed: list[list[pb.ProcessingResponse]] = field(default_factory=list)

    def __str__(self) -> str:
        times = f"turn {self.longest_turn:.1f} ms, rise {self.rise:.1f} ms (p99 {self.p99:.1f} ms), spent {self.spent:.0f} ms"
        return f"{times}; {self.asked} asked, {self.failed} failed; {self.ends[:3]}"


class _MeteredLoop(asyncio.SelectorEventLoop):
    """Measure the processor time of each turn."""

    longest_turn_s = 0.0

    def _run_once(self) -> None:
        begun = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest_turn_s = max(self.longest_turn_s, time.thread_time() - begun)


class _Line(EachWaits):
    """Carry the messages of one exchange, with as many turns of the loop as gRPC needs for each."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = iter(messages)
        self.written: list[pb.ProcessingResponse] = []

    async def read(self) -> bytes | None:
        await _hop()
        return next(self._messages, None)

    async def write(self, message: pb.ProcessingResponse) -> None:
        await _hop()
        self.written.append(message)


async def _hop() -> None:
    for _ in range(_HOPS):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _here() -> AsyncIterator[BodyReader]:
    yield ReadHere()


def attack(
    shape: Shape,
    *,
    rules: ExchangeRules | None = None,
    attacker: Callable[[], Books] = Books,
    reading: Reading = _here,
) -> Stall:
    """Let attackers send `shape` beside a bystander, and measure.

    `attacker` makes what meters the attackers, `reading` what reads their large bodies.
    """
    messages = [message.SerializeToString() for message in shape.messages()]
    rules = rules or ExchangeRules(IdentityRules(), max_body_bytes=8 << 20)
    gc.collect()
    gc.freeze()  # what the tests themselves keep is not walked while the loop is measured
    try:
        with asyncio.Runner(loop_factory=_MeteredLoop) as runner:
            return runner.run(_attack(shape, messages, rules, attacker(), reading))
    finally:
        gc.unfreeze()


def attack_until(within: Callable[[Stall], bool], shape: Shape, tries: int = 5, **options: object) -> Stall:
    """Return the first of a few attacks whose result is `within` bounds, else the last.

    A stall comes each time. Processor time that neighbours on the machine cost (caches, a shared core) does not.
    """
    for _ in range(tries):
        stall = attack(shape, **options)  # type: ignore[arg-type]
        if within(stall):
            break
    return stall


async def _attack(
    shape: Shape,
    messages: Sequence[bytes],
    rules: ExchangeRules,
    theirs: Books,
    reading: Reading,
) -> Stall:
    async with reading() as reader:
        return await _attacked(shape, messages, rules, theirs, reader)


async def _attacked(
    shape: Shape,
    messages: Sequence[bytes],
    rules: ExchangeRules,
    theirs: Books,
    reader: BodyReader,
) -> Stall:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _MeteredLoop)
    stall = Stall()
    turns = Turns()
    attacked = _servicer(rules, theirs, turns, reader)
    alone = statistics.median([await _ask(rules, turns, stall) for _ in range(_ALONE)])
    stall.asked = 0
    loop.longest_turn_s, begun = 0.0, time.thread_time()
    attackers = [asyncio.create_task(_send(attacked, shape, messages, stall)) for _ in range(shape.attackers)]
    times = []
    while not all(task.done() for task in attackers):
        times.append(await _ask(rules, turns, stall))
        await asyncio.sleep(_EVERY_S)
    await asyncio.gather(*attackers)
    stall.spent = 1000 * (time.thread_time() - begun)
    stall.longest_turn = 1000 * loop.longest_turn_s
    stall.rise = 1000 * (max(times, default=0.0) - alone)
    stall.p99 = 1000 * (sorted(times)[len(times) * 99 // 100] - alone) if times else 0.0
    stall.ends = theirs.ends
    return stall


def _servicer(rules: ExchangeRules, books: Books, turns: Turns, reader: BodyReader | None = None) -> Servicer:
    codec, reader = Codec(rules.identity, MetadataKeys()), reader or ReadHere()
    return Servicer(rules, codec, books, _METRICS, lambda: NOW, reader=reader, turns=turns)  # type: ignore[arg-type]


async def _send(servicer: Servicer, shape: Shape, messages: Sequence[bytes], stall: Stall) -> None:
    for _ in range(shape.times):
        line = _Line(messages)
        with contextlib.suppress(ProtocolError):  # an attacker may send nonsense
            await servicer.serve(line)
        stall.passed.append(line.written)


async def _ask(rules: ExchangeRules, turns: Turns, stall: Stall) -> float:
    """Ask once as the bystander; return the processor time from the first message to the last reply."""
    line, servicer = _Line(_EXCHANGE), _servicer(rules, Books(), turns)
    begun = time.thread_time()
    await servicer.serve(line)
    took = time.thread_time() - begun
    stall.asked += 1
    stall.failed += kinds(line.written) != REPLIES
    return took
