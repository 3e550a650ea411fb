"""Name the parameters and headers that steer a model server, and are no business of a caller.

They come from vLLM, SGLang, TensorRT-LLM, llama.cpp, Dynamo and llm-d. Who sets them comes before other callers,
chooses a replica, a cache or an adapter, makes a server connect to a host, or runs code.
"""

from typing import Final

from extproc.core.request.bodies.facts import Malformed

STEERING_FIELDS: Final = frozenset(
    {
        "priority",  # vLLM, SGLang: before other requests
        *("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"),  # which replica of a model
        # Prefill and decode on different hosts: the server connects to a host of the caller's choice.
        *("kv_transfer_params", "ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
        *("disaggregated_params", "migration_request"),
        *("custom_logit_processor", "custom_params", "vllm_xargs"),  # code and its parameters
        *("lora_path", "lora_request", "lora"),  # another model than the one that is metered
        *("rid", "extra_key", "ngram_corpus_id", "custom_labels"),  # ids and caches that all callers share
        *("id_slot", "slot_id"),  # llama.cpp: the cache of another caller
        "nvext",  # Dynamo: worker ids, annotations
    }
)
STEERING_HEADERS: Final = frozenset(
    {
        *("x-data-parallel-rank", "x-dp-rank", "x-prefill-dp-rank"),
        *("x-prefiller-host-port", "x-encoder-hosts-ports", "x-data-parallel-host-port"),
        *("x-gateway-inference-objective", "x-gateway-inference-fairness-id", "x-gateway-priority"),
        *("x-llm-d-inference-objective", "x-llm-d-inference-fairness-id"),
        *("x-dynamo-routing-mode", "x-epp-inject-nvext-token-data"),
        *("x-worker-instance-id", "x-prefill-instance-id"),
        *("x-smg-target-worker", "x-smg-routing-key"),
    }
)
STEERING: Final = STEERING_FIELDS | STEERING_HEADERS


def steers(name: str) -> Malformed:
    """Answer a request that uses one of these parameters or headers."""
    message = f"'{name}' steers the model server; callers may not set it here. Leave it out."
    return Malformed(message, name, "parameter_not_allowed")
