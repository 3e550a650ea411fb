"""Build the admin API from its settings. Only its process imports this: it needs the extra `admin`."""

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from extproc import app
from extproc.admin.access import Role
from extproc.admin.api import issuer_keys
from extproc.admin.api.app import AdminAPI, Bounds
from extproc.admin.api.callers import Callers
from extproc.admin.api.jwts import JWTOptions, JWTs
from extproc.admin.api.pace import Pace
from extproc.admin.api.service import ServingOptions
from extproc.admin.api.services import ReplayBounds, Services
from extproc.admin.doctor import Doctor
from extproc.admin.explaining import Explainer
from extproc.admin.requests import Requests
from extproc.admin.service import Admin
from extproc.admin.tokens import AdminTokens
from extproc.admin.usage import UsageAdmin
from extproc.core.request.identity import ANONYMOUS, TenantId
from extproc.observe.certificates import CertificateFile, certificate_gauge
from extproc.settings.admin import JWTSettings
from extproc.settings.model import Settings
from extproc.web.server import Certificate


def build_admin_api(
    settings: Settings,
    stores: app.Stores,
    *,
    admin: Admin,
    usage: UsageAdmin,
    requests: Requests,
    explainer: Explainer,
    doctor: Doctor,
) -> AdminAPI:
    """Build the admin API on these use cases."""
    own, clock = settings.admin, app.SystemClock()

    async def ready() -> None:
        await stores.tenants.document(TenantId(ANONYMOUS))

    services = Services(
        admin,
        usage,
        requests,
        explainer,
        doctor,
        settings.cost.currency,
        app.defaults(settings),
        app.models(settings),
        ReplayBounds(own.max_replayed_entries, own.max_replay_s),
        ready,
    )
    failures = Pace(own.failures_per_minute, time.monotonic)
    tokens = AdminTokens(stores.tokens, clock.now)
    bounds = Bounds(
        requests_per_minute=own.requests_per_minute,
        failures_per_minute=own.failures_per_minute,
        hops=own.forwarded_hops,
    )
    return AdminAPI(services, Callers(tokens, _jwts(own.jwt), failures, time.monotonic), bounds)


def _jwts(settings: JWTSettings) -> JWTs | None:
    """Build what verifies JWTs; None if no issuer is set."""
    if settings.issuer is None or settings.audience is None:
        return None
    if settings.jwks_file is not None:
        read = issuer_keys.from_file(Path(settings.jwks_file))
    else:
        read = issuer_keys.from_url(settings.jwks_url or "")
    options = JWTOptions(
        issuer=settings.issuer,
        audience=settings.audience,
        role_claim=settings.role_claim,
        tenants_claim=settings.tenants_claim,
        roles={name: Role(role) for name, role in settings.roles.items()},
        algorithms=settings.algorithms,
        leeway_s=settings.leeway_s,
    )
    return JWTs(options, issuer_keys.IssuerKeys(read, time.monotonic))


def admin_serving_options(settings: Settings) -> ServingOptions:
    """Return where and how the admin API is served."""
    admin = settings.admin
    chain, key = admin.tls.certificate_file, admin.tls.key_file
    certificate = Certificate(Path(chain), Path(key)) if chain is not None and key is not None else None
    return ServingOptions(admin.address, admin.max_connections, admin.drain_s, certificate)


def admin_metrics(settings: Settings) -> CollectorRegistry:
    """Return the metrics of the admin API's process: its own figures, and the end of its certificate."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    chain = settings.admin.tls.certificate_file
    if chain is not None:
        gauge = certificate_gauge(registry)
        gauge.labels("admin.tls.certificate_file").set_function(CertificateFile(Path(chain)).expires_at)
    return registry
