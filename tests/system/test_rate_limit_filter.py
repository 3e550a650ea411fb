"""Envoy's own rate limit filter, in the real Envoy, asks the real servicer: what clients see of it.

The configuration is deploy/envoy/rate-limit.yaml with the addresses and keys of this machine. The limits are
counted by a stand-in for accounting, so that each test says what they are.
"""

import asyncio
import contextlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import grpc
import pytest
import pytest_asyncio
import yaml

from extproc.core.quota.limits import Bucket, Limit, Scope, Subject, Unit, Window, interval_at
from extproc.core.quota.reservation import Admitted, BucketState, Count, Denied, Suspended, Unavailable
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.server import rate_limit_handler
from extproc.local.issuer import AUDIENCE, ISSUER, TokenIssuer
from extproc.local.ports import HOST, free_ports
from extproc.observe.metrics import Metrics
from tests.missing import needing_parts
from tests.plaintext import plaintext_client

from . import envoys
from .marks import SYSTEM
from .upstreams import Upstream
from .waiting import until

pytestmark = SYSTEM

SAMPLE = Path(__file__).parents[2] / "deploy/envoy/rate-limit.yaml"
NOW = datetime(2026, 3, 1, 12, 0, 15, tzinfo=UTC)
UTC_ZONE = ZoneInfo("UTC")
OURS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


class Books:
    """In the place of accounting: the rule of `core.quota` on counts in memory, and never two at a time."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.limits = ()
        self.decision = None
        self.counts = Counter()
        self.hits = []
        self.cancelled = 0

    async def hit(self, hit):
        self.hits.append(hit)
        if callable(self.decision):
            try:
                await self.decision()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif self.decision is not None:
            return self.decision
        buckets = [self._bucket(limit, hit) for limit in self.limits]
        buckets += [each.bucket(NOW, UTC_ZONE) for each in hit.extra]
        keys = [(hit.identity.tenant, bucket.key) for bucket in buckets]
        states = [BucketState(b, Count(self.counts[key], 0)) for b, key in zip(buckets, keys, strict=True)]
        for state in states:
            if not state.admits(hit.hits):
                return Denied(state, hit.hits)
        self.counts.update(dict.fromkeys(keys, hit.hits))
        states = [BucketState(b, Count(self.counts[key], 0)) for b, key in zip(buckets, keys, strict=True)]
        return Admitted(None, tuple(states))

    @staticmethod
    def _bucket(limit, hit):
        parts = limit.scope.parts(hit.identity, Subject(hit.model))
        return Bucket(limit, parts, interval_at(limit.window, NOW, UTC_ZONE))


def at_most(amount, scope, window=Window.MINUTE):
    return Limit(scope, window, amount, Unit.REQUESTS)


# ---------------------------------------------------------------- Envoy, as the sample says


class Sample:
    """The sample, with what differs from machine to machine put in; `change(config)` for what a test differs in."""

    def __init__(self, issuer, upstream_port, processor_port):
        self.listener_port, self.admin_port = free_ports(2)
        self.config = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
        self.manager = self._only("envoy.filters.network.http_connection_manager")
        self._set_address(self.config["admin"]["address"], self.admin_port)
        self._set_address(self.config["static_resources"]["listeners"][0]["address"], self.listener_port)
        for cluster in self.config["static_resources"]["clusters"]:
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            self._set_address(
                endpoint["address"], {"tokenweir": processor_port, "upstream": upstream_port}[cluster["name"]]
            )
        tokens = self.filter("envoy.filters.http.jwt_authn")["providers"]["tokens"]
        tokens |= {"issuer": ISSUER, "audiences": [AUDIENCE], "local_jwks": {"inline_string": issuer.jwks_json()}}

    @property
    def rate_limit(self):
        return self.filter("envoy.filters.http.ratelimit")

    @property
    def routes(self):
        return self.manager["route_config"]["virtual_hosts"][0]["routes"]

    def filter(self, name):
        (found,) = [each for each in self.manager["http_filters"] if each["name"] == name]
        return found["typed_config"]

    def _only(self, name):
        (found,) = self.config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
        assert found["name"] == name
        return found["typed_config"]

    @staticmethod
    def _set_address(address, port):
        address["socket_address"] = {"address": HOST, "port_value": port}

    @contextlib.asynccontextmanager
    async def running(self, run_dir):
        with needing_parts():
            async with envoys.running_envoy(self.config, self.admin_port, run_dir):
                yield f"http://{HOST}:{self.listener_port}"


def patient(sample):
    """A decision may take as long as a busy machine needs."""
    sample.rate_limit["timeout"] = "60s"
    for cluster in sample.config["static_resources"]["clusters"]:
        cluster["connect_timeout"] = "60s"


class Gateways:
    """Three Envoys before one upstream and one servicer.

    `hasty` is as the sample says, `sample` waits longer for a decision, and `lenient` lets errors pass.
    """

    def __init__(self, issuer, upstream, books):
        self.issuer = issuer
        self.upstream = upstream
        self.books = books
        self.metrics = Metrics()
        (self.port,) = free_ports(1)
        self.server = None
        self.hasty = self.sample = self.lenient = ""

    async def serve(self):
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        servicer = RateLimitServicer(self.books.hit, self.metrics, lambda: NOW)
        self.server.add_generic_rpc_handlers((rate_limit_handler(servicer),))
        assert self.server.add_insecure_port(f"{HOST}:{self.port}") == self.port
        await self.server.start()

    async def stop(self):
        await self.server.stop(0.0)

    def token(self, account, tenant="acme"):
        return {"authorization": f"Bearer {self.issuer.issue(account, tenant=tenant)}"}

    async def get(self, path, headers=None, *, gateway=None):
        async with plaintext_client(base_url=gateway or self.sample) as client:
            return await client.get(path, headers=headers)


# What an operator may write by mistake, and what else the filter can say: every pair is an entry of one descriptor.
FURTHER_ROUTES = {
    "/second": [("limit", "tenant:1/second")],
    "/nobody": [("service_account", " x")],
    "/week": [("limit", "tenant:5/week")],
    "/one": [("route", "one"), ("limit", "client_ip:1/minute")],
    "/two": [("route", "two"), ("limit", "client_ip:1/minute")],
}


def differ(sample):
    """Errors pass, Envoy's own headers are added, there are further routes, and a body for every other error."""
    sample.rate_limit["failure_mode_deny"] = False
    sample.rate_limit["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03"
    sample.filter("envoy.filters.http.jwt_authn")["rules"].clear()
    for name, pairs in FURTHER_ROUTES.items():
        actions = [{"generic_key": {"descriptor_key": key, "descriptor_value": value}} for key, value in pairs]
        rate_limits = [{"actions": [{"remote_address": {}}]}, {"actions": [{"remote_address": {}}, *actions]}]
        route = {"cluster": "upstream", "rate_limits": rate_limits}
        sample.routes.insert(0, {"match": {"prefix": name}, "route": route})
    mine = {
        "status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "x"}}}
    }
    sample.manager["local_reply_config"]["mappers"].append(
        {"filter": mine, "body_format_override": {"json_format": {"error": "the operator's own"}}}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rate-limit")
    async with Upstream().serving() as upstream:
        gateways = Gateways(TokenIssuer(), upstream, Books())
        upstream_port = int(upstream.url.rpartition(":")[2])
        hasty, sample, lenient = (Sample(gateways.issuer, upstream_port, gateways.port) for _ in range(3))
        for each in (sample, lenient):
            patient(each)
        differ(lenient)
        async with contextlib.AsyncExitStack() as running:
            for name, each in (("hasty", hasty), ("sample", sample), ("lenient", lenient)):
                setattr(gateways, name, await running.enter_async_context(each.running(folder / name)))
            await gateways.serve()
            yield gateways
            await gateways.stop()


@pytest.fixture
def gateways(started):
    started.books.reset()
    started.upstream.reset()
    return started


def error_of(answer, status):
    assert answer.status_code == status
    assert answer.headers.get_list("content-type") == ["application/json"]
    return answer.json()["error"]


# ---------------------------------------------------------------- limits


async def test_an_address_has_its_limit_and_a_client_over_it_is_told_all_that_it_needs(gateways):
    gateways.books.limits = (at_most(2, Scope.CLIENT_IP),)
    answers = [await gateways.get("/public/x") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    error = error_of(answers[2], 429)
    assert error["message"].startswith("Usage over limit -- IP. Limit 2 requests per minute: 2 used.")
    assert error["code"] == "rate_limit_exceeded"
    assert answers[2].headers["retry-after"] == "45"
    assert [answers[2].headers.get_list(name) for name in OURS] == [["2"], ["0"], ["45s"]]
    assert answers[2].headers["x-envoy-ratelimited"] == "true"
    assert len(gateways.upstream.received) == 2


async def test_what_an_address_is_can_not_be_chosen_by_the_client(gateways):
    gateways.books.limits = (at_most(1, Scope.CLIENT_IP),)
    forged = {"x-forwarded-for": "10.9.9.9", "x-envoy-external-address": "10.9.9.9", "x-real-ip": "10.9.9.9"}
    assert (await gateways.get("/public/x", forged)).status_code == 200
    assert (await gateways.get("/public/x", {"x-forwarded-for": "10.8.8.8"})).status_code == 429
    assert {hit.identity.client_ip for hit in gateways.books.hits} == {"127.0.0.1"}


async def test_each_service_account_has_its_limit_by_the_claims_of_its_verified_token(gateways):
    gateways.books.limits = (at_most(2, Scope.SERVICE_ACCOUNT, Window.DAY),)
    first, second = gateways.token("console"), gateways.token("batch")
    statuses = [(await gateways.get("/any", token)).status_code for token in (first, first, first, second)]
    assert statuses == [200, 200, 429, 200]
    hit = gateways.books.hits[0]
    assert (hit.identity.tenant, hit.identity.service_account, hit.identity.client_ip) == (
        "acme",
        "console",
        "127.0.0.1",
    )
    denied = await gateways.get("/any", first)
    assert error_of(denied, 429)["message"].startswith("Usage over limit -- serviceAccount. ")
    assert denied.headers["x-should-retry"] == "false"


async def test_a_token_without_a_tenant_is_counted_all_the_same(gateways):
    gateways.books.limits = (at_most(1, Scope.SERVICE_ACCOUNT),)
    token = gateways.token("console", tenant=None)
    assert [(await gateways.get("/any", token)).status_code for _ in range(2)] == [200, 429]
    assert gateways.books.hits[0].identity.tenant == "anonymous"


async def test_a_token_that_does_not_verify_is_not_even_asked_about(gateways):
    forged = {"authorization": f"Bearer {gateways.issuer.forge('console', tenant='acme')}"}
    assert (await gateways.get("/any", forged)).status_code == 401
    assert (await gateways.get("/any")).status_code == 401
    assert gateways.books.hits == []


async def test_routes_have_limits_of_their_own_and_share_none(gateways):
    token = gateways.token("console")
    gateways.books.limits = (at_most(1000, Scope.SERVICE_ACCOUNT),)
    public = [await gateways.get("/public/x") for _ in range(61)]
    assert [answer.status_code for answer in public] == [200] * 60 + [429]
    assert error_of(public[60], 429)["message"].startswith("Usage over limit -- IP. Limit 60 ")
    search = [await gateways.get("/search", token) for _ in range(31)]
    assert [answer.status_code for answer in search] == [200] * 30 + [429]
    assert error_of(search[30], 429)["message"].startswith("Usage over limit -- serviceAccount. Limit 30 ")
    # Another account of the tenant has its own 30, and the tenant's limit counts them all.
    other = await gateways.get("/search", gateways.token("batch"))
    assert other.headers["x-ratelimit-remaining-requests"] == "29"
    (tenant,) = [
        count
        for (name, key), count in gateways.books.counts.items()
        if name == "acme" and key.startswith("tenant")
    ]
    assert tenant == 31
    # Where neither limit is, only the tenant's own counts: 30 searches, this one, none of the denied.
    answer = await gateways.get("/any", token)
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "969")


async def test_the_same_limit_on_two_routes_is_two_limits(gateways):
    paths = ("/one", "/two", "/one", "/two")
    answers = [await gateways.get(path, gateway=gateways.lenient) for path in paths]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]


async def test_requests_at_once_are_each_counted(gateways):
    gateways.books.limits = (at_most(10, Scope.CLIENT_IP),)
    answers = await asyncio.gather(*(gateways.get("/public/x") for _ in range(25)))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 15}


# ---------------------------------------------------------------- answers


async def test_headers_of_the_same_names_from_the_upstream_are_not_told_twice(gateways):
    async def script(_received, reply):
        await reply.whole(
            b"{}", x_ratelimit_limit_requests="7", x_ratelimit_remaining_requests="6", x_other="kept"
        )

    gateways.upstream.script = script
    gateways.books.limits = (at_most(2, Scope.CLIENT_IP),)
    answer = await gateways.get("/public/x")
    assert [answer.headers.get_list(name) for name in OURS] == [["2"], ["1"], ["45s"]]
    assert answer.headers["x-other"] == "kept"


async def test_where_no_limit_binds_nothing_is_added(gateways):
    answer = await gateways.get("/any", gateways.token("console"))
    assert answer.status_code == 200
    assert not set(OURS) & set(answer.headers)


async def test_a_suspended_caller_is_told_why(gateways):
    gateways.books.decision = Suspended("the contract has ended")
    answer = await gateways.get("/any", gateways.token("console"))
    assert "the contract has ended" in error_of(answer, 429)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


async def test_envoys_own_headers_can_be_had_as_well(gateways):
    gateways.books.limits = (at_most(2, Scope.CLIENT_IP),)
    answer = await gateways.get("/week", gateway=gateways.lenient)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit"] == '2, 2;w=60;name="client_ip"'
    assert (answer.headers["x-ratelimit-remaining"], answer.headers["x-ratelimit-reset"]) == ("1", "45")
    assert answer.headers["x-ratelimit-reset-requests"] == "45s"


async def test_envoy_knows_a_week(gateways):
    answer = await gateways.get("/week", gateway=gateways.lenient)
    assert answer.headers["x-ratelimit-limit"] == '5, 5;w=604800;name="tenant"'


# ---------------------------------------------------------------- no answer


async def test_without_a_decision_nobody_gets_through(gateways):
    gateways.books.decision = Unavailable()
    answer = await gateways.get("/public/x")
    assert error_of(answer, 503)["code"] == "quota_unavailable"
    assert gateways.upstream.received == []


async def test_a_decision_that_takes_too_long_is_cancelled_and_nobody_gets_through(gateways):
    gateways.books.decision = asyncio.Event().wait
    answer = await gateways.get("/public/x", gateway=gateways.hasty)
    assert error_of(answer, 503)["code"] == "quota_unavailable"
    await until(lambda: gateways.books.cancelled == 1, "the decision is cancelled")
    assert gateways.upstream.received == []


async def test_a_client_that_leaves_cancels_the_decision_about_it(gateways):
    gateways.books.decision = asyncio.Event().wait
    asking = asyncio.ensure_future(gateways.get("/public/x"))
    await until(lambda: gateways.books.hits, "Envoy asks")
    asking.cancel()
    await until(lambda: gateways.books.cancelled == 1, "the decision is cancelled, long before its time is over")


async def test_while_no_processor_is_there_nobody_gets_through_and_afterwards_all_is_as_before(gateways):
    await gateways.stop()
    try:
        answer = await gateways.get("/public/x")
        assert error_of(answer, 503)["code"] == "quota_unavailable"
        assert gateways.upstream.received == []
    finally:
        await gateways.serve()

    async def passes():
        return (await gateways.get("/public/x")).status_code == 200

    await until(passes, "requests get through again")


async def test_a_filter_that_lets_errors_pass_lets_them_pass(gateways):
    gateways.books.decision = Unavailable()
    assert (await gateways.get("/public/x", gateway=gateways.lenient)).status_code == 200
    # The same for what is wrong with its configuration: it is counted, and logged.
    assert (await gateways.get("/second", gateway=gateways.lenient)).status_code == 200
    assert gateways.metrics.registry.get_sample_value("tokenweir_stream_faults_total", {"kind": "protocol"}) == 1


async def test_who_can_not_be_named_does_not_get_through_even_then(gateways):
    answer = await gateways.get("/nobody", gateway=gateways.lenient)
    assert error_of(answer, 429)["param"] == "service_account"
    assert answer.headers["x-should-retry"] == "false"
    assert gateways.upstream.received == []
    assert gateways.books.hits == []
