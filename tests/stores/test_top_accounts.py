"""The largest accounts are found exactly from what can be read from the largest on, or not at all."""

import random
from collections import Counter
from datetime import date

import pytest

from extproc.ports.reports import Measure, Sums, UsageRow
from extproc.stores.mongo.report_spans import Span
from extproc.stores.mongo.top_accounts import TopAccounts, _Listed

SPAN = Span(date(2026, 1, 5), date(2026, 3, 20))


class Rows(TopAccounts):
    """Reads from a dict: (month, slot) -> account -> value. `within`: what each account has in the dates."""

    def __init__(self, rows, within):
        self.rows, self.within, self.summed, self.read = rows, within, 0, 0
        super().__init__(None, self._sum)

    async def _sum(self, tenant, account):
        self.summed += 1
        return Sums(usage=self.within.get((tenant, account), 0))

    async def _totals(self, span, measure):
        return {key: sum(accounts.values()) for key, accounts in self.rows.items()}

    async def _listed(self, at, slot, measure, total, share):
        least = max(1, -(-total // share))
        found = {a: v for a, v in self.rows[at, slot].items() if v >= least}
        self.read += len(found)
        return _Listed(least, found)


def world(chosen, accounts, skew):
    rows, within = {}, Counter()
    for at in ("2026-01", "2026-02", "2026-03"):
        for slot in chosen.sample(range(10), chosen.choice([1, 2])):
            here = rows[at, slot] = {}
            for n in range(accounts):
                if chosen.random() < 0.6:
                    value = int(1000 * chosen.random() ** -1.1 / (1 + n) ** skew)
                    here[f"t{n % 3}", f"sa{n // 3}"] = value
                    # Of a month at the edge only some days are asked for.
                    within[f"t{n % 3}", f"sa{n // 3}"] += value if at == "2026-02" else chosen.randint(0, value)
    return rows, within


def plainly(within, at_most):
    ranked = sorted(within.items(), key=lambda item: (-item[1], item[0][1], item[0][0]))
    return [UsageRow(None, name, tenant, Sums(usage=value)) for (tenant, name), value in ranked[:at_most]]


@pytest.mark.parametrize("skew", [0, 0.5, 1, 2])
async def test_what_is_found_is_what_summing_all_accounts_finds(skew, monkeypatch):
    monkeypatch.setattr("extproc.stores.mongo.top_accounts._SHARES", (4, 16, 128, 10**6))
    found = 0
    for seed in range(40):
        chosen = random.Random(seed)
        rows, within = world(chosen, chosen.choice([3, 30, 90]), skew)
        at_most = chosen.choice([1, 3, 10])
        largest = await Rows(rows, within).largest(SPAN, Measure.USAGE, at_most)
        assert largest is None or largest == plainly(within, at_most), seed
        found += largest is not None
    assert found > 20


async def test_few_of_many_accounts_are_read_and_summed_if_some_use_much_more_than_others():
    rows, within = world(random.Random(1), 20_000, 1)
    top = Rows(rows, within)
    assert await top.largest(SPAN, Measure.USAGE, 10) == plainly(within, 10)
    assert top.summed < 200
    assert top.read < 3000


async def test_of_accounts_that_use_all_the_same_nothing_is_found_and_no_more_than_a_bound_is_read():
    accounts = {("t", f"sa{n}"): 100 for n in range(40_000)}
    top = Rows({("2026-02", 0): accounts}, accounts)
    assert await top.largest(SPAN, Measure.USAGE, 10) is None
    assert top.summed <= 500
    assert top.read == 0


async def test_accounts_without_any_need_all_rows():
    accounts = {("t", "sa1"): 5, ("t", "sa2"): 7}
    top = Rows({("2026-02", 0): accounts}, accounts)
    assert await top.largest(SPAN, Measure.USAGE, 2) == plainly(Counter(accounts), 2)
    assert await top.largest(SPAN, Measure.USAGE, 3) is None


async def test_of_few_days_all_are_summed():
    accounts = {("t", "sa1"): 5}
    few = Span(date(2026, 2, 3), date(2026, 2, 5))
    assert await Rows({("2026-02", 0): accounts}, accounts).largest(few, Measure.USAGE, 1) is None
