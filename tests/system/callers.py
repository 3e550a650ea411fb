"""A service account that nobody else has, and all that a test does with it: ask, read the ledger, read counters."""

import contextlib
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anthropic
import openai

from extproc.admin.change import Change
from extproc.local.stack import SAMPLE_MODEL, Stack
from extproc.ports.audit import Actor, ActorKind
from tests.plaintext import HANGS_S, WITHOUT_TLS, plaintext_client

from .waiting import NEVER_S, until

CHAT = "/v1/chat/completions"
DEFAULT_LIMIT = 100_000  # tokens a day of a service account whose tenant nobody configured
QUESTION = "1 + 1 =?"

CHANGE = Change(Actor("tests", ActorKind.OS_USER, "here"))


def chat(content=QUESTION, **fields):
    """A request's body."""
    return {"model": SAMPLE_MODEL, "messages": [{"role": "user", "content": content}], **fields}


@dataclass
class Records:
    """The stores of a stack, read directly."""

    database: object
    admin: object

    async def entries(self, account):
        found = self.database["token_ledger"].find({"serviceAccount": account}).sort("admitted_at", 1)
        return await found.to_list()

    async def daily(self, account):
        found = self.database["sa_ip_usage_daily"].find({"serviceAccount": account})
        return await found.to_list()


@dataclass
class Caller:
    """One tenant with one service account."""

    stack: Stack
    records: Records
    tenant: str = field(default_factory=lambda: f"tenant-{secrets.token_hex(4)}")
    account: str = ""
    model: str = SAMPLE_MODEL

    def __post_init__(self):
        self.account = self.account or f"robot@{self.tenant}.example.com"
        self.token = self.stack.issuer.issue(self.account, tenant=self.tenant)

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.token}"}

    def on(self, stack):
        """The same service account at another stack with the same stores."""
        return Caller(stack, self.records, self.tenant, self.account)

    def colleague(self, account):
        """Another service account of the same tenant."""
        return Caller(self.stack, self.records, self.tenant, account)

    def openai(self, *, token=None, hooks=None, **options):
        """Return a client of the library `openai`; `hooks` are event hooks of httpx."""
        http = openai.DefaultAsyncHttpxClient(trust_env=False, verify=WITHOUT_TLS, event_hooks=hooks)
        options = {"max_retries": 0, "timeout": HANGS_S, "http_client": http} | options
        return openai.AsyncOpenAI(base_url=f"{self.stack.gateway}/v1", api_key=token or self.token, **options)

    def anthropic(self, *, hooks=None, **options):
        """Return a client of the library `anthropic`; `hooks` are event hooks of httpx."""
        http = anthropic.DefaultAsyncHttpxClient(trust_env=False, verify=WITHOUT_TLS, event_hooks=hooks)
        options = {"max_retries": 0, "timeout": HANGS_S, "http_client": http} | options
        return anthropic.AsyncAnthropic(
            base_url=self.stack.gateway, auth_token=self.token, api_key=None, **options
        )

    def http(self, **options):
        """Return a client of the gateway that has the caller's token."""
        return plaintext_client(**{"base_url": self.stack.gateway, "headers": self.headers} | options)

    def stranger(self):
        """Return a client of the gateway without a token."""
        return plaintext_client(base_url=self.stack.gateway)

    async def post(self, body=None, *, path=CHAT, headers=None, **fields):
        """The answer to one request; `body` is bytes, or what becomes JSON."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body or chat(**fields)}
        async with self.http() as client:
            sent = {"content-type": "application/json"} | (headers or {})
            return await client.post(path, headers=sent, **content)

    async def limit(self, **amounts):
        """Sets the limits of a new tenant, and returns when every processor of the stack knows them."""
        await self.records.admin.limits.set(self.tenant, amounts, CHANGE)
        await self._known_since(time.time())

    async def bind(self, *limits, **fields):
        """Writes the tenant's whole document as an operator would, and returns when every processor knows it."""
        # With the time in it, every time is a change: one that changes nothing is told to nobody.
        document = {"tenant_id": self.tenant, **fields, "updated_at": datetime.now(UTC)}
        document |= {"limits": list(limits)} if limits else {}
        await self.records.database["tenantLimitation"].replace_one(
            {"tenant_id": self.tenant}, document, upsert=True
        )
        await self._known_since(time.time())

    async def _known_since(self, written):
        tenants = await self.records.database["tenantLimitation"].count_documents({})

        async def known():
            return all(
                metrics["tokenweir_limits_tenants"] == tenants
                and metrics["tokenweir_limits_loaded_timestamp_seconds"] > written
                for metrics in await scrape(self.stack)
            )

        await until(known, "the new limits are known")

    async def entries(self, count=1, *, within_s=NEVER_S):
        """The service account's ledger, once it has that many requests; never more. An entry may count for several."""

        found = []

        def requests():
            return sum(entry.get("count", 1) for entry in found)

        async def enough():
            found[:] = await self.records.entries(self.account)
            return requests() >= count

        with contextlib.suppress(AssertionError):
            await until(enough, "so many entries", within_s=within_s)
        assert requests() == count, Counter((entry["state"], entry["reason"]) for entry in found)
        return found

    async def entry(self, *, within_s=NEVER_S):
        (only,) = await self.entries(1, within_s=within_s)
        return only

    async def nothing_recorded_but(self, count):
        """That so many requests, and no more, were recorded. The ledger is written in order: one more comes last."""
        answer = await self.post()
        assert answer.status_code == 200
        found = await self.entries(count + 1)
        return found[:count]

    async def counts(self, client_ip="127.0.0.1"):
        """What the counters hold, by scope: `used` and `held`."""
        explained = await self.records.admin.explain(self.tenant, self.account, client_ip)
        return {state.bucket.limit.scope.value: state.count for state in explained.states}

    async def quota(self, query=""):
        """What the gateway tells the caller of its own limits."""
        async with self.http() as client:
            answer = await client.get(f"/v1/quota{query}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def row(self, query="", **wanted):
        """The only limit in that answer with these values."""
        rows = (await self.quota(query))["limits"]
        (found,) = [row for row in rows if wanted.items() <= row.items()]
        return found

    async def settled_all(self):
        """The rows of that answer, once nothing is held in any of them."""

        async def nothing_held():
            rows = (await self.quota())["limits"]
            return None if any(row["held"] for row in rows) else rows

        return await until(nothing_held, f"nothing is held for {self.account}")

    async def settled(self, client_ip="127.0.0.1"):
        """The tokens used (the same in each scope), once nothing is held any more."""

        async def nothing_held():
            counts = await self.counts(client_ip)
            return counts if not any(count.held for count in counts.values()) else None

        counts = await until(nothing_held, f"nothing is held for {self.account}")
        (used,) = {count.used for count in counts.values()}
        return used


async def scrape(stack):
    """For each processor its metrics, by name and labels as they stand in the text."""
    async with plaintext_client() as client:
        texts = [(await client.get(url)).text for url in stack.metrics]
    return [_values(text) for text in texts]


def _values(text):
    return {m[1]: float(m[2]) for m in re.finditer(r"^(tokenweir_\S+(?: \S+)*?) (\S+)$", text, re.MULTILINE)}


async def total(stack, name):
    """The sum of a metric over labels and processors."""
    sums = Counter()
    for metrics in await scrape(stack):
        for full, value in metrics.items():
            sums[full.partition("{")[0]] += value
    return sums[name]
