"""From a parsed request to a job: is the model served, do prompt and answer fit, what will be counted."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from extproc.local.model.api import ChatRequest, CompletionRequest, GenerationRequest, countable, stop_strings
from extproc.local.model.errors import ApiError, malformed, unfit
from extproc.local.model.generator import Prompt, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.local.model.tokenizer import SampleTokenizer

# What the completions endpoint generates when nobody says how much; the chat endpoint has no such bound.
_DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Job:
    """A request that will be answered.

    Attributes:
        model: The name under which it was asked for.
        prompts: One for a chat; one or more for a completion.
        choices: Choices for each prompt, at least 1.
        stream: Whether the answer is a stream of events.
        include_usage: Whether a stream ends with its usage.
        continuous_usage: Whether each of its chunks carries the usage so far.
    """

    model: str
    prompts: tuple[Prompt, ...]
    choices: int
    stream: bool
    include_usage: bool
    continuous_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class Planner:
    """Knows what is served.

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
        self._check_model(request)
        if not request.messages:
            raise malformed("messages must have at least one message", "messages")
        messages = [countable(message) for message in request.messages]
        identity = _identity(request, [(message.role, message.text) for message in messages])
        question = next((turn.text for turn in reversed(messages) if turn.role == "user"), "")
        wanted = request.max_tokens
        if request.max_completion_tokens is not None:
            wanted = request.max_completion_tokens
        tokens = self.tokenizer.count_chat(messages)
        return _job(request, [Prompt(identity, question, tokens, self._sampling(request, wanted, tokens))])

    def completion(self, request: CompletionRequest) -> Job:
        """Plan a completion of one or more prompts.

        Raises:
            ApiError: 404 for a model not served, 400 for what does not fit.
        """
        self._check_model(request)
        texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if not texts or "" in texts:
            raise malformed("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        wanted = request.max_tokens
        if wanted is None and not request.ignore_eos:
            wanted = _DEFAULT_COMPLETION_TOKENS
        return _job(request, [self._prompt(request, text, wanted) for text in texts])

    def _prompt(self, request: CompletionRequest, text: str, wanted: int | None) -> Prompt:
        tokens = self.tokenizer.count_text(text)
        return Prompt(_identity(request, text), text, tokens, self._sampling(request, wanted, tokens))

    def _check_model(self, request: GenerationRequest) -> None:
        if request.model not in self.models:
            aliases = ", ".join(self.models)
            raise ApiError(
                f"The model `{request.model}` does not exist. Valid aliases: {aliases}.",
                status=HTTPStatus.NOT_FOUND,
                kind="NotFoundError",
                param="model",
            )

    def _sampling(self, request: GenerationRequest, wanted: int | None, prompt_tokens: int) -> Sampling:
        limit = self._max_tokens(wanted, prompt_tokens)
        minimum = request.min_tokens or 0
        if minimum > limit:
            message = f"min_tokens must be less than or equal to max_tokens={limit}, got {minimum}."
            raise ApiError(message, param="min_tokens")
        return Sampling(limit, minimum, bool(request.ignore_eos), stop_strings(request))

    def _max_tokens(self, wanted: int | None, prompt_tokens: int) -> int:
        room = self.max_model_len - prompt_tokens
        asked = 1 if wanted is None else wanted
        if asked < 1:
            raise unfit(f"max_tokens must be at least 1, got {asked}.", "max_tokens", asked)
        if asked > self.max_model_len:
            message = (
                f"max_tokens={asked} cannot be greater than max_model_len={self.max_model_len}. "
                "Please request fewer output tokens."
            )
            raise unfit(message, "max_tokens", asked)
        if asked > room:
            # vLLM stops counting at the first prompt token that no longer fits; so does its message.
            counted = self.max_model_len - asked + 1
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{asked} output tokens and your prompt contains at least {counted} input tokens, for a "
                f"total of at least {asked + counted} tokens. Please reduce the length of the input prompt "
                "or the number of requested output tokens."
            )
            raise unfit(message, "input_tokens", counted)
        return room if wanted is None else wanted


def _identity(request: GenerationRequest, content: object) -> str:
    return msgspec.json.encode([request.model, request.seed, content]).decode()


def _job(request: GenerationRequest, prompts: "Sequence[Prompt]") -> Job:
    options = request.stream_options
    include_usage = options is not None and bool(options.include_usage)
    return Job(
        model=request.model,
        prompts=tuple(prompts),
        choices=request.n or 1,
        stream=bool(request.stream),
        include_usage=include_usage,
        continuous_usage=include_usage and options is not None and bool(options.continuous_usage_stats),
    )
