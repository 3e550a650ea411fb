"""How requests are split between the variants of a release, counted over many of them."""

import itertools
import json
import math
from collections import Counter

import pytest

from tests.sizes import sampled, sized

from .conftest import LLM, TOKENWEIR
from .crowd import ask_many, request
from .mesh import DOMAIN, documents_of, values

SYSTEM = pytest.mark.system
IN_SESSION = pytest.mark.asyncio(loop_scope="session")

HOST = f"qwen-predictor-models.{DOMAIN}"
CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "qwen", "messages": [{"role": "user", "content": "1 + 1 =?"}], "max_tokens": 1}
).encode()
REQUESTS = sized(2_000, 10_000)
METERED = sized(1_000, 2_500)
MISTAKEN = 1e-6  # how often a right split may fail


def bounds(requests, share):
    """The fewest and the most hits of `share` that are not rarer than MISTAKEN, half of it at either end; exact."""

    def tail(counts):
        total = 0.0
        for count in counts:
            total += math.exp(
                math.lgamma(requests + 1) - math.lgamma(count + 1) - math.lgamma(requests - count + 1)
                + count * math.log(share) + (requests - count) * math.log1p(-share)
            )  # fmt: skip
            if total > MISTAKEN / 2:
                return count
        raise AssertionError("no bound")

    return tail(range(requests + 1)), tail(range(requests, -1, -1))


def test_the_bounds_are_those_of_a_binomial_distribution():
    low, high = bounds(10_000, 0.9)
    # 4.9 standard deviations of 30, and a little: the distribution is skewed.
    assert 8_845 <= low <= 8_860
    assert 9_138 <= high <= 9_150
    assert bounds(10, 0.5) == (0, 10)


async def ask_from_many_accounts(mesh, requests, accounts=50):
    """Each account's default limit is far away."""
    tokens = [mesh.token(f"robot-{number}") for number in range(accounts)]
    whole = [request(HOST, CHAT, {**token, "content-type": "application/json"}, BODY) for token in tokens]
    return await ask_many(mesh.gateway, itertools.islice(itertools.cycle(whole), requests))


@pytest.fixture(scope="session")
def gateway_with(start, mesh, issuer, tmp_path_factory):
    """Another gateway in front of the same pods: `async with gateway_with(primaryLoad=0)`."""

    def other(**more):
        documents = documents_of(values(issuer, **LLM | more), TOKENWEIR)
        return start(documents, issuer, tmp_path_factory.mktemp("gateway"), gateway_only_of=mesh)

    return other


@SYSTEM
@IN_SESSION
async def test_a_canary_gets_its_share_of_thousands_of_requests(gateway_with):
    # The routes are the same with and without Tokenweir; without it they are asked faster.
    async with gateway_with(platform={"tokenweir": {"enabled": False}}) as gateway:
        counted = await ask_from_many_accounts(gateway, REQUESTS)
    assert set(counted) == {(200, "primary"), (200, "canary")}, counted
    low, high = bounds(REQUESTS, 0.9)
    assert low <= counted[200, "primary"] <= high, counted


@SYSTEM
@IN_SESSION
async def test_metered_requests_are_split_too_and_none_fails(mesh):
    # Each ends its stream to the processor by a reset. An Envoy before the processor must not take that for an attack.
    counted = await ask_from_many_accounts(mesh, METERED)
    assert set(counted) == {(200, "primary"), (200, "canary")}, counted
    low, high = bounds(METERED, 0.9)
    assert low <= counted[200, "primary"] <= high, counted


@SYSTEM
@IN_SESSION
@pytest.mark.parametrize(("load", "variant"), sampled([(0, "canary"), (100, "primary")], 1))
async def test_all_or_nothing_is_exactly_that(gateway_with, load, variant):
    async with gateway_with(primaryLoad=load) as gateway:
        assert await ask_from_many_accounts(gateway, 200) == Counter({(200, variant): 200})


@SYSTEM
@IN_SESSION
async def test_a_caller_inside_the_mesh_gets_the_same_split(mesh):
    asked = [request("qwen-predictor", CHAT, {"content-type": "application/json"}, BODY)] * METERED
    counted = await ask_many(mesh.callers["models"], asked)
    low, high = bounds(METERED, 0.9)
    assert set(counted) == {(200, "primary"), (200, "canary")}, counted
    assert low <= counted[200, "primary"] <= high, counted
