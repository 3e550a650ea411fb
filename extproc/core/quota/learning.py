"""Learn estimates per model from settled usage: the length of its answers, and the tokens of its prompts.

The estimates decide holds, never charges: a hold that was too large is given back when the request is settled. One
rule applies to all: nine in ten of the latest requests needed no more. All numbers are integers, and the same
observations always give the same estimates.
"""

from array import array
from bisect import bisect_left, insort
from typing import Final

from extproc.core.request.body import MAX_TOKENS

# The number of latest values that count: a tenth of them is still a dozen, and a change shows within minutes.
WINDOW: Final = 128
# With fewer values than this, the configured value has its share in the estimate.
ENOUGH: Final = 32
# In smaller prompts the template's part is too large to measure bytes per token.
LARGE_PROMPT_BYTES: Final = 1024
# Learned values stay near the configured ones, so that one caller's odd requests have little effect on the holds
# of all others: typical output ...
_LESS_OUTPUT: Final = 8
_MORE_OUTPUT: Final = 16
# ... bytes per token (and never beyond the possible range of a tokenizer) ...
_RATIO_SPREAD: Final = 4
_MILLI: Final = 1000
_MIN_RATIO, _MAX_RATIO = 1 * _MILLI, 16 * _MILLI
# ... and tokens that a template adds beyond the configured ones: some contain a system prompt of their own.
_MAX_EXTRA_TOKENS: Final = 2048


class Learned:
    """Keep estimates for at most `models` models (two or more). Not thread-safe.

    Three quarters of the room are for models with enough observations, one quarter is for the others. Made-up
    names therefore replace each other, not learned values. Reading is a lookup and changes nothing. The caller
    must bound the length of names.
    """

    def __init__(self, models: int = 512) -> None:
        self._room_for_new = max(1, models // 4)
        self._room_for_known = max(1, models - self._room_for_new)
        # In both, the model that was observed last is at the end.
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
        """Take in one request that was settled on the usage of a complete answer. Never raise.

        Args:
            model: the model's name.
            prompt_bytes: the value at the time of the estimate.
            overhead_tokens: the value at the time of the estimate.
            media_parts: a prompt with images or audio is left out, because it says nothing about text.
            prompt_tokens: reported by the upstream; 0 means unknown.
            output_per_choice: reported by the upstream, divided by the choices and rounded up; 0 means unknown.
            bounded: a bound on the output went upstream, the client's or ours. Such an output is left out even
                if it stayed under its bound: the estimate is for requests without one, and clients that set a
                bound ask for other things than those that don't.
            start_bytes_per_token: the configured value.
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
        """Return tokens per choice that suffice for nine in ten of a model's unbounded answers.

        The value is between start / 8 and start x 16, at least 1, at most MAX_TOKENS; `start` itself for an
        unknown model.
        """
        profile = self._find(model)
        typical = start if profile is None else profile.outputs.ninth_decile(start)
        return _within(_within(typical, start // _LESS_OUTPUT, start * _MORE_OUTPUT), 1, MAX_TOKENS)

    def prompt_tokens(
        self, model: str, *, prompt_bytes: int, overhead_tokens: int, start_bytes_per_token: int
    ) -> int:
        """Return tokens that suffice for nine in ten prompts of this size and model, without media.

        The value is between 1 and MAX_TOKENS and never falls as bytes grow. Bytes per token are between a quarter
        and four times `start_bytes_per_token`, and between 1 and 16.
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
        """Return the profile for a new observation, and move it to the end of its table."""
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
    """Keep the last `WINDOW` values, in order of arrival and in order of size."""

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
        """Return the value that a tenth of the others, rounded down, are above."""
        return self._blend(start, -1 - len(self._sorted) // 10)

    def first_decile(self, start: int) -> int:
        """Return the value that a tenth of the others, rounded down, are below."""
        return self._blend(start, len(self._sorted) // 10)

    def _blend(self, start: int, index: int) -> int:
        values = min(len(self._sorted), ENOUGH)
        if not values:
            return start
        return (start * (ENOUGH - values) + self._sorted[index] * values) // ENOUGH


class _Profile:
    """Hold the observations of one model: about 6 KB when all windows are full."""

    __slots__ = ("extras", "observations", "outputs", "ratios")

    def __init__(self) -> None:
        self.observations = 0
        self.outputs = _Recent()
        self.ratios = _Recent()  # thousandths of a byte per token, of large prompts
        self.extras = _Recent()  # tokens beyond bytes and configured overhead, of small prompts

    def ratio(self, start_bytes_per_token: int) -> int:
        return _ratio_near(start_bytes_per_token, self.ratios.first_decile(start_bytes_per_token * _MILLI))


def _ratio_near(start_bytes_per_token: int, ratio: int) -> int:
    start = start_bytes_per_token * _MILLI
    return _within(_within(ratio, start // _RATIO_SPREAD, start * _RATIO_SPREAD), _MIN_RATIO, _MAX_RATIO)


def _tokens(size: int, ratio: int) -> int:
    return -(-size * _MILLI // ratio)


def _within(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)
