"""Print how good the estimates of prompts are: `python -m tests.estimates`, or with `--tenants` each tenant's."""

import asyncio
import sys
from collections import defaultdict

from tests.estimates.counting import FAMILIES
from tests.estimates.judging import LEARNED, Errors, Judged, judged


def line(request: Judged, *, by_tenant: bool) -> tuple[str, ...]:
    name = request.tenant.name if by_tenant else request.tenant.endpoint
    return "yes" if request.counted else "no", name, "yes" if request.tenant.tools else "no"


def table(found: list[Judged], *, by_tenant: bool = False) -> list[str]:
    rows = defaultdict(list)
    for request in found:
        rows[line(request, by_tenant=by_tenant)].append(request)
    lines = [
        "| tokenizer | endpoint | tools | estimates | median error | p95 error | hold exceeded |",
        "|---" * 7 + "|",
    ]
    for named, requests in sorted(rows.items()):
        shares = " | ".join(f"{share:.1%}" for share in Errors.of(requests))
        lines.append(f"| {' | '.join(named)} | {len(requests)} | {shares} |")
    return lines


async def main() -> None:
    found = [request async for request in judged()]
    print(f"Prompts of {', '.join(FAMILIES)}; after {LEARNED} requests of the tenant and model.\n")
    print("\n".join(table(found, by_tenant="--tenants" in sys.argv[1:])))


if __name__ == "__main__":
    asyncio.run(main())
