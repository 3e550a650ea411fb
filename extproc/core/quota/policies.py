"""Read a document of `tenantLimitation` into a `Policy`. `{tenant_id, sa_limit, ip_limit}` is a complete
document.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

from msgspec.structs import replace

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
_BOUND_TO: Final = ("unit", "model", "endpoint")
_TERMS: Final = {*SHORT_LIMITS, *RATE_LIMITS, "limits", "unlimited", "suspended"}
_LIMIT: Final = {"scope", "window", "amount", "unit", "mode", "shadows", "model", "endpoint", "note"}
_TOP_UP: Final = {
    "scope",
    "window",
    "unit",
    "amount",
    "until",
    "service_account",
    "model",
    "endpoint",
    "note",
    "id",
}


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
class Repaired:
    """Hold the policy of a document, and the document as it was used. `problems` names fields that can't be used.

    In `document`, such a field has its last good value; without one it is absent, and the default applies.
    """

    policy: Policy
    document: Mapping[str, object]
    problems: tuple[str, ...] = ()


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


def repaired_policy(
    document: Mapping[str, object], defaults: Defaults, last: Mapping[str, object] | None = None
) -> Repaired | BadDocument:
    """Read one document, and use what can be used of it. Never raise.

    A field that can't be used keeps its value in `last`, the `Repaired.document` of the tenant's document before;
    without a last good value, its default applies. A limit that can't be used never leaves the tenant without the
    default limits, and a `suspended` that can't be used suspends unless the last good value did not.
    """
    read = policy_from(document, defaults)
    if isinstance(read, Policy):
        return Repaired(read, document)
    if read.tenant is None:
        return read
    problems: list[str] = []
    fields = Fields.repaired(document, "", last, problems)
    try:
        policy = _policy(TenantId(read.tenant), fields, defaults)
    except FieldError as error:  # `last` is not good either
        return BadDocument(read.tenant, str(error))
    return Repaired(policy, fields.values, tuple(dict.fromkeys(problems)))


def limits_from(document: Mapping[str, object]) -> tuple[Limit, ...]:
    """Return the limits of a document, in their short and general forms. Raise `FieldError`."""
    fields = Fields(document)
    return _terms(fields, _enforcement(fields, None) or Enforcement()).terms.limits


@dataclass(frozen=True, slots=True)
class _Read:
    """Hold terms, and the kinds of limits that could not be used; None stands for a kind that is not known."""

    terms: Terms
    missing: frozenset[str | None] = frozenset()


def _policy(tenant: TenantId, fields: Fields, defaults: Defaults) -> Policy:
    enforcement = _enforcement(fields, None)
    read = _terms(fields, enforcement or Enforcement())
    general = read.terms
    defaulted = not general.unlimited or read.missing
    others = fields.section("unknown_service_accounts")
    return Policy(
        tenant=tenant,
        limits=_with_defaults(read, enforcement, defaults) if defaulted else general.limits,
        zone=fields.zone("timezone", defaults.zone),
        suspended=general.suspended,
        accounts=_accounts(fields, enforcement or Enforcement()),
        others=_own_terms(others, enforcement or Enforcement(), ()) if others is not None else None,
        top_ups=fields.items("top_ups", _top_up, _key_of("scope", "window", *_BOUND_TO, "service_account")).found,
        weights=_weights(fields),
        min_output_tokens=fields.whole("min_output_tokens", MAX_OUTPUT_BOUND, "tokens"),
        on_store_failure=fields.choice("on_store_failure", StoreFailure, defaults.on_store_failure),
    )


def _with_defaults(read: _Read, enforcement: Enforcement | None, defaults: Defaults) -> tuple[Limit, ...]:
    own = read.terms.limits
    whole_shadow = enforcement is not None and enforcement.shadow
    # A limit on some models or endpoints, or a shadow limit, must not leave all other requests without a limit.
    set_here = {
        limit.unit is Unit.REQUESTS for limit in own if limit.is_general and (whole_shadow or not limit.shadow)
    }
    found = {limit.kind: limit for limit in own}
    # A default that is a shadow stays one under any mode, and comes after one that binds.
    for limit in sorted(defaults.limits, key=lambda limit: limit.shadow):
        inherited = limit if enforcement is None or limit.shadow else enforcement.on(limit)
        if (limit.unit is Unit.REQUESTS) not in set_here or read.missing & {None, inherited.kind}:
            found.setdefault(inherited.kind, inherited)
    return tuple(found.values())


def _accounts(fields: Fields, enforcement: Enforcement) -> dict[str, Terms]:
    accounts: dict[str, Terms] = {}

    def read(item: Fields) -> None:
        name = item.needed("name")
        if name in accounts:
            raise item.bad("name", f"is given twice: {name}")
        own = _enforcement(item, enforcement) or enforcement
        terms = _own_terms(item, own, ("name", "mode", "shadows"))
        if item.values.get("mode") is not None and not terms.limits:
            item.note(item.bad("mode", "needs limits beside it: it is that of this account's own"))
        accounts[name] = terms

    fields.items("service_accounts", read, _key_of("name"), MAX_ACCOUNTS)
    return accounts


def _own_terms(fields: Fields, enforcement: Enforcement, further: Sequence[str]) -> Terms:
    fields.drop_unknown({*_TERMS, *further, "note"})
    read = _terms(fields, enforcement)
    # Without a limit that was meant to bind, the tenant's limits bind.
    return replace(read.terms, unlimited=read.terms.unlimited and not read.missing)


def _terms(fields: Fields, enforcement: Enforcement) -> _Read:
    limits: list[Limit] = []
    missing: set[str | None] = set()
    for name, (scope, window) in SHORT_LIMITS.items():
        _short(fields, name, enforcement.on(Limit(scope, window, 0)), limits, missing)
    for name, scope in RATE_LIMITS.items():
        _short(fields, name, enforcement.on(Limit(scope, Window.MINUTE, 0, Unit.REQUESTS)), limits, missing)
    items = fields.items("limits", lambda item: _limit(item, enforcement), _key_of("scope", "window", *_BOUND_TO))
    limits += items.found
    if items.unknown:
        missing.add(None)
    terms = Terms(_unique(fields, limits), fields.flag("unlimited"), fields.reason("suspended"))
    return _Read(terms, frozenset(missing))


def _short(fields: Fields, name: str, limit: Limit, limits: list[Limit], missing: set[str | None]) -> None:
    """Add the limit of a short form, or its kind to the missing ones if its amount can't be used."""
    given = fields.values.get(name) is not None
    amount = fields.whole(name, MAX_AMOUNT, "requests" if limit.unit is Unit.REQUESTS else "tokens")
    if amount is not None:
        limits.append(replace(limit, amount=amount))
    elif given:
        missing.add(limit.kind)


def _limit(fields: Fields, enforcement: Enforcement) -> Limit:
    fields.refuse_unknown(_LIMIT)
    which = fields.strict
    unit = which.choice("unit", Unit, Unit.TOKENS)
    limit = Limit(
        scope=which.choice("scope", Scope),
        window=which.choice("window", Window),
        amount=_amount(fields, unit),
        unit=unit,
        model=which.name("model"),
        endpoints=which.choices("endpoint", METERED),
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
    mode = fields.chosen("mode", DocumentMode)
    if mode is DocumentMode.SHADOW:
        return Enforcement(shadowed, shadow=True)
    if fields.values.get("shadows") is not None:
        fields.note(fields.bad("shadows", "needs 'mode: shadow' beside it"))
    return Enforcement(Mode(mode)) if mode is not None else above


def _key_of(*names: str) -> Callable[[Mapping[str, object]], Hashable]:
    """Return what tells which item of a list an item is: the text of these fields."""
    return lambda item: tuple(repr(one_form(item).get(name)) for name in names)


def one_form(item: Mapping[str, object]) -> Mapping[str, object]:
    """Return an item of `limits` or `top_ups` with the parts of its `scope` in the order in which they are stored.

    An item whose scope is absent, or can't be used, is returned as it is.
    """
    scope = item.get("scope")
    try:
        return {**item, "scope": Scope(scope).value} if isinstance(scope, str) else item
    except ValueError:
        return item


def _unique(fields: Fields, limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """Refuse two limits of one kind: they would count everything twice in one bucket.

    In a repair, the smaller one binds.
    """
    found: dict[str, Limit] = {}
    for limit in limits:
        if limit.kind in found:
            what = f"{limit.unit} per {limit.scope} and {limit.window} for the same requests"
            fields.note(fields.bad("limits", f"must not add a second limit of {what}"))
        found[limit.kind] = min(limit, found.get(limit.kind, limit), key=lambda each: each.amount)
    return tuple(found.values())


def _top_up(fields: Fields) -> TopUp:
    fields.refuse_unknown(_TOP_UP)
    which = fields.strict
    unit = which.choice("unit", Unit, Unit.TOKENS)
    return TopUp(
        scope=which.choice("scope", Scope, Scope.SERVICE_ACCOUNT),
        window=which.choice("window", Window, Window.DAY),
        unit=unit,
        amount=_amount(fields, unit),
        until=fields.instant("until"),
        service_account=which.name("service_account"),
        model=which.name("model"),
        endpoints=which.choices("endpoint", METERED),
        id=fields.name("id"),
    )


def _weights(fields: Fields) -> tuple[tuple[str, Weights], ...]:
    seen: set[str] = set()

    def read(item: Fields) -> tuple[str, Weights]:
        item.refuse_unknown({"model", "weights", "note"})
        weights = item.section("weights")
        if weights is None:
            raise item.bad("weights", "must be given")
        model = item.needed("model")
        if model in seen:
            raise item.bad("model", f"is given twice: {model}")
        found = weights_from(weights)
        seen.add(model)
        return model, found

    found = fields.items("models", read, _key_of("model")).found
    general = fields.section("weights")
    return (*found, ("*", weights_from(general))) if general is not None else found


def weights_from(fields: Fields) -> Weights:
    """Return weights by kind of token. Defaults: cached as input, reasoning as output, all others 1."""
    kinds = ("input", "cached_input", "output", "reasoning")
    fields.drop_unknown(kinds)
    given = {kind: fields.thousandths(kind, MAX_WEIGHT) for kind in kinds}
    tokens_in = EVEN.input if given["input"] is None else given["input"]
    tokens_out = EVEN.output if given["output"] is None else given["output"]
    weights = Weights(
        input=tokens_in,
        cached_input=tokens_in if given["cached_input"] is None else given["cached_input"],
        output=tokens_out,
        reasoning=tokens_out if given["reasoning"] is None else given["reasoning"],
    )
    return EVEN if weights == EVEN else weights  # the same object: what it weighs is added up without weights
