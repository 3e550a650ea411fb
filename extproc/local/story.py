"""Play a demo story with the real `openai` client on the real stack.

A tenant has `sa_limit: 12000, ip_limit: 400`. The story makes calls within the limit, a stream, a call without a
token and one with a forged token, and calls until the limit of service account + IP is reached. Then it shows the
records, and checks that they are complete.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from openai import APIError, AsyncOpenAI, AuthenticationError, Omit, RateLimitError
from rich.console import Console
from rich.text import Text

from extproc.admin.change import Change
from extproc.admin.errors import NotFoundError
from extproc.admin.service import Admin
from extproc.app import SystemClock, build_stores, defaults
from extproc.core.quota.ledger import Entry
from extproc.core.quota.settlement import Outcome
from extproc.local.stack import Stack
from extproc.ports.audit import Actor, ActorKind
from extproc.ports.ledger import DailyUsage, UsageFilter, UsageReports
from extproc.settings.load import load
from extproc.terminal.tables import print_table

SA_LIMIT, IP_LIMIT = 12_000, 400
_MOST_CALLS = 60  # by then the limit must have been reached
_RECORDED_S = 60.0  # no promise: entries that are not there by then are missing
_IN_EFFECT_S = 60.0  # 5 s are promised; the stores of a busy machine may take longer
_QUESTION = "1 + 1 =?"
_STORY = Actor("local demo", ActorKind.TOKENWEIR, "local")


@dataclass(frozen=True, slots=True)
class Caller:
    """Name the tenant and the service account of the story."""

    tenant: str
    account: str

    @classmethod
    def talk(cls) -> "Caller":
        return cls("tenant01", "console@zone-prod.example.com")

    @classmethod
    def unique(cls) -> "Caller":
        """Return a tenant whose name is new."""
        name = f"demo-{secrets.token_hex(4)}"
        return cls(name, f"console@{name}.example.com")


class _Score:
    """Collect the results of checks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.good = True

    def check(self, held: bool, what: str) -> None:
        self.good = self.good and held
        self.console.print(Text("  yes  " if held else "  NO   ", "green" if held else "red"), what, sep="")


async def play(stack: Stack, model: str, caller: Caller, console: Console) -> bool:
    """Play the story. Return whether all checks passed. Raise `StoreError`."""
    settings = load(environment=stack.environment)
    stores = build_stores(settings)
    score = _Score(console)
    served_before = await _served_tokens(stack)
    admin = Admin(
        stores.tenants, stores.reports, stores.counters, defaults(settings), SystemClock().now, audit=stores.audit
    )
    try:
        await _set_limits(admin, stack, caller, score)
        token = stack.issuer.issue(caller.account, tenant=caller.tenant)
        async with _client(stack, token) as client:
            seen = [await _plain(client, model, score), await _stream(client, model, score)]
            await _strangers(stack, model, caller, score)
            seen += await _until_denied(client, model, score)
        entries = await _recorded(stores.reports, caller, len(seen) + 1)
        _show_daily(await stores.reports.daily(UsageFilter(tenant=caller.tenant), 20), console)
        _show_ledger(entries, console)
        served = await _served_tokens(stack)
        counted = served - served_before if served is not None and served_before is not None else None
        _prove(entries, counted, sum(seen), score)
    finally:
        if caller != Caller.talk():
            with suppress(NotFoundError):  # it ended before it set them
                await admin.limits.delete(caller.tenant, Change(_STORY))
            console.print(
                f"\nThe limits of {caller.tenant} are deleted again; its usage and ledger stay in MongoDB."
            )
        await stores.aclose()
    return score.good


async def _set_limits(admin: Admin, stack: Stack, caller: Caller, score: _Score) -> None:
    _title(score.console, "A platform engineer sets the limits of a tenant")
    await admin.limits.set(caller.tenant, {"sa_limit": SA_LIMIT, "ip_limit": IP_LIMIT}, Change(_STORY))
    written, started = time.time(), time.monotonic()
    took = 0.0
    while not (effective := await stack.limits_read_at() > written) and took < _IN_EFFECT_S:
        await asyncio.sleep(0.05)
        took = time.monotonic() - started
    score.console.print(f"  {caller.tenant}: sa_limit {SA_LIMIT}, ip_limit {IP_LIMIT} tokens a day")
    score.check(effective, f"in effect after {took:.1f} s")


async def _plain(client: AsyncOpenAI, model: str, score: _Score) -> int:
    _title(score.console, "A client asks, and asks again as a stream")
    raw = await client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": _QUESTION}], max_tokens=32
    )
    answer = raw.parse()
    total = answer.usage.total_tokens if answer.usage else 0
    score.console.print(f"  {_QUESTION} -> {answer.choices[0].message.content!r}, {total} tokens", markup=False)
    left = raw.headers.get("x-ratelimit-remaining-tokens", "nothing")
    score.check(left.isdigit(), f"the answer tells what is left: x-ratelimit-remaining-tokens: {left}")
    return total


async def _stream(client: AsyncOpenAI, model: str, score: _Score) -> int:
    started = time.monotonic()
    chunks, usage_chunks = 0, 0
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me of weirs."}],
        max_tokens=24,
        stream=True,
    )
    async for chunk in stream:
        chunks += 1
        usage_chunks += chunk.usage is not None
    duration = time.monotonic() - started
    score.console.print(f"  a stream of {chunks} chunks in {duration:.2f} s")
    score.check(
        chunks > 1 and not usage_chunks, "it is metered, and shows no usage that the client did not ask for"
    )
    return 0


async def _strangers(stack: Stack, model: str, caller: Caller, score: _Score) -> None:
    _title(score.console, "Strangers")
    forged = stack.issuer.forge(caller.account, tenant=caller.tenant)
    for what, headers in (("no token", {"Authorization": Omit()}), ("a forged token", {})):
        async with _client(stack, forged) as client:
            try:
                await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "Hi"}], extra_headers=headers
                )
            except AuthenticationError as error:
                score.check(error.status_code == 401, f"{what}: 401 {error.code}: {_message(error)}")  # noqa: PLR2004
            else:
                score.check(False, f"{what}: was let in")


async def _until_denied(client: AsyncOpenAI, model: str, score: _Score) -> list[int]:
    _title(score.console, "The same question, until the limit is hit")
    totals: list[int] = []
    for _ in range(_MOST_CALLS):
        try:
            answer = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": _QUESTION}], max_tokens=16
            )
        except RateLimitError as error:
            score.console.print(f"  {len(totals)} more calls were answered, then:\n")
            _show_denied(error, score.console)
            score.check(
                _message(error).startswith("Usage over limit -- serviceAccount + IP."), "429, as it should be"
            )
            return totals
        totals.append(answer.usage.total_tokens if answer.usage else 0)
    score.check(False, f"{_MOST_CALLS} calls were answered and the limit was not hit")
    return totals


def _show_denied(error: RateLimitError, console: Console) -> None:
    shown = ("retry-after", "x-should-retry")
    console.print(f"  HTTP {error.status_code}", markup=False)
    for name, value in error.response.headers.items():
        if name.startswith("x-ratelimit") or name in shown:
            console.print(f"  {name}: {value}", markup=False)
    console.print(f"  {error.response.text}\n", markup=False)


async def _recorded(reports: UsageReports, caller: Caller, expected: int) -> list[Entry]:
    """Wait until the ledger has the expected entries, which are written shortly after the answers, and return
    them.
    """
    deadline = time.monotonic() + _RECORDED_S
    while True:
        entries = await reports.entries(UsageFilter(tenant=caller.tenant), 1000)
        if len(entries) >= expected or time.monotonic() > deadline:
            return sorted(entries, key=lambda entry: entry.admitted_at)
        await asyncio.sleep(0.05)


def _show_daily(days: Sequence[DailyUsage], console: Console) -> None:
    _title(console, "Daily usage, read from MongoDB (modelToken.sa_ip_usage_daily)")
    columns = ("serviceAccount", "clientIP", "date", "usage", "input", "output", "requests", "denied")
    rows = [
        (d.service_account, d.client_ip, d.date, d.usage, d.input, d.output, d.requests, d.denied) for d in days
    ]
    print_table(columns, rows)


def _show_ledger(entries: Sequence[Entry], console: Console) -> None:
    _title(console, "The ledger, read from MongoDB (modelToken.token_ledger)")
    columns = ("admitted", "state", "stream", "held", "charge", "input", "output", "reason")
    rows = [
        (
            f"{e.admitted_at:%H:%M:%S.%f}"[:12], e.outcome.value, "yes" if e.stream else "no", e.held, e.charge,
            e.usage.input, e.usage.output, e.reason,
        )
        for e in entries
    ]  # fmt: skip
    print_table(columns, rows)


def _prove(entries: Sequence[Entry], served: int | None, seen: int, score: _Score) -> None:
    _title(score.console, "The proof")
    charged = sum(entry.charge for entry in entries)
    if served is not None:
        what = f"ledger {charged} tokens = {served} tokens that the model server counted itself"
        score.check(charged == served, what)
    else:
        reported = [e for e in entries if e.outcome is Outcome.SETTLED and not e.stream]
        plain = sum(entry.charge for entry in reported)
        score.check(plain == seen, f"ledger {plain} tokens of plain calls = {seen} that the client was shown")
        if estimated := sum(entry.outcome is Outcome.ESTIMATED for entry in entries):
            score.console.print(f"       {estimated} requests are estimated: no usage was reported for them")
    score.check(charged <= IP_LIMIT, f"{charged} tokens <= the limit of {IP_LIMIT}")


async def _served_tokens(stack: Stack) -> int | None:
    return int((await stack.served())["total_tokens"]) if stack.embedded_model else None


def _client(stack: Stack, token: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{stack.gateway}/v1", api_key=token, max_retries=5, timeout=60)


def _message(error: APIError) -> str:
    return str(error.body.get("message", "")) if isinstance(error.body, dict) else error.message


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")
