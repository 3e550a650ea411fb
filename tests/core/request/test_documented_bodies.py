"""The least that each server documents for its endpoint is admitted: a body, and the tokens that it asks for."""

import json

import pytest

from extproc.core.request.body import UNNAMED, RequestFacts, read_request
from extproc.core.request.endpoints import Endpoint, Target, classify

from .test_multipart import TYPE, form_of, part

HI = [{"role": "user", "content": "hi"}]
TEXT = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # OpenAI, vLLM, SGLang
        ("/v1/chat/completions", {"model": "m", "messages": HI}),
        ("/v1/chat/completions", {"messages": HI}),  # vLLM, llama.cpp: the model that is served
        ("/v1/chat/completions/batch", {"model": "m", "messages": [HI, HI]}),
        ("/v1/completions", {"model": "m", "prompt": "hi"}),
        ("/v1/completions", {"model": "m"}),  # OpenAI: from the beginning of a text
        ("/v1/completions", {"model": "m", "prompt": [1, 2]}),
        ("/v1/completions", {"model": "m", "prompt_embeds": "QUJD"}),
        ("/v1/responses", {"model": "m", "input": "hi"}),
        ("/v1/responses", {"prompt": {"id": "pmpt_1", "variables": {"word": "cat"}}}),
        ("/v1/responses/compact", {"model": "m", "previous_response_id": "resp_1"}),
        ("/v1/embeddings", {"model": "m", "input": "hi"}),
        ("/v1/embeddings", {"model": "m", "messages": HI}),
        ("/v1/embeddings", {"model": "m", "input": [[1, 2], [3]]}),
        ("/v1/audio/speech", {"model": "m", "input": "hi", "voice": "v"}),
        ("/v1/audio/speech", {"input": "hi"}),
        ("/v1/images/generations", {"prompt": "a weir"}),
        ("/v1/images/edits", {"prompt": "blue", "images": [{"image_url": "https://example.com/a.png"}]}),
        ("/pooling", {"model": "m", "input": "hi"}),
        ("/classify", {"model": "m", "input": "hi"}),
        ("/classify", {"model": "m", "text": "hi"}),
        ("/encode", {"model": "m", "text": "hi"}),
        ("/encode", {"input_ids": [1, 2]}),
        ("/score", {"model": "m", "text_1": "a", "text_2": "b"}),
        ("/v1/score", {"model": "m", "queries": "a", "documents": ["b"]}),
        ("/v1/score", {"model": "m", "data_1": "a", "data_2": ["b"]}),
        ("/v1/score", {"query": [1, 2], "items": [[3], [4]], "label_token_ids": [5], "model": "m"}),
        ("/generative_scoring", {"model": "m", "query": "a", "items": ["b"], "label_token_ids": [5]}),
        ("/v1/rerank", {"model": "m", "query": "a", "documents": ["b"]}),
        ("/invocations", {"messages": HI}),
        ("/invocations", {"prompt": "hi"}),
        ("/invocations", {"inputs": "hi"}),
        ("/invocations", {"inputs": "hi", "parameters": {"max_new_tokens": 5}}),
        ("/invocations", {"input": "hi"}),
        # Azure OpenAI
        ("/openai/deployments/gpt/chat/completions?api-version=1", {"messages": HI}),
        ("/openai/deployments/gpt/chat/completions?api-version=1", {"model": None, "messages": HI}),
        ("/openai/deployments/gpt/embeddings?api-version=1", {"input": "hi"}),
        ("/openai/deployments/dalle/images/generations?api-version=1", {"prompt": "a weir"}),
        ("/openai/v1/responses", {"model": "m", "input": "hi"}),
        # Anthropic
        ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": HI}),
        ("/v1/messages", {"model": "m", "max_tokens": 0, "messages": HI}),
        # SageMaker, Databricks, Portkey
        ("/endpoints/e/invocations", {"inputs": "hi"}),
        ("/serving-endpoints/e/invocations", {"messages": HI}),
        ("/v1/prompts/pp-x/completions", {"variables": {"city": "x"}}),
        # llama.cpp
        ("/completion", {"prompt": "hi"}),
        ("/completion", {"prompt": "hi", "n_predict": -1}),
        ("/completion", {"prompt": [12, "hi", 34]}),
        ("/completion", {"prompt": {"prompt_string": "hi"}}),
        ("/completions", {"prompt": ["hi", [1, 2], {"prompt_string": "hi"}]}),
        ("/completion", {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["QUJD"]}}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
        ("/embedding", {"content": "hi"}),
        ("/reranking", {"query": "a", "documents": ["b"]}),
        # Text Embeddings Inference
        ("/embed", {"inputs": "hi"}),
        ("/embed", {"inputs": ["hi"]}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        # Ollama
        ("/api/embed", {"model": "m", "input": "hi"}),
        ("/api/embeddings", {"model": "m", "prompt": "hi"}),
        # Cohere
        ("/v1/embed", {"model": "m", "texts": ["hi"], "input_type": "classification"}),
        ("/v2/embed", {"model": "m", "inputs": [{"content": [TEXT]}], "input_type": "classification"}),
        ("/v2/embed", {"model": "m", "images": ["data:image/png;base64,QUJD"], "input_type": "image"}),
        ("/v2/rerank", {"model": "m", "query": "a", "documents": ["b", {"text": "c"}]}),
        # Jina
        ("/v1/embeddings", {"model": "m", "input": [{"text": "a"}, {"image": "https://example.com/a.png"}]}),
        ("/v1/rerank", {"model": "m", "query": {"image": "QUJD"}, "documents": [{"image": "QUJD"}]}),
        # KServe
        ("/v1/models/m:predict", {"instances": [1]}),
        ("/v1/models/m:explain", {"instances": [1]}),
        ("/v2/models/m/infer", {"inputs": []}),
        ("/v2/models/m/generate", {"text_input": "hi"}),
    ],
)
def test_the_least_that_a_server_documents_is_admitted(path, body):
    target = classify("POST", path)
    assert isinstance(target, Target)
    found = read_request(target, json.dumps(body).encode(), "application/json")
    assert isinstance(found, RequestFacts), found
    assert found.model == (target.model or body.get("model") or UNNAMED)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/openai/deployments/whisper/audio/transcriptions",
    ],
)
def test_a_form_with_a_file_alone_is_admitted(path):
    target = classify("POST", path)
    assert isinstance(target, Target)
    found = read_request(target, form_of(part("file", b"RIFF", '; filename="a.wav"')), TYPE)
    assert isinstance(found, RequestFacts), found
    assert (found.model, found.media_parts) == (target.model or UNNAMED, 1)


def test_every_kind_that_has_a_body_is_tried():
    tried = {Endpoint.QUOTA, Endpoint.ROUTE}
    for mark in test_the_least_that_a_server_documents_is_admitted.pytestmark:
        tried |= {classify("POST", path).endpoint for path, _ in mark.args[1]}
    for mark in test_a_form_with_a_file_alone_is_admitted.pytestmark:
        tried |= {classify("POST", path).endpoint for path in mark.args[1]}
    assert tried == set(Endpoint)
