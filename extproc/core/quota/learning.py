"""Learn estimates per tenant and model from settled usage: the length of answers, and the tokens of prompts.

The estimates decide holds, never charges: a hold that was too large is given back when the request is settled. One
rule applies to all: nine in ten of the tenant's latest requests needed no more. A tenant's requests never change
the estimates of another tenant, with one exception: where enough tenants use a model, the median of what their
requests show takes the place of the configured value (the `prior`). All results are integers, and the same
observations always give the same estimates.

Prompts are learned apart by their kind: with tools or without, measured by a tokenizer or by their bytes.
"""

from typing import Final, NamedTuple, Self

from extproc.core.quota.costs import Costing
from extproc.core.quota.profiles import Profile, ProfileTable
from extproc.core.quota.prompt_fit import Expected, PromptFit, PromptKind, PromptSize
from extproc.core.quota.recent import ENOUGH, Figures
from extproc.core.request.body import MAX_TOKENS

_MILLI: Final = 1000
# The possible range of a tokenizer, in thousandths of a byte per token.
_MIN_RATIO, _MAX_RATIO = 1 * _MILLI, 16 * _MILLI
# The most that a template adds beyond the configured tokens: some templates contain a system prompt of their own.
_MAX_EXTRA_TOKENS: Final = 2048


class Start(NamedTuple):
    """Hold the values before anything is learned of a model, and the range of those that are learned.

    Outputs are tokens per choice. `prompts` has an entry for each `PromptKind`, in order.
    """

    output: int
    output_low: int
    output_high: int
    prompts: tuple[Expected, ...]

    @classmethod
    def of(cls, costing: Costing) -> Self:
        """Return the configured values. Each is within its range, whatever the range is configured to be."""
        output = _within(costing.typical_output_tokens, 1, MAX_TOKENS)
        ratio = _within(costing.prompt_bytes_per_token * _MILLI, _MIN_RATIO, _MAX_RATIO)
        fixed = _within(costing.prompt_overhead_tokens, 0, MAX_TOKENS)
        by_bytes = Expected(
            ratio=ratio,
            ratio_low=max(_MIN_RATIO, min(ratio, costing.learned_bytes_per_token_min * _MILLI)),
            ratio_high=min(_MAX_RATIO, max(ratio, costing.learned_bytes_per_token_max * _MILLI)),
            fixed=fixed,
            fixed_low=fixed,
            fixed_high=fixed + _MAX_EXTRA_TOKENS,
        )
        # Texts have no fewer tokens than a tokenizer counted; tools have, where a template writes them shorter.
        counted = by_bytes._replace(ratio=_MILLI, ratio_low=_MILLI // 2, ratio_high=_MILLI, fixed_low=0)
        return cls(
            output=output,
            output_low=max(1, min(output, costing.learned_output_min_tokens)),
            output_high=min(MAX_TOKENS, max(output, costing.learned_output_max_tokens)),
            prompts=(by_bytes, by_bytes, counted, counted._replace(ratio_high=2 * _MILLI)),
        )


class Learned:
    """Keep estimates for at most `profiles` pairs of tenant and model (two or more). Not thread-safe.

    Three quarters of the room are for pairs with enough observations, one quarter is for the others. Made-up names
    therefore replace each other, not learned values; and in both, a tenant that uses many models loses its own
    profiles first. Reading is a lookup and changes nothing. The caller must bound the length of names.
    """

    def __init__(self, profiles: int = 2048) -> None:
        room_for_new = max(1, profiles // 4)
        self._new = ProfileTable(room_for_new)
        self._known = ProfileTable(max(1, profiles - room_for_new))
        self._shared: dict[str, _Shared] = {}  # of each model that a known profile is of

    def __len__(self) -> int:
        return len(self._new) + len(self._known)

    def observe(
        self,
        tenant: str,
        model: str,
        start: Start,
        *,
        prompt: PromptSize | None,
        prompt_tokens: int,
        output_per_choice: int,
        bounded: bool,
    ) -> None:
        """Take in one request that was settled on the usage of a complete answer. Never raise.

        Args:
            tenant: the caller's tenant.
            model: the model's name.
            start: the configuration at the time of the estimate.
            prompt: its size at the time of the estimate; None if its tokens say nothing about its text: it has
                images or audio, the server adds to it, or it was given as token ids.
            prompt_tokens: reported by the upstream; 0 means unknown.
            output_per_choice: reported by the upstream, divided by the choices and rounded up; 0 means unknown.
            bounded: a bound on the output went upstream, the client's or ours. Such an output is left out even
                if it stayed under its bound: the estimate is for requests without one, and clients that set a
                bound ask for other things than those that don't.
        """
        profile, shared = self._observed(tenant, model)
        if output_per_choice > 0 and not bounded:
            profile.outputs.add(min(output_per_choice, MAX_TOKENS))
            shared.outputs.follow(profile.outputs)
        if prompt is None or prompt.size <= 0 or prompt_tokens <= 0:
            return
        fit = profile.fit(prompt.kind)
        fit.add(prompt.size, prompt_tokens, start.prompts[prompt.kind])
        shared.follow(prompt.kind, fit)

    def typical_output(self, tenant: str, model: str, start: Start) -> int:
        """Return tokens per choice to hold for an answer without a bound: 1 to MAX_TOKENS.

        They suffice for nine in ten of the tenant's latest unbounded answers, and are never less than the prior:
        a tenant's own answers only raise them. The prior is the configured value; from `TENANTS` other tenants on,
        it is the median of what suffices for each of them. What is learned is kept within the range of `start`.
        """
        outputs = self._find(tenant, model).outputs
        prior, low, high = start.output, start.output_low, start.output_high
        shared = self._shared.get(model)
        if shared is not None:
            prior = shared.outputs.prior(outputs.shown, prior, low, high)
        own = outputs.estimate(prior, low, high)
        return max(prior, own)

    def prompt_tokens(self, tenant: str, model: str, start: Start, prompt: PromptSize) -> int:
        """Return tokens that suffice for nine in ten of the tenant's prompts of this size and kind, without media.

        The value is between 1 and MAX_TOKENS and never falls as the size grows. With few observations the prior
        has its share, as in `typical_output`. What is learned is kept within the range of `start`.
        """
        fit = self._find(tenant, model).prompts.get(prompt.kind, _NO_FIT)
        ratio, low, high, fixed, fixed_low, fixed_high = start.prompts[prompt.kind]
        shared = self._shared.get(model, _NOTHING).prompts.get(prompt.kind)
        if shared is not None:
            ratio = shared.ratios.prior(fit.ratio.shown, ratio, low, high)
            fixed = shared.fixed.prior(fit.fixed.shown, fixed, fixed_low, fixed_high)
        text = -(-prompt.size * _MILLI // fit.ratio.estimate(ratio, low, high))
        return _within(text + fit.fixed.estimate(fixed, fixed_low, fixed_high), 1, MAX_TOKENS)

    def _find(self, tenant: str, model: str) -> Profile:
        return self._known.find(tenant, model) or self._new.find(tenant, model) or _UNKNOWN

    def _observed(self, tenant: str, model: str) -> "tuple[Profile, _Shared]":
        """Return the profile for a new observation, and what all tenants' profiles of the model show."""
        profile = self._known.find(tenant, model)
        if profile is not None:
            self._known.touch(tenant, model)
            return profile, self._shared[model]
        profile = self._new.find(tenant, model)
        if profile is None:
            profile = Profile()
            self._new.add(tenant, model, profile)
        profile.observations += 1
        if profile.observations < ENOUGH:
            self._new.touch(tenant, model)
            return profile, self._shared.get(model, _NOTHING)
        self._new.remove(tenant, model)
        return profile, self._known_from_now(tenant, model, profile)

    def _known_from_now(self, tenant: str, model: str, profile: Profile) -> "_Shared":
        shared = self._shared.setdefault(model, _Shared())
        shared.profiles += 1
        forgotten = self._known.add(tenant, model, profile)
        if forgotten is not None:
            of_model = self._shared[forgotten.model]
            of_model.withdraw(forgotten.profile)
            if not of_model.profiles:
                del self._shared[forgotten.model]
        return shared


class _SharedPrompts:
    """Hold what the known profiles of one model show of prompts of one kind."""

    __slots__ = ("fixed", "ratios")

    def __init__(self) -> None:
        self.ratios = Figures()
        self.fixed = Figures()


class _Shared:
    """Hold what the known profiles of one model show: a figure of each tenant that has enough values."""

    __slots__ = ("outputs", "profiles", "prompts")

    def __init__(self) -> None:
        self.profiles = 0
        self.outputs = Figures()
        self.prompts: dict[PromptKind, _SharedPrompts] = {}

    def follow(self, kind: PromptKind, fit: PromptFit) -> None:
        """Let a profile's fit stand for its tenant, once it has enough prompts."""
        if fit.ratio.decile is not None:
            shared = self.prompts.setdefault(kind, _SharedPrompts())
            shared.ratios.follow(fit.ratio)
            shared.fixed.follow(fit.fixed)

    def withdraw(self, profile: Profile) -> None:
        """Take out what a profile showed."""
        self.profiles -= 1
        self.outputs.withdraw(profile.outputs)
        for kind, shared in self.prompts.items():
            fit = profile.prompts.get(kind, _NO_FIT)
            shared.ratios.withdraw(fit.ratio)
            shared.fixed.withdraw(fit.fixed)


# All stay empty: a profile shows a figure only with enough values, and is known by then.
_UNKNOWN: Final = Profile()
_NOTHING: Final = _Shared()
_NO_FIT: Final = PromptFit()


def _within(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)
