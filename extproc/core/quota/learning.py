"""What settled usage teaches about each model: how long its answers are, and what its prompts come to in tokens.

Both are estimates for a hold, never a charge: what was held too much goes back when the request is settled. One
rule holds for all of them: of the last requests, nine in ten needed no more. Integers throughout; the same
observations always give the same estimates.
"""

from array import array
from bisect import bisect_left, insort
from typing import Final

from extproc.core.request.body import MAX_TOKENS

# So many of the latest values are looked at: a tenth of them is still a dozen, and a change shows within minutes.
WINDOW: Final = 128
# With fewer values than this, what was configured has its share in the estimate.
ENOUGH: Final = 32
# Below this size the template's part of a prompt is too large for bytes per token to be seen.
LARGE_PROMPT_BYTES: Final = 1024
# Learned values stay near the configured ones, so that one caller's odd requests can do only so much to the
# holds of all others: typical output ...
_LESS_OUTPUT: Final = 8
_MORE_OUTPUT: Final = 16
# ... bytes per token (and never beyond what a tokenizer can do with text) ...
_RATIO_SPREAD: Final = 4
_MILLI: Final = 1000
_MIN_RATIO, _MAX_RATIO = 1 * _MILLI, 16 * _MILLI
# ... and tokens that a template adds beyond those that were configured: some carry a system prompt of their own.
_MAX_EXTRA_TOKENS: Final = 2048


class Learned:
    """Estimates per model, for at most `models` of them (two or more). Not for use by several threads.

    Three quarters of the room are for models that were observed often enough, one quarter for those that were
    not: made-up names push each other out, not what was learned. Reading is a lookup and changes nothing.
    Names must be bounded in length by the caller.
    """

    def __init__(self, models: int = 512) -> None:
        self._room_for_new = max(1, models // 4)
        self._room_for_known = max(1, models - self._room_for_new)
        # In both, who was observed last stands last.
        self._new: dict[str, _Profile] = {}
        self._known: dict[str, _Profile] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._known)

    def observe(
        self,
        model: str,
        *,
        prompt_bytes: int,
        overhead_tokens: int,
        media_parts: int,
        prompt_tokens: int,
        output_per_choice: int,
        bounded: bool,
        start_bytes_per_token: int,
    ) -> None:
        """Takes in one request that was settled on the usage of a complete answer. Never raises.

        Args:
            model: the model's name.
            prompt_bytes: as they were when the prompt was estimated.
            overhead_tokens: as it was when the prompt was estimated.
            media_parts: a prompt with images or audio says nothing about text, and is left out.
            prompt_tokens: what the upstream reported; 0 is taken for unknown.
            output_per_choice: what the upstream reported, divided by the choices and rounded up; 0 as above.
            bounded: a bound on the output went upstream, the client's or ours. Such an output is left out even
                if it stayed under its bound: the estimate is for requests without one, and clients that set a
                bound ask for other things than those that don't.
            start_bytes_per_token: what is configured.
        """
        profile = self._profile(model)
        if output_per_choice > 0 and not bounded:
            profile.outputs.add(min(output_per_choice, MAX_TOKENS))
        if media_parts or prompt_bytes <= 0 or prompt_tokens <= 0:
            return
        text_tokens = prompt_tokens - overhead_tokens
        if prompt_bytes >= LARGE_PROMPT_BYTES:
            ratio = prompt_bytes * _MILLI // max(1, text_tokens)
            profile.ratios.add(_within(ratio, _MIN_RATIO, _MAX_RATIO))
        else:
            extra = text_tokens - _tokens(prompt_bytes, profile.ratio(start_bytes_per_token))
            profile.extras.add(_within(extra, 0, _MAX_EXTRA_TOKENS))

    def typical_output(self, model: str, start: int) -> int:
        """Tokens per choice that nine in ten of a model's unbounded answers stay within.

        Between start / 8 and start x 16, at least 1, at most MAX_TOKENS; `start` itself for an unknown model.
        """
        profile = self._find(model)
        typical = start if profile is None else profile.outputs.ninth_decile(start)
        return _within(_within(typical, start // _LESS_OUTPUT, start * _MORE_OUTPUT), 1, MAX_TOKENS)

    def prompt_tokens(
        self, model: str, *, prompt_bytes: int, overhead_tokens: int, start_bytes_per_token: int
    ) -> int:
        """Tokens that nine in ten prompts of this size and model stay within; media not included.

        From 1 to MAX_TOKENS, never less for more bytes. Bytes per token are between a quarter and four times
        `start_bytes_per_token`, and between 1 and 16.
        """
        profile = self._find(model)
        if profile is None:
            ratio, extra = _ratio_near(start_bytes_per_token, start_bytes_per_token * _MILLI), 0
        else:
            ratio, extra = profile.ratio(start_bytes_per_token), profile.extras.ninth_decile(0)
        return _within(_tokens(prompt_bytes, ratio) + overhead_tokens + extra, 1, MAX_TOKENS)

    def _find(self, model: str) -> "_Profile | None":
        return self._known.get(model) or self._new.get(model)

    def _profile(self, model: str) -> "_Profile":
        """The profile to put an observation into, as the one that was observed last."""
        profile = self._known.pop(model, None)
        if profile is None:
            profile = self._new.pop(model, None) or _Profile()
        profile.observations += 1
        known = profile.observations >= ENOUGH
        models, room = (self._known, self._room_for_known) if known else (self._new, self._room_for_new)
        models[model] = profile
        if len(models) > room:
            del models[next(iter(models))]
        return profile


class _Recent:
    """The last `WINDOW` values, in the order in which they came and in that of their size."""

    __slots__ = ("_arrived", "_oldest", "_sorted")

    def __init__(self) -> None:
        self._arrived = array("L")
        self._sorted = array("L")
        self._oldest = 0

    def add(self, value: int) -> None:
        if len(self._arrived) < WINDOW:
            self._arrived.append(value)
        else:
            del self._sorted[bisect_left(self._sorted, self._arrived[self._oldest])]
            self._arrived[self._oldest] = value
            self._oldest = (self._oldest + 1) % WINDOW
        insort(self._sorted, value)

    def ninth_decile(self, start: int) -> int:
        """The value that a tenth of the others, rounded down, are above."""
        return self._blend(start, -1 - len(self._sorted) // 10)

    def first_decile(self, start: int) -> int:
        """The value that a tenth of the others, rounded down, are below."""
        return self._blend(start, len(self._sorted) // 10)

    def _blend(self, start: int, index: int) -> int:
        values = min(len(self._sorted), ENOUGH)
        if not values:
            return start
        return (start * (ENOUGH - values) + self._sorted[index] * values) // ENOUGH


class _Profile:
    """What is known of one model: about 6 KB when all windows are full."""

    __slots__ = ("extras", "observations", "outputs", "ratios")

    def __init__(self) -> None:
        self.observations = 0
        self.outputs = _Recent()
        self.ratios = _Recent()  # thousandths of a byte per token, of large prompts
        self.extras = _Recent()  # tokens that bytes and configured overhead don't account for, of small prompts

    def ratio(self, start_bytes_per_token: int) -> int:
        return _ratio_near(start_bytes_per_token, self.ratios.first_decile(start_bytes_per_token * _MILLI))


def _ratio_near(start_bytes_per_token: int, ratio: int) -> int:
    start = start_bytes_per_token * _MILLI
    return _within(_within(ratio, start // _RATIO_SPREAD, start * _RATIO_SPREAD), _MIN_RATIO, _MAX_RATIO)


def _tokens(size: int, ratio: int) -> int:
    return -(-size * _MILLI // ratio)


def _within(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)
