"""Build the use cases that only operators need, from the settings."""

from extproc import app
from extproc.admin.doctor import Doctor
from extproc.admin.explaining import Explainer
from extproc.admin.requests import Requests
from extproc.app import Stores, SystemClock
from extproc.settings.model import Settings


def build_requests(settings: Settings, stores: Stores) -> Requests:
    """Build the use cases on single requests."""
    return Requests(
        stores.requests,
        stores.counters,
        stores.counters,
        stores.reports,
        SystemClock().now,
        singly_per_minute=settings.denied.singly_per_minute,
        denied_recorded=settings.denied.record,
        ipv6_prefix=settings.identity.ipv6_prefix,
    )


def build_explainer(settings: Settings, stores: Stores) -> Explainer:
    """Build the use case that explains what binds a caller."""
    return Explainer(
        stores.tenants,
        stores.counters,
        stores.requests,
        defaults=app.defaults(settings),
        models=app.models(settings),
        now=SystemClock().now,
        ipv6_prefix=settings.identity.ipv6_prefix,
    )


def build_doctor(stores: Stores) -> Doctor:
    """Build the use case that looks for what is wrong."""
    return Doctor(stores.inspection, stores.counters, SystemClock().now)
