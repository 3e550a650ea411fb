"""The documents of an answer, key for key in the order in which vLLM writes them."""

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from extproc.local.model.generator import Step
    from extproc.local.model.plan import Job

VERSION = "1.0.0"
FINGERPRINT = f"sample-{VERSION}-tekken"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A finished choice: its whole text and why it ended there."""

    text: str
    finish_reason: str
    stop_reason: str | None


class Shape(Protocol):
    """How one endpoint words its answers."""

    def opening(self, index: int, prompt_tokens: int) -> Document | None:
        """The chunk that opens a choice, if the endpoint has one."""

    def chunk(self, index: int, step: "Step", usage: tuple[int, int] | None) -> Document:
        """A chunk for one token; ``usage`` is prompt and completion tokens so far, if to be told."""

    def usage(self, completion_tokens: int) -> Document:
        """The last chunk of a stream that includes its usage."""

    def whole(self, choices: list[ChoiceEnd], completion_tokens: int) -> Document:
        """The answer in one piece."""


@dataclass(frozen=True, slots=True)
class ChatShape:
    job: "Job"
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int, prompt_tokens: int) -> Document | None:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        document = self._chunk([choice])
        if self.job.continuous_usage:
            document["usage"] = _chat_progress(prompt_tokens, 0)
        return document | {"prompt_token_ids": None, "prompt_text": None}

    def chunk(self, index: int, step: "Step", usage: tuple[int, int] | None) -> Document:
        choice: Document = {
            "index": index,
            "delta": {"content": step.text},
            "logprobs": None,
            "finish_reason": step.finish_reason,
        }
        if step.finish_reason is not None:
            choice["stop_reason"] = step.stop_reason
        document = self._chunk([choice | {"token_ids": None}])
        if usage is not None:
            document["usage"] = _chat_progress(*usage)
        return _signed_if_last(document, step, self.job)

    def usage(self, completion_tokens: int) -> Document:
        counts = usage_counts(self.job.prompt_tokens, completion_tokens)
        counts["prompt_tokens_details"] = {"cached_tokens": 0, "created_cache_tokens": 0}
        return self._chunk([]) | {"usage": counts, "system_fingerprint": FINGERPRINT}

    def whole(self, choices: list[ChoiceEnd], completion_tokens: int) -> Document:
        counts = usage_counts(self.job.prompt_tokens, completion_tokens)
        details = {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None}
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion",
            "created": self.created,
            "model": self.job.model,
            "choices": [_chat_choice(index, choice) for index, choice in enumerate(choices)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": counts | {"prompt_tokens_details": details, "completion_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _chunk(self, choices: list[Document]) -> Document:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
        }


@dataclass(frozen=True, slots=True)
class CompletionShape:
    job: "Job"
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int, prompt_tokens: int) -> Document | None:  # noqa: ARG002  the shape of all
        return None

    def chunk(self, index: int, step: "Step", usage: tuple[int, int] | None) -> Document:
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
        if usage is not None:
            document["usage"] = usage_counts(*usage)
        return _signed_if_last(document, step, self.job)

    def usage(self, completion_tokens: int) -> Document:
        counts = usage_counts(self.job.prompt_tokens, completion_tokens)
        counts["prompt_tokens_details"] = {"cached_tokens": 0}
        return self._document([]) | {"usage": counts, "system_fingerprint": FINGERPRINT}

    def whole(self, choices: list[ChoiceEnd], completion_tokens: int) -> Document:
        counts = usage_counts(self.job.prompt_tokens, completion_tokens)
        details = {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None}
        return self._document([_text_choice(index, choice) for index, choice in enumerate(choices)]) | {
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": counts | {"prompt_tokens_details": details, "completion_tokens_details": None},
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


def usage_counts(prompt_tokens: int, completion_tokens: int) -> Document:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def new_request_id() -> str:
    return secrets.token_hex(8)


def model_list(models: tuple[str, ...], max_model_len: int, created: int) -> Document:
    """The answer of ``GET /v1/models``; ``created`` is in seconds since the epoch."""
    return {"object": "list", "data": [_model_card(name, max_model_len, created) for name in models]}


def _model_card(name: str, max_model_len: int, created: int) -> Document:
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": name,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def _chat_progress(prompt_tokens: int, completion_tokens: int) -> Document:
    return usage_counts(prompt_tokens, completion_tokens) | {"completion_tokens_details": None}


def _signed_if_last(document: Document, step: "Step", job: "Job") -> Document:
    # With a usage chunk to follow, that one is the last and carries the fingerprint.
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
