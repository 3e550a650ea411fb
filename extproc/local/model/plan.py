"""Turn a parsed request into a job: check the model, check that prompt and answer fit, and count the prompt."""

from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import msgspec

from extproc.local.model.api import (
    ChatRequest,
    ChoicesRequest,
    CompletionRequest,
    GenerationRequest,
    check_choices,
    check_count,
    check_stop,
    countable,
    stop_strings,
    token_inputs,
)
from extproc.local.model.details import Details
from extproc.local.model.errors import ApiError, malformed, unfit
from extproc.local.model.faults import BEYOND_BOUND
from extproc.local.model.generator import Prompt, Sampling
from extproc.local.model.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.local.model.tokenizer import Message, SampleTokenizer

# The completions endpoint's output without a client's bound; the chat endpoint has no such bound.
_DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Job:
    """Hold a request that will be answered with text.

    Attributes:
        kind: The kind of request.
        model: The name that the client used.
        prompts: One or more for a completion; one for all others.
        choices: Choices generated for each prompt, at least 1.
        shown: How many of them are in the answer, at least 1.
        stream: Whether the answer is a stream of events.
        include_usage: Whether a stream ends with its usage, if that is the client's choice.
        continuous_usage: Whether each of its chunks carries the usage so far.
        audio_seconds: Seconds of audio in the request, rounded up.
        details: Details of usage beside the totals.
    """

    kind: Kind
    model: str
    prompts: tuple[Prompt, ...]
    choices: int = 1
    shown: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    audio_seconds: int = 0
    details: Details = field(default_factory=Details)

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)

    def prompt_of(self, index: int) -> Prompt:
        """Return the prompt that a choice answers."""
        return self.prompts[index // self.choices]

    def beyond_bound(self) -> Self:
        """Return the job as a model would do it that ignores the client's bound."""
        return replace(self, prompts=tuple(_beyond_bound(prompt) for prompt in self.prompts))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hold the output that a client wants.

    Attributes:
        tokens: The bound on the output, or None for all that fits.
        param: The field that sets it.
        stop: Strings before which the text is cut, and the field that names them.
        chosen: Whether the bound is the client's own and not the endpoint's.
    """

    tokens: int | None
    param: str = "max_tokens"
    stop: tuple[str, ...] = ()
    stop_param: str = "stop"
    chosen: bool = True


@dataclass(frozen=True, slots=True)
class Planner:
    """Plan jobs for the served models.

    Attributes:
        models: Names the model answers to.
        max_model_len: Tokens that prompt and completion may have together.
        tokenizer: Counts the prompts.
    """

    models: tuple[str, ...]
    max_model_len: int
    tokenizer: "SampleTokenizer"

    def chat(self, request: ChatRequest) -> Job:
        """Plan a chat.

        Raises:
            ApiError: 404 for a model not served, 400 for what does not fit.
        """
        check_choices(request)
        self.check_model(request.model)
        if not request.messages:
            raise malformed("messages must have at least one message", "messages")
        tokens = request.max_tokens
        if request.max_completion_tokens is not None:
            tokens = request.max_completion_tokens
        wanted = Wanted(tokens, stop=stop_strings(request.stop))
        messages = [countable(message) for message in request.messages]
        choices = request.n or 1
        return _job(Kind.CHAT, request, [self.conversation(request, messages, wanted)], choices, choices)

    def completion(self, request: CompletionRequest) -> Job:
        """Plan a completion of one or more prompts.

        Raises:
            ApiError: 404 for a model not served, 400 for what does not fit.
        """
        check_choices(request)
        check_count(request.best_of, "best_of")
        self.check_model(request.model)
        inputs = token_inputs(request.prompt, "prompt")
        shown = request.n or 1
        choices = shown if request.best_of is None else request.best_of
        if choices < shown:
            raise ApiError(f"best_of must be at least n={shown}, got {choices}.", param="best_of")
        if choices > shown and request.stream:
            raise ApiError("best_of cannot be streamed.", param="best_of")
        tokens = request.max_tokens
        if tokens is None and not request.ignore_eos:
            tokens = _DEFAULT_COMPLETION_TOKENS
        chosen = request.max_tokens is not None
        wanted = Wanted(tokens, stop=stop_strings(request.stop), chosen=chosen)
        prompts = [self._completed(request, given, wanted) for given in inputs]
        return _job(Kind.COMPLETIONS, request, prompts, choices, shown)

    def conversation(
        self, request: GenerationRequest, messages: "Sequence[Message]", wanted: Wanted, param: str = "messages"
    ) -> Prompt:
        """Return the prompt of a conversation; ``param`` is its field.

        Raises:
            ApiError: 400 for what does not fit.
        """
        if not messages:
            raise malformed(f"{param} must have at least one message", param)
        content = [(message.role, message.text) for message in messages]
        question = next((turn.text for turn in reversed(messages) if turn.role == "user"), "")
        return self.prompt(request, content, question, self.tokenizer.count_chat(messages), wanted)

    def prompt(
        self, request: GenerationRequest, content: object, question: str, tokens: int, wanted: Wanted
    ) -> Prompt:
        """Return a prompt of ``tokens`` tokens; the answer depends on ``content`` only.

        Raises:
            ApiError: 400 for what does not fit.
        """
        identity = msgspec.json.encode([request.model, request.seed, content]).decode()
        return Prompt(identity, question, tokens, self._sampling(request, wanted, tokens))

    def check_model(self, model: str) -> None:
        """Check that a model is served.

        Raises:
            ApiError: 404; it is not served.
        """
        if model not in self.models:
            aliases = ", ".join(self.models)
            raise ApiError(
                f"The model `{model}` does not exist. Valid aliases: {aliases}.",
                status=HTTPStatus.NOT_FOUND,
                kind="NotFoundError",
                param="model",
            )

    def input_tokens(self, given: str | list[int], param: str) -> list[int]:
        """Return the tokens of a bare input, begin marker included; tokens are taken as they are.

        Raises:
            ApiError: 400; an unknown token, or more tokens than the model takes.
        """
        tokens = self.tokenizer.text_tokens(given) if isinstance(given, str) else given
        if not isinstance(given, str):
            self.check_tokens(given, param)
        if len(tokens) > self.max_model_len:
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{len(tokens)} tokens in the input. Please reduce the length of the input."
            )
            raise unfit(message, "input_tokens", len(tokens))
        return tokens

    def check_tokens(self, tokens: list[int], param: str) -> None:
        """Check that these tokens exist.

        Raises:
            ApiError: 400; one of them does not exist.
        """
        odd = next((token for token in tokens if not 0 <= token < self.tokenizer.size), None)
        if odd is not None:
            raise unfit(f"Token id {odd} is out of vocabulary", param, odd)

    def _completed(self, request: CompletionRequest, given: str | list[int], wanted: Wanted) -> Prompt:
        if isinstance(given, str):
            return self.prompt(request, given, given, self.tokenizer.count_text(given), wanted)
        self.check_tokens(given, "prompt")
        return self.prompt(request, given, self.tokenizer.decode(given), len(given), wanted)

    def _sampling(self, request: GenerationRequest, wanted: Wanted, prompt_tokens: int) -> Sampling:
        stop = check_stop(wanted.stop, wanted.stop_param)
        limit = self._limit(wanted, prompt_tokens)
        minimum = request.min_tokens or 0
        if minimum < 0:
            message = f"min_tokens must be greater than or equal to 0, got {minimum}."
            raise ApiError(message, param="min_tokens")
        if minimum > limit:
            message = f"min_tokens must be less than or equal to max_tokens={limit}, got {minimum}."
            raise ApiError(message, param="min_tokens")
        bounded = wanted.chosen and wanted.tokens is not None
        return Sampling(limit, minimum, bool(request.ignore_eos), stop, bounded)

    def _limit(self, wanted: Wanted, prompt_tokens: int) -> int:
        room = self.max_model_len - prompt_tokens
        asked = 1 if wanted.tokens is None else wanted.tokens
        if asked < 1:
            raise unfit(f"{wanted.param} must be at least 1, got {asked}.", wanted.param, asked)
        if asked > self.max_model_len:
            message = (
                f"{wanted.param}={asked} cannot be greater than max_model_len={self.max_model_len}. "
                "Please request fewer output tokens."
            )
            raise unfit(message, wanted.param, asked)
        if asked > room:
            # vLLM stops counting at the first prompt token that no longer fits, and reports that count.
            counted = self.max_model_len - asked + 1
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{asked} output tokens and your prompt contains at least {counted} input tokens, for a "
                f"total of at least {asked + counted} tokens. Please reduce the length of the input prompt "
                "or the number of requested output tokens."
            )
            raise unfit(message, "input_tokens", counted)
        return room if wanted.tokens is None else wanted.tokens


def _job(kind: Kind, request: ChoicesRequest, prompts: "Sequence[Prompt]", choices: int, shown: int) -> Job:
    options = request.stream_options
    include_usage = options is not None and bool(options.include_usage)
    return Job(
        kind,
        model=request.model,
        prompts=tuple(prompts),
        choices=choices,
        shown=shown,
        stream=bool(request.stream),
        include_usage=include_usage,
        continuous_usage=include_usage and options is not None and bool(options.continuous_usage_stats),
    )


def _beyond_bound(prompt: Prompt) -> Prompt:
    if not prompt.sampling.bounded:
        return prompt
    tokens = BEYOND_BOUND * prompt.sampling.max_tokens
    # Neither a stop string nor the end of the text ends it before the last token.
    return replace(prompt, sampling=Sampling(tokens, tokens, ignore_eos=True))
