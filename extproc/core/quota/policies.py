"""Read a document of `tenantLimitation` into a `Policy`. `{tenant_id, sa_limit, ip_limit}` is a complete
document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

from extproc.core.quota.binding import Policy, StoreFailure, Terms, TopUp
from extproc.core.quota.costs import EVEN, MAX_OUTPUT_BOUND, MAX_WEIGHT, Weights
from extproc.core.quota.fields import FieldError, Fields
from extproc.core.quota.limits import MAX_AMOUNT, Limit, Mode, Scope, Unit, Window
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId, is_name

# The short form: tokens per day per service account, and per service account + client IP.
SHORT_LIMITS: Final = {
    "sa_limit": (Scope.SERVICE_ACCOUNT, Window.DAY),
    "ip_limit": (Scope.SERVICE_ACCOUNT_IP, Window.DAY),
}
# The short form of request limits, per minute.
RATE_LIMITS: Final = {
    "ratelimitEachSAPerMinute": Scope.SERVICE_ACCOUNT,
    "ratelimitIPPerMinute": Scope.CLIENT_IP,
}
# The kinds of endpoint that a limit can name. `QUOTA` is free.
METERED: Final = tuple(endpoint for endpoint in Endpoint if endpoint is not Endpoint.QUOTA)
# Terms are looked up by name, so their number costs a request nothing.
MAX_ACCOUNTS: Final = 10_000
_TERMS: Final = {*SHORT_LIMITS, *RATE_LIMITS, "limits", "unlimited", "suspended"}
_LIMIT: Final = {"scope", "window", "amount", "unit", "mode", "shadows", "model", "endpoint", "note"}
_TOP_UP: Final = {"scope", "window", "unit", "amount", "until", "service_account", "model", "endpoint", "note"}


class DocumentMode(StrEnum):
    """List the modes as documents name them. `shadow` is a shadow of the mode in `shadows`."""

    SOFT = "soft"
    RESERVE = "reserve"
    STRICT = "strict"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class BadDocument:
    """Report a document that can't be used; `message` names the field and the fix."""

    tenant: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Hold a limit's mode, and whether the limit is only a shadow."""

    mode: Mode = Mode.RESERVE
    shadow: bool = False

    def on(self, limit: Limit) -> Limit:
        return replace(limit, mode=self.mode, shadow=self.shadow)


@dataclass(frozen=True, slots=True)
class Defaults:
    """Hold the limits of a tenant that has no document, or whose document sets none. `limits` is never empty."""

    limits: tuple[Limit, ...]
    zone: ZoneInfo
    on_store_failure: StoreFailure = StoreFailure.DENY

    def policy(self, tenant: TenantId) -> Policy:
        failure = self.on_store_failure
        return Policy(tenant, self.limits, self.zone, known=False, on_store_failure=failure)


def policy_from(document: Mapping[str, object], defaults: Defaults) -> Policy | BadDocument:
    """Read one document. Ignore unknown fields at its top level. Never raise.

    Numbers may be integers or whole floats. A limit that is absent or null does not bind. If a document sets no
    token limit that binds all requests, the default token limits apply, in the document's mode; the same holds for
    request limits. `unlimited` turns the defaults off. A shadow limit does not replace a default, unless the whole
    document is a shadow.
    """
    tenant = document.get("tenant_id")
    if not isinstance(tenant, str) or not is_name(tenant):
        return BadDocument(None, "'tenant_id' must be a printable string of 1 to 256 characters")
    try:
        return _policy(TenantId(tenant), Fields(document), defaults)
    except FieldError as error:
        return BadDocument(tenant, str(error))


def limits_from(document: Mapping[str, object]) -> tuple[Limit, ...]:
    """Return the limits of a document, in their short and general forms. Raise `FieldError`."""
    fields = Fields(document)
    return _terms(fields, _enforcement(fields, None) or Enforcement()).limits


def _policy(tenant: TenantId, fields: Fields, defaults: Defaults) -> Policy:
    enforcement = _enforcement(fields, None)
    general = _terms(fields, enforcement or Enforcement())
    others = fields.section("unknown_service_accounts")
    return Policy(
        tenant=tenant,
        limits=general.limits if general.unlimited else _with_defaults(general.limits, enforcement, defaults),
        zone=fields.zone("timezone", defaults.zone),
        suspended=general.suspended,
        accounts=_accounts(fields, enforcement or Enforcement()),
        others=_own_terms(others, enforcement or Enforcement(), ()) if others is not None else None,
        top_ups=tuple(_top_up(item) for item in fields.items("top_ups")),
        weights=_weights(fields),
        min_output_tokens=fields.whole("min_output_tokens", MAX_OUTPUT_BOUND, "tokens"),
        on_store_failure=fields.choice("on_store_failure", StoreFailure, defaults.on_store_failure),
    )


def _with_defaults(
    own: tuple[Limit, ...], enforcement: Enforcement | None, defaults: Defaults
) -> tuple[Limit, ...]:
    whole_shadow = enforcement is not None and enforcement.shadow
    # A limit on some models or endpoints, or a shadow limit, must not leave all other requests without a limit.
    set_here = {
        limit.unit is Unit.REQUESTS for limit in own if limit.is_general and (whole_shadow or not limit.shadow)
    }
    found = {limit.kind: limit for limit in own}
    # A default that is a shadow stays one under any mode, and comes after one that binds.
    for limit in sorted(defaults.limits, key=lambda limit: limit.shadow):
        if (limit.unit is Unit.REQUESTS) not in set_here:
            inherited = limit if enforcement is None or limit.shadow else enforcement.on(limit)
            found.setdefault(inherited.kind, inherited)
    return tuple(found.values())


def _accounts(fields: Fields, enforcement: Enforcement) -> dict[str, Terms]:
    accounts: dict[str, Terms] = {}
    for item in fields.items("service_accounts", MAX_ACCOUNTS):
        name = item.needed("name")
        if name in accounts:
            raise item.bad("name", f"is given twice: {name}")
        own = _enforcement(item, enforcement) or enforcement
        accounts[name] = _own_terms(item, own, ("name", "mode", "shadows"))
        if item.values.get("mode") is not None and not accounts[name].limits:
            raise item.bad("mode", "needs limits beside it: it is that of this account's own")
    return accounts


def _own_terms(fields: Fields, enforcement: Enforcement, further: Sequence[str]) -> Terms:
    fields.refuse_unknown({*_TERMS, *further, "note"})
    return _terms(fields, enforcement)


def _terms(fields: Fields, enforcement: Enforcement) -> Terms:
    limits: list[Limit] = []
    for name, (scope, window) in SHORT_LIMITS.items():
        amount = fields.whole(name, MAX_AMOUNT, "tokens")
        if amount is not None:
            limits.append(enforcement.on(Limit(scope, window, amount)))
    for name, scope in RATE_LIMITS.items():
        amount = fields.whole(name, MAX_AMOUNT, "requests")
        if amount is not None:
            limits.append(enforcement.on(Limit(scope, Window.MINUTE, amount, Unit.REQUESTS)))
    limits += _limits(fields, enforcement)
    return Terms(_unique(fields, limits), fields.flag("unlimited"), fields.reason("suspended"))


def _limits(fields: Fields, enforcement: Enforcement) -> list[Limit]:
    return [_limit(item, enforcement) for item in fields.items("limits")]


def _limit(fields: Fields, enforcement: Enforcement) -> Limit:
    fields.refuse_unknown(_LIMIT)
    unit = fields.choice("unit", Unit, Unit.TOKENS)
    limit = Limit(
        scope=fields.choice("scope", Scope),
        window=fields.choice("window", Window),
        amount=_amount(fields, unit),
        unit=unit,
        model=fields.name("model"),
        endpoints=fields.choices("endpoint", METERED),
    )
    return (_enforcement(fields, enforcement) or enforcement).on(limit)


def _amount(fields: Fields, unit: Unit) -> int:
    amount = fields.whole("amount", MAX_AMOUNT, "requests" if unit is Unit.REQUESTS else "tokens")
    if amount is None:
        raise fields.bad("amount", "must be given")
    return amount


def _enforcement(fields: Fields, above: Enforcement | None) -> Enforcement | None:
    """Return the enforcement that `mode` selects; None if neither this level nor the level above sets it."""
    shadowed = fields.choice("shadows", Mode, above.mode if above is not None else Mode.RESERVE)
    mode = fields.choice("mode", DocumentMode) if fields.values.get("mode") is not None else None
    if mode is DocumentMode.SHADOW:
        return Enforcement(shadowed, shadow=True)
    if fields.values.get("shadows") is not None:
        raise fields.bad("shadows", "needs 'mode: shadow' beside it")
    return Enforcement(Mode(mode)) if mode is not None else above


def _unique(fields: Fields, limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """Refuse two limits of one kind: they would count everything twice in one bucket."""
    seen: set[str] = set()
    for limit in limits:
        if limit.kind in seen:
            what = f"{limit.unit} per {limit.scope} and {limit.window} for the same requests"
            raise fields.bad("limits", f"must not add a second limit of {what}")
        seen.add(limit.kind)
    return tuple(limits)


def _top_up(fields: Fields) -> TopUp:
    fields.refuse_unknown(_TOP_UP)
    unit = fields.choice("unit", Unit, Unit.TOKENS)
    return TopUp(
        scope=fields.choice("scope", Scope, Scope.SERVICE_ACCOUNT),
        window=fields.choice("window", Window, Window.DAY),
        unit=unit,
        amount=_amount(fields, unit),
        until=fields.instant("until"),
        service_account=fields.name("service_account"),
        model=fields.name("model"),
        endpoints=fields.choices("endpoint", METERED),
    )


def _weights(fields: Fields) -> tuple[tuple[str, Weights], ...]:
    found: list[tuple[str, Weights]] = []
    for item in fields.items("models"):
        item.refuse_unknown({"model", "weights", "note"})
        weights = item.section("weights")
        if weights is None:
            raise item.bad("weights", "must be given")
        model = item.needed("model")
        if any(model == other for other, _ in found):
            raise item.bad("model", f"is given twice: {model}")
        found.append((model, weights_from(weights)))
    general = fields.section("weights")
    if general is not None:
        found.append(("*", weights_from(general)))
    return tuple(found)


def weights_from(fields: Fields) -> Weights:
    """Return weights by kind of token. Defaults: cached as input, reasoning as output, all others 1."""
    kinds = ("input", "cached_input", "output", "reasoning")
    fields.refuse_unknown(kinds)
    given = {kind: fields.thousandths(kind, MAX_WEIGHT) for kind in kinds}
    tokens_in = EVEN.input if given["input"] is None else given["input"]
    tokens_out = EVEN.output if given["output"] is None else given["output"]
    return Weights(
        input=tokens_in,
        cached_input=tokens_in if given["cached_input"] is None else given["cached_input"],
        output=tokens_out,
        reasoning=tokens_out if given["reasoning"] is None else given["reasoning"],
    )
