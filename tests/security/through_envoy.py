"""Measure through the real Envoy how much longer a bystander waits while others attack.

    python -m tests.security.through_envoy [--seconds 5] [--attackers 1] [--only PATTERN]
        [--set TOKENWEIR_SERVER__TRANSPORT=grpc] [--json]

The bystander asks every 50 ms, and attackers send without a pause. One core has the processor, the other has Envoy, the upstream, the attackers and the
bystander. The same attack at an Envoy without Tokenweir, and at one whose processor answers each message and does
nothing (benchmarks/noop_native.py), shows how much of the rise comes from Envoy and the second core.
"""

import argparse
import asyncio
import contextlib
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.processes import child
from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from extproc.local.stack import Stack, StackOptions, running
from tests.system.envoys import Configuration, before
from tests.system.upstreams import ANSWER, Upstream

from .answer_shapes import SHAPES as ANSWERS
from .request_shapes import CHATS, HONEST, OTHERS, PATHS

_EVERY_S = 0.05
_ALONE = 100
_PONG = json.dumps(ANSWER).encode()
_PING = json.dumps({"model": "m", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 8}).encode()
_SETTINGS = {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "1000000000000", "TOKENWEIR_COST__LEARN": "false"}
_ATTACK_HEADER = "x-attack"


@dataclass
class Times:
    """Hold what a bystander saw: times in milliseconds, and statuses other than 200."""

    ms: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def at(self, share: float) -> float:
        times = sorted(self.ms)
        return times[min(len(times) - 1, int(len(times) * share))]


@dataclass(frozen=True)
class Attack:
    """Hold what the attackers send, and the name of the answer that they ask for ("" for a small one)."""

    body: bytes
    path: str = PATHS["chat"]
    kind: str = "application/json"
    answer: str = ""


_ASKED = Attack(_PING)


def attacks() -> dict[str, Attack]:
    """Return all attacks by name."""
    found = {f"body: {name}": Attack(make()) for name, make in CHATS.items()}
    for name, (kind, make) in OTHERS.items():
        form = "multipart/form-data; boundary=B" if kind == "transcription" else "application/json"
        found[f"body: {name}"] = Attack(make(), PATHS[kind], form)
    found |= {f"honest body: {name}": Attack(make()) for name, make in HONEST.items()}
    found |= {f"answer: {name}": Attack(_PING, answer=name) for name in ANSWERS}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.through_envoy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack")
    parser.add_argument("--only", default="*", help="names of attacks, as a shell pattern")
    parser.add_argument("--attackers", type=int, default=1, help="connections that attack at once")
    parser.add_argument("--set", action="append", default=[], help="a setting of the processor: NAME=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: the processor has one for itself")
    return asyncio.run(_measure_all(options))


async def _measure_all(options: argparse.Namespace) -> int:
    chosen = {name: each for name, each in attacks().items() if fnmatch.fnmatch(name, options.only)}
    first, second = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {first})
    rows = {}
    settings = _SETTINGS | dict(each.split("=", 1) for each in options.set)
    with tempfile.TemporaryDirectory() as folder, child(_upstream) as upstream:
        url = upstream.recv()
        async with running(StackOptions(upstream=url, settings=settings), Path(folder)) as stack:
            _pin(stack, second)
            async with (
                before(stack, Path(folder) / "bare", change=_without_tokenweir) as bare,
                _noop(Path(folder), second) as port,
                before(stack, Path(folder) / "noop", change=partial(_with_processor, port)) as noop,
            ):
                gateways = {"with": stack.gateway, "noop": noop.gateway, "without": bare.gateway}
                for name, attack in chosen.items():
                    rows[name] = await _row(name, attack, stack, gateways, options)
    if options.json:
        print(json.dumps(rows, indent=2))  # noqa: T201 - the result
    return 1 if any(row["failed"] for row in rows.values()) else 0


async def _row(
    name: str, attack: Attack, stack: Stack, gateways: dict[str, str], options: argparse.Namespace
) -> dict[str, object]:
    tokens = [stack.issuer.issue(f"{who}@x.example", tenant=who) for who in ("attacker", "bystander")]
    row: dict[str, object] = {}
    failed = []
    for side, gateway in gateways.items():
        alone, beside, answered = await _one(attack, gateway, tokens, options)
        row[f"{side}: p99 alone, ms"] = round(alone.at(0.99), 1)
        row[f"{side}: p99 beside, ms"] = round(beside.at(0.99), 1)
        row[f"{side}: p50 rise, ms"] = round(beside.at(0.5) - alone.at(0.5), 1)
        row[f"{side}: p99 rise, ms"] = round(beside.at(0.99) - alone.at(0.99), 1)
        row[f"{side}: attacks"] = answered
        failed += beside.failed
    row["failed"] = len(failed)
    if not options.json:
        rises = [row[f"{side}: p99 rise, ms"] for side in gateways]
        print(  # noqa: T201 - a figure as it comes
            f"{name:45.45} p99 rise {rises[0]:6.1f} ms (p50 {row['with: p50 rise, ms']:5.1f}); no-op {rises[1]:6.1f}; "
            f"without {rises[2]:6.1f}; failed {len(failed)}; attackers got {row['with: attacks']}",
            flush=True,
        )
    return row


async def _one(
    attack: Attack, gateway: str, tokens: list[str], options: argparse.Namespace
) -> tuple[Times, Times, dict[str, int]]:
    attacker, bystander = tokens
    alone, beside = Times(), Times()
    address = (urlsplit(gateway).hostname, urlsplit(gateway).port)
    await _post(address, attacker, attack)  # the upstream makes a large answer once, and answers nobody meanwhile
    for _ in range(_ALONE):
        await _ask(address, bystander, alone)
        await asyncio.sleep(0.01)
    sent = _Sent(attack, address, attacker, options.attackers, options.seconds)
    with child(_attack, sent) as attackers:
        attackers.recv()
        until = time.perf_counter() + options.seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            await _ask(address, bystander, beside)
            await asyncio.sleep(max(0.0, _EVERY_S - (time.perf_counter() - begun)))
        answered = await asyncio.to_thread(attackers.recv)
    return alone, beside, answered


async def _ask(address: tuple[str, int], token: str, times: Times) -> None:
    begun = time.perf_counter()
    status = await _post(address, token, _ASKED)
    times.ms.append(1000 * (time.perf_counter() - begun))
    if status != 200:
        times.failed.append(status)


async def _post(address: tuple[str, int], token: str, attack: Attack) -> int:
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"POST {attack.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        head += f"content-type: {attack.kind}\r\ncontent-length: {len(attack.body)}\r\nconnection: close\r\n"
        head += f"{_ATTACK_HEADER}: {attack.answer}\r\n\r\n" if attack.answer else "\r\n"
        writer.write(head.encode() + attack.body)
        status = (await reader.readline()).split(b" ")
        while await reader.read(1 << 18):
            pass
        return int(status[1]) if len(status) > 1 else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


def _pin(stack: Stack, core: int) -> None:
    """Give the processor, with its worker processes, a core of its own."""
    for processor in stack.processors:
        for task in Path(f"/proc/{processor.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
            for pid in (task / "children").read_text().split():
                os.sched_setaffinity(int(pid), {core})


@contextlib.asynccontextmanager
async def _noop(folder: Path, core: int) -> AsyncIterator[int]:
    """Run a processor that does nothing; yield its port."""
    (port,) = free_ports(1)

    async def ready() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True

    argv = ("taskset", "-c", str(core), sys.executable, "-m", "benchmarks.noop_native", str(port))
    process = await start(Command("noop", argv, folder, env={"PYTHONPATH": str(Path.cwd())}), ready)
    try:
        yield port
    finally:
        await process.stop()


def _with_processor(port: int, configuration: Configuration) -> None:
    cluster = configuration.cluster("tokenweir")
    for group in cluster["load_assignment"]["endpoints"]:
        for endpoint in group["lb_endpoints"]:
            endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port


def _without_tokenweir(configuration: Configuration) -> None:
    manager = configuration.manager
    manager["http_filters"] = [
        each for each in manager["http_filters"] if not each["name"].endswith(("ext_proc", "buffer"))
    ]
    for host in manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            route.pop("typed_per_filter_config", None)


def _upstream(pipe: object) -> None:
    asyncio.run(_serve(pipe))


async def _serve(pipe: object) -> None:
    answers: dict[str, tuple[str, dict[str, str], list[bytes]]] = {}

    async def script(received, reply):
        upstream.received.clear()
        name = next(iter(received.header(_ATTACK_HEADER)), "")
        if not name:
            await reply.whole(_PONG)
            return
        if name not in answers:
            answers.clear()
            answers[name] = _answer(name)
        kind, encoding, pieces = answers[name]
        await reply.stream(pieces, content_type=kind, **encoding)

    upstream = Upstream(script=script)
    async with upstream.serving():
        pipe.send(upstream.url)
        await asyncio.Event().wait()


def _answer(name: str) -> tuple[str, dict[str, str], list[bytes]]:
    messages = ANSWERS[name].messages()
    head = next(message for message in messages if message.HasField("response_headers"))
    headers = {each.key: each.raw_value.decode() for each in head.response_headers.headers.headers}
    encoding = {"content_encoding": headers["content-encoding"]} if "content-encoding" in headers else {}
    pieces = [message.response_body.body for message in messages if message.HasField("response_body")]
    return headers["content-type"], encoding, [piece for piece in pieces if piece]


@dataclass(frozen=True)
class _Sent:
    attack: Attack
    address: tuple[str, int]
    token: str
    attackers: int
    seconds: float


def _attack(pipe: object, sent: _Sent) -> None:
    os.nice(10)  # the bystander shares the core
    pipe.send(None)
    pipe.send(asyncio.run(_send(sent)))


async def _send(sent: _Sent) -> dict[int, int]:
    got: dict[int, int] = {}
    until = time.perf_counter() + sent.seconds

    async def attacker() -> None:
        while time.perf_counter() < until:
            status = await _post(sent.address, sent.token, sent.attack)
            got[status] = got.get(status, 0) + 1

    await asyncio.gather(*(attacker() for _ in range(sent.attackers)))
    return got


if __name__ == "__main__":
    sys.exit(main())
