"""Answer with the list of models."""

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extproc.local.model.events import Document


def model_list(models: tuple[str, ...], max_model_len: int, created: int) -> "Document":
    """Return the answer of ``GET /v1/models``; ``created`` is in seconds since the epoch."""
    return {"object": "list", "data": [model_card(name, max_model_len, created) for name in models]}


def model_card(name: str, max_model_len: int, created: int) -> "Document":
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
