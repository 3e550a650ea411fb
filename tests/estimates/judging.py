"""Learn estimates from one half of the corpus, and judge them by the other half."""

from collections.abc import Iterator
from typing import NamedTuple

from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.body import read_request
from extproc.core.request.endpoints import Target
from extproc.core.request.identity import TenantId
from extproc.metering.estimator import Estimator
from extproc.observe.metrics import Metrics
from tests.estimates.corpus import EACH, Tenant, corpus
from tests.estimates.counting import COUNTS, FAMILIES

LEARNED = EACH // 2


class Judged(NamedTuple):
    """A request of the half that is judged: what was held for its prompt, and what its prompt had."""

    tenant: Tenant
    family: str
    counted: bool
    held: int
    true: int

    @property
    def error(self) -> float:
        return abs(self.held - self.true) / self.true


class Counter:
    """Stands for a model's tokenizer: returns what it counted when the corpus was counted."""

    def __init__(self):
        self.tokens = None

    def knows(self, model):
        return self.tokens is not None

    async def count(self, model, endpoint, prompt):
        return self.tokens

    def start(self):
        pass

    async def aclose(self):
        pass


def counts() -> list[list[int]]:
    """For each request and family, the tokens of its prompt and those of its texts alone."""
    return [[*map(int, line.split())] for line in COUNTS.read_text(encoding="utf-8").splitlines()]


async def judged() -> Iterator[Judged]:
    """Yield how each request of the second half was estimated, with a tokenizer and without."""
    counter = Counter()
    estimators = {counted: Estimator(Models(ModelProfile()), counter, Metrics()) for counted in (False, True)}
    for request, numbers in zip(corpus(), counts(), strict=True):
        endpoint = request.tenant.endpoint
        read = read_request(Target(endpoint), request.sent, "application/json")
        for place, family in enumerate(FAMILIES):
            true, texts = numbers[2 * place : 2 * place + 2]
            for counted, estimator in estimators.items():
                counter.tokens = texts if counted else None
                tenant = TenantId(f"{request.tenant.name} {family}")
                estimate = await estimator.estimate(tenant, endpoint, read, strict=False)
                if request.number < LEARNED:
                    usage = Usage(true, 1, total=true + 1)
                    settlement = Settlement(Outcome.SETTLED, usage, usage.total, "usage", 200)
                    estimator.learn(estimate.lesson, settlement, bounded=True)
                else:
                    yield Judged(request.tenant, family, counted, estimate.cost.prompt, true)


class Errors(NamedTuple):
    """What a set of estimates was worth. All are shares: of the truth, and of the requests."""

    median: float
    p95: float
    exceeded: float

    @classmethod
    def of(cls, requests: list[Judged]) -> "Errors":
        errors = sorted(request.error for request in requests)
        over = sum(request.true > request.held for request in requests)
        return cls(errors[len(errors) // 2], errors[len(errors) * 95 // 100], over / len(requests))
