"""List the variants that are measured."""

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from benchmarks.errors import CannotRunError

_MODES: Final = ("soft", "reserve", "strict", "shadow")
_LIMIT_COUNTS: Final = (2, 10)
_AMOUNT: Final = 900_000_000_000
_SCOPES: Final = ("service_account", "service_account+client_ip")
_WINDOWS: Final = ("day", "hour", "week", "month", "minute")
GRPC: Final = "grpc"
NATIVE: Final = "native"
STORE: Final = "tokenweir-store"
OWN_TRANSPORT: Final = "extproc.http2"


class Kind(StrEnum):
    """Tell which processes a variant has."""

    ALONE = "alone"
    JWT = "jwt"
    NOOP = "noop"
    TOKENWEIR = "tokenweir"
    TALK = "talk"
    LITELLM = "litellm"


class Messages(StrEnum):
    """Tell which messages Envoy leaves out, or what it leaves out of them."""

    NO_ANSWER = "request"
    NO_ANSWER_HEAD = "skip"
    FEW_HEADERS = "few-headers"


_MESSAGES: Final = {
    Messages.NO_ANSWER: "without the answer",
    Messages.NO_ANSWER_HEAD: "without the answer's head",
    Messages.FEW_HEADERS: "with the headers that are read",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """Describe one variant. Variants of one `stack` share their processes, and differ by the caller's tenant."""

    name: str
    title: str
    kind: Kind
    stack: str
    tenant: str = "bench"
    transport: str = GRPC
    quick: bool = True
    messages: Messages | None = None
    """Tell which messages a no-op gets; None: those of the shipped configuration."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hold the variants of a run, and why others are not run."""

    run: tuple[Variant, ...]
    left_out: dict[str, str]

    def without(self, failed: dict[str, str]) -> "Chosen":
        """Leave variants out, each with a reason. Raise `CannotRunError` if none is left."""
        run = tuple(each for each in self.run if each.name not in failed)
        left_out = self.left_out | failed
        if not run:
            raise CannotRunError("No variant can run: " + "; ".join(f"{n}: {why}" for n, why in left_out.items()))
        return Chosen(run, left_out)


def all_variants() -> list[Variant]:
    """Return every variant that there is, also those that can't run here."""
    found = [
        Variant("envoy", "Envoy alone", Kind.ALONE, "envoy"),
        Variant("jwt", "jwt_authn + access log", Kind.JWT, "jwt"),
    ]
    for transport in (GRPC, NATIVE):
        title = f"no-op ext_proc, {_transport_title(transport)}"
        found.append(Variant(f"noop-{transport}", title, Kind.NOOP, f"noop-{transport}", transport=transport))
    found += [_noop_with(messages) for messages in Messages]
    found += [
        _tokenweir(transport, mode, n) for transport in (GRPC, NATIVE) for mode in _MODES for n in _LIMIT_COUNTS
    ]
    store = "Tokenweir, embedded store (not mongod), reserve, 2 limits"
    found.append(Variant(STORE, store, Kind.TOKENWEIR, STORE, tenant_name("reserve", 2), quick=False))
    found += [
        Variant("talk-memory", "the talk's design, counts in memory", Kind.TALK, "talk-memory"),
        Variant("talk-redis", "the talk's design, counts in Redis", Kind.TALK, "talk-redis"),
        Variant(
            "litellm",
            "LiteLLM's proxy, a provider's budget, no database",
            Kind.LITELLM,
            "litellm",
            quick=False,
        ),
    ]
    return found


def choose(patterns: list[str], *, quick: bool) -> Chosen:
    """Return the variants whose names match a pattern; without patterns, the form's. Raise `CannotRunError`."""
    variants = all_variants()
    for pattern in patterns:
        if not any(fnmatchcase(each.name, pattern) for each in variants):
            names = ", ".join(each.name for each in variants)
            raise CannotRunError(f"No variant is called {pattern}. There are: {names}")
    run: list[Variant] = []
    left_out: dict[str, str] = {}
    for each in variants:
        if patterns and not any(fnmatchcase(each.name, pattern) for pattern in patterns):
            continue
        reason = _missing(each) or ("" if patterns else _not_in_form(each, quick=quick))
        if reason:
            left_out[each.name] = reason
        else:
            run.append(each)
    return Chosen(tuple(run), {}).without(left_out)


def tenant_name(mode: str, limits: int) -> str:
    """Return the tenant whose document has so many limits of this mode."""
    return f"bench-{mode}-{limits}"


def tenant_documents() -> list[dict[str, Any]]:
    """Return the documents of `tenantLimitation`: one tenant for each mode and number of limits."""
    return [_document(mode, count) for mode in _MODES for count in _LIMIT_COUNTS]


def _document(mode: str, count: int) -> dict[str, Any]:
    kinds = [(scope, window) for window in _WINDOWS for scope in _SCOPES][:count]
    limits = [{"scope": scope, "window": window, "amount": _AMOUNT} for scope, window in kinds]
    return {
        "_id": tenant_name(mode, count),
        "tenant_id": tenant_name(mode, count),
        "mode": mode,
        "unlimited": True,  # without the default limits: these and no others bind
        "limits": limits,
    }


def _noop_with(messages: Messages) -> Variant:
    name = f"noop-{NATIVE}-{messages}"
    title = f"no-op ext_proc, {_transport_title(NATIVE)}, {_MESSAGES[messages]}"
    return Variant(name, title, Kind.NOOP, name, transport=NATIVE, quick=False, messages=messages)


def _tokenweir(transport: str, mode: str, limits: int) -> Variant:
    title = f"Tokenweir, {_transport_title(transport)}, {mode}, {limits} limits"
    return Variant(
        f"tokenweir-{transport}-{mode}-{limits}",
        title,
        Kind.TOKENWEIR,
        f"tokenweir-{transport}",
        tenant_name(mode, limits),
        transport,
        quick=(mode, limits) == ("reserve", 2),
    )


def _transport_title(transport: str) -> str:
    return "grpc.aio" if transport == GRPC else "own transport"


def _missing(variant: Variant) -> str:
    if variant.transport == NATIVE and importlib.util.find_spec(OWN_TRANSPORT) is None:
        return "this version has no transport of its own"
    if variant.stack == STORE and importlib.util.find_spec("secantus") is None:
        return "the embedded store is not installed"
    return ""


def _not_in_form(variant: Variant, *, quick: bool) -> str:
    if variant.kind is Kind.LITELLM:
        return "only on request: --variants litellm"
    if quick and not variant.quick:
        return "not in the quick form"
    return ""
