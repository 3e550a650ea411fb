"""Envoy's rate limit protocol (RLS v3): one call is one HTTP request that asks whether it may pass.

The answer can say OK or over the limit, with headers and a body; the status is the filter's own
(`rate_limited_status`, 429). So what is wrong with a caller is said as "over the limit", which holds whatever the
filter does on errors; and what is wrong here or with the filter's configuration is a gRPC error, of which
`failure_mode_deny` decides.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import assert_never

from extproc.core.quota.hits import BadDescriptor, Descriptor, Hit, read_hit
from extproc.core.quota.limits import Window
from extproc.core.quota.reservation import (
    Admitted,
    BucketState,
    Denied,
    HitDecision,
    Suspended,
    Unavailable,
    tightest,
)
from extproc.core.rejections import (
    DeniedStyle,
    Rejection,
    over_limit,
    quota_headers,
    suspended,
    too_many_in_flight,
    unusable_identity,
)
from extproc.core.request.addresses import IPV6_PREFIX
from extproc.core.request.identity import UnusableIdentity
from extproc.core.request.in_flight import InFlight
from extproc.envoy.pb import tokenweir_rate_limit_pb2 as pb
from extproc.http2.status import RefusedError, Status
from extproc.observe.metrics import Metrics

SERVICE = "envoy.service.ratelimit.v3.RateLimitService"

# A mistake in a configuration is logged once, not once a request; and no more of them than these.
_MISTAKES_TOLD = 100
_MOST_UINT32 = 2**32 - 1
_RETRY_AFTER_S = 1
# The official SDKs try again after a 429, which helps nobody whom a second try would not name either.
_DO_NOT_RETRY = ("x-should-retry", "false")

_log = logging.getLogger(__name__)

_Response = pb.RateLimitResponse
_UNITS = {
    Window.MINUTE: _Response.RateLimit.MINUTE,
    Window.HOUR: _Response.RateLimit.HOUR,
    Window.DAY: _Response.RateLimit.DAY,
    Window.WEEK: _Response.RateLimit.WEEK,
    Window.MONTH: _Response.RateLimit.MONTH,
}


class RateLimitServicer:
    """Answers `ShouldRateLimit`. Holds nothing itself: a call that is cancelled is cancelled in `decide`."""

    def __init__(
        self,
        decide: Callable[[Hit], Awaitable[HitDecision]],
        metrics: Metrics,
        now: Callable[[], datetime],
        *,
        tenant_pattern: re.Pattern[str] | None = None,
        ipv6_prefix: int = IPV6_PREFIX,
        style: DeniedStyle = DeniedStyle.OPENAI,
        in_flight: InFlight | None = None,
    ) -> None:
        """`decide` counts a hit or denies it, in one step; `tenant_pattern` and `ipv6_prefix` are those of
        `IdentityRules`; `in_flight` bounds the calls of a tenant that are decided at once.
        """
        self._decide = decide
        self._metrics = metrics
        self._now = now
        self._tenant_pattern = tenant_pattern
        self._ipv6_prefix = ipv6_prefix
        self._style = style
        self._in_flight = in_flight or InFlight()
        self._mistakes: set[str] = set()

    async def should_rate_limit(self, request: pb.RateLimitRequest) -> pb.RateLimitResponse:
        """Answer a call. Raise `RefusedError` if there is no answer: `failure_mode_deny` of the filter decides."""
        try:
            return await self._answer(request)
        except RefusedError:
            raise
        except Exception:  # noqa: BLE001  counted and logged; the call ends, nothing else
            self._metrics.stream_fault("unexpected")
            _log.exception("rate limit call failed")
            raise RefusedError(Status.UNKNOWN, "The call failed.") from None

    async def _answer(self, request: pb.RateLimitRequest) -> pb.RateLimitResponse:
        descriptors = [_descriptor(each) for each in request.descriptors]
        hit = read_hit(request.domain, descriptors, request.hits_addend, self._tenant_pattern, self._ipv6_prefix)
        if isinstance(hit, BadDescriptor):
            raise self._mistaken(hit)
        if isinstance(hit, UnusableIdentity):
            return self._rejected(unusable_identity(hit), request, None, _DO_NOT_RETRY)
        tenant, in_flight = hit.identity.tenant, self._in_flight
        if not in_flight.enter(tenant):
            return self._rejected(too_many_in_flight(in_flight.cap, _RETRY_AFTER_S), request, None)
        try:
            decision = await self._decide(hit)
        finally:
            in_flight.leave(tenant)
        match decision:
            case Admitted(states=states):
                return self._admitted(tightest(states, requests=True), request)
            case Denied(state=state):
                return self._rejected(over_limit(decision, self._now(), self._style), request, state)
            case Suspended(reason=reason):
                return self._rejected(suspended(reason), request, None, _DO_NOT_RETRY)
            case Unavailable():
                raise RefusedError(Status.UNAVAILABLE, "The counters can't be reached.")
            case _:
                assert_never(decision)

    def _admitted(self, state: BucketState | None, request: pb.RateLimitRequest) -> pb.RateLimitResponse:
        headers = quota_headers((state,), self._now()) if state is not None else ()
        return _Response(
            overall_code=_Response.OK,
            statuses=self._statuses(_Response.OK, state, len(request.descriptors)),
            response_headers_to_add=_header_values(headers),
        )

    def _rejected(
        self,
        rejection: Rejection,
        request: pb.RateLimitRequest,
        state: BucketState | None,
        *more: tuple[str, str],
    ) -> pb.RateLimitResponse:
        self._metrics.rejected(rejection.reason)
        _log.debug("rejected", extra={"reason": rejection.reason})
        return _Response(
            overall_code=_Response.OVER_LIMIT,
            statuses=self._statuses(_Response.OVER_LIMIT, state, len(request.descriptors)),
            response_headers_to_add=_header_values((*rejection.headers, *more)),
            raw_body=rejection.body,
        )

    def _statuses(
        self, code: pb.RateLimitResponse.Code, state: BucketState | None, count: int
    ) -> list[pb.RateLimitResponse.DescriptorStatus]:
        """One for each descriptor, all of one code: together they are one request and one decision.

        The bucket is in the first alone: Envoy's own header would list it as often as it is told.
        """
        statuses = [_Response.DescriptorStatus(code=code) for _ in range(count)]
        if state is not None:
            limit, told = state.bucket.limit, statuses[0]
            told.current_limit.requests_per_unit = min(limit.amount, _MOST_UINT32)
            told.current_limit.unit = _UNITS[limit.window]
            told.current_limit.name = limit.scope
            told.limit_remaining = min(state.remaining, _MOST_UINT32)
            told.duration_until_reset.seconds = max(0, state.bucket.interval.end - int(self._now().timestamp()))
        return statuses

    def _mistaken(self, problem: BadDescriptor) -> RefusedError:
        self._metrics.stream_fault("protocol")
        if problem.message not in self._mistakes and len(self._mistakes) < _MISTAKES_TOLD:
            self._mistakes.add(problem.message)
            _log.error("check the actions of the rate limit filter", extra={"error": problem.message})
        return RefusedError(Status.INVALID_ARGUMENT, problem.message)


def _descriptor(message: pb.RateLimitDescriptor) -> Descriptor:
    return Descriptor(
        tuple((entry.key, entry.value) for entry in message.entries),
        message.hits_addend.value if message.HasField("hits_addend") else None,
        refunds=message.is_negative_hits,
        overrides=message.HasField("limit"),
    )


def _header_values(headers: tuple[tuple[str, str], ...]) -> list[pb.HeaderValue]:
    return [pb.HeaderValue(key=key, value=value) for key, value in headers]
