"""The settings of cost: estimates, bounds, weights and prices, in general and for single models."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from extproc.core.quota.costs import MAX_OUTPUT_BOUND, Weights
from extproc.core.quota.fields import FieldError, Fields
from extproc.core.quota.models import Prices
from extproc.core.quota.policies import weights_from
from extproc.settings.types import Price, Section, Tokenizer, Weight, listed


class WeightSettings(Section):
    """How much a token counts, by its kind; a tenant's own weights go before these."""

    input: Weight = Field(default=1.0, description="A token of the prompt.")
    cached_input: Weight | None = Field(
        default=None, description="A token of the prompt that the upstream had cached; null: as input."
    )
    output: Weight = Field(default=1.0, description="A generated token.")
    reasoning: Weight | None = Field(default=None, description="A generated token of reasoning; null: as output.")

    @model_validator(mode="after")
    def _exact(self) -> Self:
        self.parsed()
        return self

    def parsed(self) -> Weights:
        """As integers. Raises `ValueError`."""
        try:
            return weights_from(Fields(self.model_dump()))
        except FieldError as error:
            raise ValueError(str(error)) from None


class PriceSettings(Section):
    """What a million tokens cost; for reports."""

    input: Price = Field(default=0.0, description="A million tokens of prompt.")
    cached_input: Price | None = Field(default=None, description="A million cached ones; null: as input.")
    output: Price = Field(default=0.0, description="A million generated tokens.")

    def parsed(self) -> Prices:
        cached = self.input if self.cached_input is None else self.cached_input
        return Prices(*(round(price * 1_000_000) for price in (self.input, cached, self.output)))


class CostSettings(Section):
    """What a request holds before its answer is known, and how its tokens count."""

    prompt_bytes_per_token: int = Field(
        default=3, ge=1, le=16, description="Bytes of prompt JSON counted as one token, until it is learned."
    )
    prompt_overhead_tokens: int = Field(default=8, ge=0, le=100_000, description="Added for the chat template.")
    media_tokens: int = Field(
        default=1024, ge=0, le=1_000_000, description="Held for each image, audio or file part."
    )
    typical_output_tokens: int = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="Held per choice where the client gave no output bound, until it is learned.",
    )
    learn: bool = Field(
        default=True, description="Whether prompt and output estimates follow what settled usage shows, per model."
    )
    output_bytes_per_token: int = Field(
        default=4, ge=1, le=16, description="Bytes of answer counted as one token, when estimating."
    )
    media_bound_tokens: int = Field(
        default=16_384,
        ge=0,
        le=1_000_000,
        description="Strict mode: the most that an image, audio or file can be.",
    )
    prompt_bound_factor: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Strict mode: how much longer, in bytes, a tokenizer's normalization can make a text.",
    )
    template_bound_tokens: int = Field(
        default=64, ge=0, le=100_000, description="Strict mode: the most that a chat template adds to a request."
    )
    message_bound_tokens: int = Field(
        default=16,
        ge=0,
        le=10_000,
        description="Strict mode with a tokenizer: the most that a chat template adds to each message.",
    )
    max_output_tokens: int = Field(
        default=1024,
        ge=1,
        le=MAX_OUTPUT_BOUND,
        description="Strict mode: written per choice where the client gave no output bound.",
    )
    min_output_tokens: int = Field(
        default=16,
        ge=1,
        le=MAX_OUTPUT_BOUND,
        description="Strict mode: a request for which fewer are left is denied, unless it asked for fewer.",
    )
    refuse_unbounded: bool = Field(
        default=True,
        description="Strict mode: refuse what has no bound (an earlier conversation by its id, files, films, tools"
        " that the server runs). false: admit it; what it needs beyond the hold is recorded, not charged.",
    )
    weights: WeightSettings = WeightSettings()
    currency: str = Field(
        default="USD", min_length=1, max_length=8, description="What prices are given in; for reports."
    )


class ModelSettings(Section):
    """What differs for the models that `match` (a glob) names; of several entries the first one counts."""

    match: str = Field(min_length=1, max_length=256)
    prompt_bytes_per_token: int | None = Field(default=None, ge=1, le=16)
    prompt_overhead_tokens: int | None = Field(default=None, ge=0, le=100_000)
    media_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    typical_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    media_bound_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    prompt_bound_factor: int | None = Field(default=None, ge=1, le=16)
    template_bound_tokens: int | None = Field(default=None, ge=0, le=100_000)
    message_bound_tokens: int | None = Field(default=None, ge=0, le=10_000)
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_OUTPUT_BOUND)
    min_output_tokens: int | None = Field(default=None, ge=1, le=MAX_OUTPUT_BOUND)
    output_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    weights: WeightSettings | None = None
    prices: PriceSettings | None = None
    tokenizer: Tokenizer | None = None


ModelList = Annotated[tuple[ModelSettings, ...], BeforeValidator(listed)]
