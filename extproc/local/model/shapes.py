"""Build the documents of chats and completions, key for key in vLLM's order."""

import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from extproc.local.model import usage
from extproc.local.model.errors import ApiError, Dialect
from extproc.local.model.events import Document, Event

if TYPE_CHECKING:
    from extproc.local.model.generator import Step
    from extproc.local.model.plan import Job

VERSION = "1.0.0"
FINGERPRINT = f"sample-{VERSION}-tekken"


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """Hold a finished choice: its whole text and its finish reason."""

    text: str
    finish_reason: str
    stop_reason: str | None


@dataclass
class Shape(ABC):
    """Format the answer to one job for one endpoint.

    Attributes:
        strike_after: Events of a stream after which a fault of its middle strikes.
        has_done: Whether its streams end with ``[DONE]``.
        dialect: The format of its errors.
    """

    strike_after: ClassVar[int] = 3
    has_done: ClassVar[bool] = True
    dialect: ClassVar[Dialect] = Dialect.OPENAI

    job: "Job"
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def preamble(self) -> list[Event]:
        """Return the events of a stream before there is any token."""
        return []

    def opening(self) -> list[Event]:
        """Return the events at the first token."""
        return []

    @abstractmethod
    def token(self, index: int, step: "Step", produced: int) -> list[Event]:
        """Return the events of one more token; ``produced`` is the choice's tokens so far."""

    @abstractmethod
    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:
        """Return the events at the end; ``produced`` is all completion tokens."""

    @abstractmethod
    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document | str:
        """Return the answer in one piece; a string is plain text."""

    def failed(self, error: ApiError) -> Event:
        """Return the event of a stream that fails."""
        return Event(error.body(self.dialect))


class ChatShape(Shape):
    def opening(self) -> list[Event]:
        job = self.job
        return [self._opening(index) for index in range(len(job.prompts) * job.choices)]

    def token(self, index: int, step: "Step", produced: int) -> list[Event]:
        choice: Document = {
            "index": index,
            "delta": {"content": step.text},
            "logprobs": None,
            "finish_reason": step.finish_reason,
        }
        if step.finish_reason is not None:
            choice["stop_reason"] = step.stop_reason
        document = self._chunk([choice | {"token_ids": None}])
        if self.job.continuous_usage:
            document["usage"] = _chat_progress(self.job.prompt_of(index).tokens, produced)
        return [Event(_signed_if_last(document, step, self.job))]

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        if not self.job.include_usage:
            return []
        told = usage.streamed(self.job.prompt_tokens, produced, self.job.details, tells_writes=True)
        return [Event(self._chunk([]) | {"usage": told, "system_fingerprint": FINGERPRINT})]

    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion",
            "created": self.created,
            "model": self.job.model,
            "choices": [_chat_choice(index, choice) for index, choice in enumerate(ends)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.plain(self.job.prompt_tokens, produced, self.job.details, tells_writes=True),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _opening(self, index: int) -> Event:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        document = self._chunk([choice])
        if self.job.continuous_usage:
            document["usage"] = _chat_progress(self.job.prompt_of(index).tokens, 0)
        return Event(document | {"prompt_token_ids": None, "prompt_text": None})

    def _chunk(self, choices: list[Document]) -> Document:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
        }


class CompletionShape(Shape):
    def token(self, index: int, step: "Step", produced: int) -> list[Event]:
        choice = {
            "index": index,
            "text": step.text,
            "logprobs": None,
            "finish_reason": step.finish_reason,
            "stop_reason": step.stop_reason,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        document = self._document([choice])
        if self.job.continuous_usage:
            document["usage"] = usage.counts(self.job.prompt_of(index).tokens, produced)
        return [Event(_signed_if_last(document, step, self.job))]

    def closing(self, ends: list[ChoiceEnd], produced: int) -> list[Event]:  # noqa: ARG002  the shape of all
        if not self.job.include_usage:
            return []
        told = usage.streamed(self.job.prompt_tokens, produced, self.job.details, tells_writes=False)
        return [Event(self._document([]) | {"usage": told, "system_fingerprint": FINGERPRINT})]

    def whole(self, ends: list[ChoiceEnd], produced: int) -> Document:
        return self._document([_text_choice(index, choice) for index, choice in enumerate(ends)]) | {
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.plain(self.job.prompt_tokens, produced, self.job.details, tells_writes=False),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _document(self, choices: list[Document]) -> Document:
        return {
            "id": f"cmpl-{self.request_id}",
            "object": "text_completion",
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
        }


def new_request_id() -> str:
    return secrets.token_hex(8)


def _chat_progress(prompt_tokens: int, completion_tokens: int) -> Document:
    return usage.counts(prompt_tokens, completion_tokens) | {"completion_tokens_details": None}


def _signed_if_last(document: Document, step: "Step", job: "Job") -> Document:
    # If a usage chunk follows, that chunk is the last one and has the fingerprint.
    if step.finish_reason is not None and not job.include_usage:
        document["system_fingerprint"] = FINGERPRINT
    return document


def _chat_choice(index: int, choice: ChoiceEnd) -> Document:
    message = {
        "role": "assistant",
        "content": choice.text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": None,
        "routed_experts": None,
    }


def _text_choice(index: int, choice: ChoiceEnd) -> Document:
    return {
        "index": index,
        "text": choice.text,
        "logprobs": None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "routed_experts": None,
    }
