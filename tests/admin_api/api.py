"""The admin API over stores in memory, callers of each role, and an issuer of JWTs."""

import json
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from extproc.admin.access import Role
from extproc.admin.api.app import AdminAPI, Bounds
from extproc.admin.api.callers import Callers
from extproc.admin.api.issuer_keys import IssuerKeys
from extproc.admin.api.jwts import JWTOptions, JWTs
from extproc.admin.api.pace import Pace
from extproc.admin.api.services import ReplayBounds, Services
from extproc.admin.change import Change
from extproc.admin.doctor import Doctor
from extproc.admin.explaining import Explainer
from extproc.admin.requests import Requests
from extproc.admin.service import Admin
from extproc.admin.tokens import AdminTokens
from extproc.admin.usage import UsageAdmin
from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.ledger import closed_entry, denied_entry
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.policies import Defaults, limits_from
from extproc.core.quota.reservation import BucketState, Count, Denied
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.ports.audit import Actor, ActorKind
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.memory.sums import MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.memory.tokens import MemoryTokens
from tests.core.samples import reservation

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Change(Actor("root", ActorKind.OS_USER, "host"))
DEFAULTS = Defaults(limits_from({"sa_limit": 1000}), ZoneInfo("UTC"))
ISSUER, AUDIENCE = "https://issuer.example", "tokenweir-admin"
MINE, OTHER = "tenant01", "tenant02"


class Keys:
    """The keys of an issuer, and its tokens."""

    def __init__(self):
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.reads = 0
        self.published = {"r": self.rsa, "e": self.ec}
        self.down = False

    async def read(self):
        self.reads += 1
        return self.jwks()

    def jwks(self):
        keys = []
        for kid, key in self.published.items():
            algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            keys.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"})
        return json.dumps({"keys": keys}).encode()

    def token(self, *, key=None, kid="r", alg="RS256", headers=None, drop=(), **claims):
        now = int(time.time())
        full = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "roles": ["tw-admins"], **claims,
        }  # fmt: skip
        full = {name: value for name, value in full.items() if name not in drop}
        signer = key if key is not None else self.rsa
        return jwt.encode(full, signer, algorithm=alg, headers={"kid": kid, **(headers or {})})


def entry(*, name="r-1", tenant=MINE, account="batch@zone", denied=False, price=0, **changes):
    """A ledger entry of a request that ended now: 26 tokens, or denied by a limit that was used up."""
    identity = Identity(TenantId(tenant), ServiceAccount(account), ClientIP("10.0.0.7"))
    limit = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 30)
    policy = Policy(identity.tenant, (limit,), DEFAULTS.zone)
    held = reservation(
        id=name, request_id=f"q-{name}", identity=identity, buckets=bind(policy, identity, NOW), admitted_at=NOW,
        date="2026-03-01", deadline=NOW.timestamp() + 60, **changes,
    )  # fmt: skip
    if denied:
        return denied_entry(held, "limit", Denied(BucketState(held.buckets[0], Count(24, 0)), 50))
    settled = Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage", status=200)
    return closed_entry(held, settled, NOW, price=price)


class Running:
    """An API, its stores and its clients."""

    def __init__(self, *, keys=None, bounds=None, replay=None, clock=time.monotonic):
        self.now = NOW
        self.tenants = MemoryTenants()
        self.ledger = MemoryLedger()
        self.counters = MemoryCounters()
        self.store = MemoryTokens(self.tenants.audit)
        self.tokens = AdminTokens(self.store, lambda: self.now)
        self.admin = Admin(
            self.tenants, self.ledger, self.counters, DEFAULTS, lambda: self.now, audit=self.tenants.audit
        )
        self.bounds = bounds if bounds is not None else Bounds(requests_per_minute=100_000)
        self.fault = None
        records, models = MemoryRequests(self.ledger), Models(ModelProfile())
        self.sums = MemorySums(self.ledger.all_entries)
        self.services = Services(
            self.admin,
            UsageAdmin(self.sums, self.tenants, DEFAULTS, self._now),
            Requests(records, self.counters, self.counters, self.ledger, self._now),
            Explainer(self.tenants, self.counters, records, defaults=DEFAULTS, models=models, now=self._now),
            Doctor(None, self.counters, self._now),
            "EUR",
            DEFAULTS,
            models,
            replay if replay is not None else ReplayBounds(),
            self._ready,
        )
        jwts = None
        if keys is not None:
            roles = {"tw-admins": Role.ADMIN, "tw-leads": Role.TEAM_LEAD, "tw-viewers": Role.VIEWER}
            options = JWTOptions(ISSUER, AUDIENCE, "roles", "tenants", roles)
            jwts = JWTs(options, IssuerKeys(keys.read, clock))
        callers = Callers(self.tokens, jwts, Pace(self.bounds.failures_per_minute, clock), clock)
        self.api = AdminAPI(self.services, callers, self.bounds, clock)

    def _now(self):
        return self.now

    async def _ready(self):
        if self.fault is not None:
            raise self.fault

    async def token(self, role, *tenants, lifetime=timedelta(days=1)):
        issued = await self.tokens.issue(role.value, role, tenants or None, lifetime, ROOT)
        return issued.text

    async def client(self, role=Role.ADMIN, *tenants):
        return self.bearing(await self.token(role, *tenants))

    def bearing(self, token, **headers):
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=True, client=("192.0.2.1", 1))
        return httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers)


def of(response, status, kind=None):
    """The body of an answer, which has this status."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json() if response.content else None
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == status
        assert body["request_id"] == response.headers["x-request-id"]
        if kind is not None:
            assert body["type"] == f"urn:tokenweir:problem:{kind}"
    return body
