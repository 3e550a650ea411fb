"""Check access: callers, limits and names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from extproc.onboarding.charts import WITH_CANARY
from extproc.onboarding.facts import Facts, at
from extproc.onboarding.problem import Problem, error, warning
from extproc.onboarding.rules_serving import Rule

_LABEL: Final = 63  # characters of a DNS label
_PER_MINUTE: Final = ("ratelimitIPPerMinute", "ratelimitEachSAPerMinute")


def published(facts: Facts) -> Iterator[Problem]:
    issuers = _maps(facts.get("platform", "jwt", "issuers"))
    audiences = facts.get("exposeModel", "jwtVerify", "Audiences")
    path = at("exposeModel", "jwtVerify", "Audiences")
    if facts.exposed and not facts.partial:
        if not issuers and not facts.elsewhere:
            yield warning(
                at("platform", "jwt", "issuers"),
                "published, and no issuer of tokens is known: nobody outside is let in",
                "platform.jwt.issuers, or the platform's values beneath: --base FILE",
            )
        if not audiences and not facts.elsewhere and not all(each.get("audiences") for each in issuers or [{}]):
            yield warning(
                path,
                "published, and any token of the issuer will do, also one meant for another service",
                "the audience of this model's callers",
            )
    if audiences and not facts.exposed and not facts.partial:
        yield warning(path, "the model is not published: no token is asked for", "exposeModel.enabled: true")
    if facts.text("security", "mtls") == "PERMISSIVE":
        yield warning(at("security", "mtls"), "anybody in the cluster can call without mTLS", "STRICT")


def exposure(facts: Facts) -> Iterator[Problem]:
    known = facts.get("platform", "exposures")
    named = facts.text("exposeModel", "type")
    if named and isinstance(known, Mapping) and known and named not in known:
        yield error(
            at("exposeModel", "type"), f"the platform has no exposure '{named}'", f"one of: {', '.join(known)}"
        )


def limits(facts: Facts) -> Iterator[Problem]:
    per_minute = [key for key in _PER_MINUTE if facts.number(key) is not None]
    if not facts.tokenweir:
        for key in per_minute:
            yield error(key, "nobody counts: platform.tokenweir.enabled is false", "leave the limit out")
    for key in (each for each in per_minute if facts.number(each) == 0):
        yield warning(key, "0 lets no request through", "null: no such limit")
    listed = facts.get("tokenLimit", "limits")
    entries = listed if isinstance(listed, list) else []
    counted = [each for each in _maps(entries) if each.get("unit") != "requests" or not facts.tokenweir]
    if counted and not facts.metered and not facts.partial:
        yield error(
            at("tokenLimit", "limits"),
            f"nobody counts {counted[0].get('unit') or 'tokens'} of this model: {_why(facts)}",
            "inferenceservice.protocol: openai, where it is an LLM; or unit: requests",
        )
    seen: set[tuple[object, ...]] = set()
    for index, each in enumerate(_maps(entries)):
        scope = "+".join(sorted(str(each.get("scope")).split("+")))
        kind = (scope, each.get("unit") or "tokens", each.get("window"))
        if kind in seen:
            yield error(
                at("tokenLimit", "limits", index),
                "a limit of this scope, unit and window stands above",
                "one of the two",
            )
        seen.add(kind)
    at_gateway = facts.text("platform", "tokenweir", "placement") != "sidecar"
    if (per_minute or entries) and at_gateway and not facts.exposed and not facts.partial:
        yield warning(
            (per_minute or [at("tokenLimit", "limits")])[0],
            "requests are counted at the gateway, and the model is not published there",
            "exposeModel.enabled: true",
        )


def _why(facts: Facts) -> str:
    if not facts.tokenweir:
        return "platform.tokenweir.enabled is false"
    if facts.get("tokenLimit", "enabled") is False:
        return "tokenLimit.enabled is false"
    return f"it speaks {facts.protocol}, not openai"


def metering(facts: Facts) -> Iterator[Problem]:
    if facts.get("tokenLimit", "enabled") is True and facts.protocol != "openai":
        yield warning(
            at("tokenLimit", "enabled"),
            f"its protocol is {facts.protocol}: answers have no usage to read",
            "inferenceservice.protocol: openai, where it is an LLM",
        )


def names(facts: Facts) -> Iterator[Problem]:
    for what, name in (("release", facts.release), ("namespace", facts.namespace)):
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
            yield error("", f"the {what} '{name[:80]}' is no name of Kubernetes", "small letters, digits and '-'")
    if facts.release is None:
        return
    if facts.release[:1].isdigit():
        yield error(
            "", f"the release '{facts.release[:80]}' begins with a digit: KServe refuses it", "a letter first"
        )
    service = f"{facts.release}-primary" if facts.chart == WITH_CANARY else facts.release
    longest = max(f"{service}-predictor-{facts.namespace or 'default'}", f"isvc.{service}-transformer", key=len)
    if len(longest) > _LABEL:
        yield error(
            "",
            f"{longest} has {len(longest)} characters; Kubernetes and DNS take {_LABEL}",
            f"a name that is {len(longest) - _LABEL} shorter",
        )


def _maps(found: object) -> list[Mapping[str, Any]]:
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


RULES: Final[tuple[Rule, ...]] = (published, exposure, limits, metering, names)
