"""Make daily usage, rollups, months of service accounts and ledger entries at size, as the writer makes them.

The rows of a tenant are the same in each run. Sums agree: rollups and months are those of daily usage. Tenants and
accounts use amounts by their rank, the second one half of the first one, with a long tail by chance; half of the
accounts that are used on a day are so each day, the others change. The ledger has entries of its own, of the last
days only.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from bson import ObjectId

from benchmarks.ledger_entries import entry, limits
from extproc.ports.reports import Grain
from extproc.stores.mongo.account_months import account_rows
from extproc.stores.mongo.documents import entry_document
from extproc.stores.mongo.rollups import ROLLED, row_fields, row_id

MODELS: Final = ("llama-3_3-70b", "qwen3-32b", "embed-large")
_ENDPOINTS: Final = ("chat_completions", "embeddings")
_HOURLY_DAYS: Final = 1
ENTRY_DAYS: Final = 7

Document = dict[str, Any]
Added = dict[tuple[Grain, str], dict[str, int]]  # what a tenant adds to the rows of all tenants


@dataclass(frozen=True, slots=True)
class Size:
    """Say how much is made. `active`: the share of a tenant's accounts that are used on a day; one at least.

    `even`: all tenants and accounts use about the same.
    """

    tenants: int
    accounts: int
    days: int
    entries: int
    active: float = 1.0
    even: bool = False

    def dates(self) -> list[date]:
        """Return the dates, the last one today."""
        today = datetime.now(UTC).date()
        return [today - timedelta(days=back) for back in reversed(range(self.days))]


@dataclass(slots=True)
class TenantRows:
    """Hold the documents of a tenant."""

    daily: list[Document]
    rollups: list[Document]
    accounts: list[Document]
    added: Added


def tenant_name(number: int) -> str:
    """Return the name of a tenant."""
    return f"tenant{number:04}"


def account_name(tenant: int, number: int) -> str:
    """Return the name of a service account of a tenant."""
    return f"console@zone-{tenant:04}-{number:04}.example.com"


def tenant_rows(size: Size, tenant: int) -> TenantRows:
    """Make all documents of a tenant but its ledger entries."""
    name, dates = tenant_name(tenant), size.dates()
    rows = TenantRows([], [], [], {})
    of_accounts: dict[tuple[str, str, str], dict[str, int]] = {}
    for number, day in enumerate(dates):
        text, whole = day.isoformat(), dict[str, int]()
        chosen = random.Random(number * 1_000_003 + tenant)
        for account in _used(size, chosen):
            used = _sums(size, chosen, tenant, account)
            key = {"tenant_id": name, "serviceAccount": account_name(tenant, account)}
            rows.daily.append(
                {
                    "_id": ObjectId(f"{day.toordinal():08x}{tenant:08x}{account:08x}"),
                    **key,
                    "clientIP": f"10.{tenant >> 8}.{tenant & 255}.{account & 255}",
                    "date": text,
                    **used,
                }
            )
            _add(of_accounts.setdefault((text[:7], name, key["serviceAccount"]), {}), used)
            _add(whole, used)
        if day in dates[-_HOURLY_DAYS:]:
            part = {each: value // 24 for each, value in whole.items()}
            rows.rollups += [rollup(Grain.HOUR, f"{day}T{hour:02}", name, part) for hour in range(24)]
        rows.rollups.append(rollup(Grain.DAY, text, name, whole))
        for grain, period in ((Grain.DAY, text), (Grain.MONTH, text[:7])):
            _add(rows.added.setdefault((grain, period), {}), whole)
    months = {period: sums for (grain, period), sums in rows.added.items() if grain is Grain.MONTH}
    rows.rollups += [rollup(Grain.MONTH, period, name, sums) for period, sums in months.items()]
    rows.accounts = list(account_rows(of_accounts, 0))
    return rows


def add_all(total: Added, more: Added) -> None:
    """Add what a tenant adds."""
    for key, sums in more.items():
        _add(total.setdefault(key, {}), sums)


def entries(size: Size, first: int, last: int) -> Iterator[Document]:
    """Make the ledger entries with numbers from `first` on, before `last`."""
    template, chosen = entry_document(entry(limits(2), 0)), random.Random(first)
    now = datetime.now(UTC)
    for number in range(first, last):
        tenant = min(int(chosen.paretovariate(0.7)) - 1, 10**9) % size.tenants
        account = chosen.randrange(size.accounts)
        at = now - timedelta(days=ENTRY_DAYS) * (1 - number / size.entries)
        yield template | {
            "_id": f"{number:032x}",
            "request_id": f"{number:x}",
            "tenant_id": tenant_name(tenant),
            "serviceAccount": account_name(tenant, account),
            "clientIP": f"10.0.0.{account & 255}",
            "model": chosen.choice(MODELS),
            "date": f"{at:%Y-%m-%d}",
            "admitted_at": at,
            "ended_at": at + timedelta(seconds=4),
            ROLLED: 1,
        }


def rollup(grain: Grain, period: str, tenant: str | None, whole: dict[str, int]) -> Document:
    """Make a rollup with its models and endpoints."""
    key = (grain, period, tenant)
    shares = {name: {each: value // len(MODELS) for each, value in whole.items()} for name in MODELS}
    halves = {name: {each: value // len(_ENDPOINTS) for each, value in whole.items()} for name in _ENDPOINTS}
    return {"_id": row_id(key, 0), **row_fields(key, 0), **whole, "models": shares, "endpoints": halves}


def _used(size: Size, chosen: random.Random) -> list[int]:
    """Return the accounts that are used on a day."""
    count = max(1, round(size.accounts * size.active))
    always = (count + 1) // 2
    return [*range(always), *chosen.sample(range(always, size.accounts), count - always)]


def _sums(size: Size, chosen: random.Random, tenant: int, account: int) -> dict[str, int]:
    rank = 40 if size.even else (1 + tenant) * (1 + account)
    tail = 1 + 0.1 * chosen.random() if size.even else chosen.random() ** -0.8
    requests = 1 + int(tail * 2000 / rank)
    read, written = requests * chosen.randrange(200, 1500), requests * chosen.randrange(50, 400)
    return {
        "usage": read + written,
        "input": read,
        "output": written,
        "requests": requests,
        "price": written * 601,
    }


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value
