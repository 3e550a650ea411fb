"""Build the use cases of an operator on stores, as the settings say."""

from extproc.admin.closing import Closing
from extproc.admin.service import Admin
from extproc.admin.usage import UsageAdmin
from extproc.app import Stores, SystemClock, defaults
from extproc.settings.model import Settings


def build_admin(settings: Settings, stores: Stores) -> Admin:
    """Build the use cases on tenants, the ledger and the audit log."""
    return Admin(
        stores.tenants,
        stores.reports,
        stores.counters,
        defaults(settings),
        SystemClock().now,
        audit=stores.audit,
        ipv6_prefix=settings.identity.ipv6_prefix,
    )


def build_usage(settings: Settings, stores: Stores) -> UsageAdmin:
    """Build the use cases on usage reports."""
    prefix = settings.identity.ipv6_prefix
    return UsageAdmin(stores.sums, stores.tenants, defaults(settings), SystemClock().now, ipv6_prefix=prefix)


def build_closing(settings: Settings, stores: Stores) -> Closing:
    """Build the use cases on closed months."""
    currency = settings.cost.currency
    return Closing(stores.sums, stores.months, stores.counters, stores.audit, SystemClock().now, currency)
