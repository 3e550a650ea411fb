"""Declare the settings of cost: estimates, bounds, weights and prices, in general and for single models."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from extproc.core.quota.costs import Costing, Range, Weights
from extproc.core.quota.fields import FieldError, Fields
from extproc.core.quota.models import ModelProfile, Prices
from extproc.core.quota.policies import weights_from
from extproc.core.request.body import MAX_MODEL_CHARS, UNNAMED
from extproc.settings.types import Price, Section, Tokenizer, Weight, listed


class WeightSettings(Section):
    """Weigh tokens by their kind. A tenant's own weights replace these."""

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
        """Return the weights as integers. Raise `ValueError`."""
        try:
            return weights_from(Fields(self.model_dump()))
        except FieldError as error:
            raise ValueError(str(error)) from None


class PriceSettings(Section):
    """Price a million tokens, for reports."""

    input: Price = Field(default=0.0, description="A million tokens of prompt.")
    cached_input: Price | None = Field(default=None, description="A million cached ones; null: as input.")
    output: Price = Field(default=0.0, description="A million generated tokens.")

    def parsed(self) -> Prices:
        cached = self.input if self.cached_input is None else self.cached_input
        return Prices(*(round(price * 1_000_000) for price in (self.input, cached, self.output)))


# The numbers of `Costing` are settings: in general with its defaults, and for single models.
_RANGES: Final[dict[str, Range]] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Costing, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}


def _number(name: str, default: int | None) -> Any:
    """Return the declaration of a number of `Costing` as a setting."""
    least, most, meaning = _RANGES[name]
    return Field(default=default, ge=least, le=most, description=meaning)


if TYPE_CHECKING:  # a class that is made is none to a type checker
    _Numbers = Section
    _ModelNumbers = Section
else:
    _Numbers = create_model(
        "_Numbers",
        __base__=Section,
        **{name: (int, _number(name, getattr(Costing(), name))) for name in _RANGES},
    )
    _ModelNumbers = create_model(
        "_ModelNumbers", __base__=Section, **{name: (int | None, _number(name, None)) for name in _RANGES}
    )


class CostSettings(_Numbers):
    """Estimate and bound the cost of a request, and weigh its tokens."""

    learn: bool = Field(
        default=True,
        description="Learn the estimates of prompt and output from settled usage, per tenant and model.",
    )
    output_bytes_per_token: int = Field(
        default=4, ge=1, le=16, description="Bytes of answer counted as one token, when estimating."
    )
    refuse_unbounded: bool = Field(
        default=True,
        description="Strict mode: refuse requests without a bound (what is stored at the server, files, films,"
        " searches, tools of the server). false: admit them; usage beyond the hold is recorded, not charged.",
    )
    refuse_without_usage: bool = Field(
        default=True,
        description="Refuse requests whose answer would come without usage: embeddings as `bytes_only`."
        " false: admit them; their charge is an estimate.",
    )
    unnamed_model: str = Field(
        default=UNNAMED,
        min_length=1,
        max_length=MAX_MODEL_CHARS,
        pattern=r"^\S(.*\S)?$",
        description="The model of requests that name none, in the body or the path. With the default, limits by"
        " model refuse them.",
    )
    weights: WeightSettings = WeightSettings()
    currency: str = Field(
        default="USD", min_length=1, max_length=8, description="Currency of the prices, for reports."
    )

    def profile(self) -> ModelProfile:
        """Return the profile of models without an entry of their own."""
        return ModelProfile(Costing(**{name: getattr(self, name) for name in _RANGES}), self.weights.parsed())


class ModelSettings(_ModelNumbers):
    """Override the general costs for the models that the glob `match` fits. The first entry that fits counts."""

    match: str = Field(min_length=1, max_length=256)
    output_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    weights: WeightSettings | None = None
    prices: PriceSettings | None = None
    tokenizer: Tokenizer | None = None
    asks_for_usage: bool = True
    continuous_usage: bool = False
    adds_to_prompt: bool | None = None

    @model_validator(mode="after")
    def _asks_once(self) -> Self:
        if self.continuous_usage and not self.asks_for_usage:
            raise ValueError("continuous_usage: needs asks_for_usage: true")
        return self

    def profile(self, general: ModelProfile) -> ModelProfile:
        """Return the general profile with the overrides of this entry."""
        own = {name: getattr(self, name) for name in (*_RANGES, "output_field")}
        return ModelProfile(
            costing=replace(general.costing, **{name: value for name, value in own.items() if value is not None}),
            weights=self.weights.parsed() if self.weights is not None else general.weights,
            prices=self.prices.parsed() if self.prices is not None else general.prices,
            asks_for_usage=self.asks_for_usage,
            continuous_usage=self.continuous_usage,
            adds_to_prompt=self.adds_to_prompt,
        )


ModelList = Annotated[tuple[ModelSettings, ...], BeforeValidator(listed)]
