"""Answers in the shapes that servers write them, each with the usage that is in it.

The values are made up; the names, and what is null, absent or zero where, are those of the server named.
"""

import json
from dataclasses import dataclass, field

from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from tests.core.samples import DONE, event


def text_chunk(text, finish=None, index=0, **fields):
    """A chunk of a stream of chat completions, as OpenAI writes it."""
    choice = {
        "index": index,
        "delta": {"content": text} if text else {},
        "logprobs": None,
        "finish_reason": finish,
    }
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1795340803, "model": "tiny"}
    return event({**head, "choices": [choice], **fields})


def no_choices(**fields):
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [], **fields})


def named(kind, **fields):
    """An event of Anthropic's or of the Responses API: its type stands in both places."""
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


@dataclass(frozen=True)
class Answer:
    """A plain answer and its usage, or why there is none. Of a total that stands alone both parts are 0."""

    body: bytes
    usage: Usage | Absence


@dataclass(frozen=True)
class Stream:
    """A stream and its usage; `hidden` are the places of what is taken out where usage is hidden.

    `left` is what stays of an event that carries more than usage, by its place.
    """

    events: tuple[bytes, ...]
    usage: Usage
    hidden: frozenset[int] = frozenset()
    endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS
    left: dict[int, bytes] = field(default_factory=dict)

    @property
    def body(self):
        return b"".join(self.events)

    @property
    def without_usage(self):
        kept = [self.left.get(n, b"") if n in self.hidden else event for n, event in enumerate(self.events)]
        return b"".join(kept)


def answer(expected, **fields):
    return Answer(json.dumps(fields, ensure_ascii=False).encode(), expected)


def counts(prompt=10, completion=16, **fields):
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **fields,
    }


def one_pass(kind, prompt, output, written, cached):
    """One of the passes of a model that Anthropic lists."""
    return {
        "type": kind,
        "input_tokens": prompt,
        "output_tokens": output,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
    }


PLAIN = Usage(10, 16, total=26)
SAID = [{"index": 0, "message": {"role": "assistant", "content": "Grüße"}, "finish_reason": "stop"}]
EMBEDDING = [{"object": "embedding", "index": 0, "embedding": [0.25, -1e-3]}]
BLOCKS = [{"type": "text", "text": "Grüße"}]
OUTPUT = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Grüße"}]}]

ANSWERS = {
    # ---------------------------------------------------------------- chat completions
    "openai chat": answer(
        Usage(10, 16, cached=4, reasoning=12, total=26, audio_input=2, audio_output=1),
        object="chat.completion",
        choices=SAID,
        usage=counts(
            prompt_tokens_details={"cached_tokens": 4, "audio_tokens": 2},
            completion_tokens_details={
                "reasoning_tokens": 12,
                "audio_tokens": 1,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        ),
        service_tier="default",
    ),
    "openai chat with cache writes": answer(
        Usage(2600, 16, cached=2000, cache_written=400, total=2616),
        choices=SAID,
        usage=counts(2600, prompt_tokens_details={"cached_tokens": 2000, "cache_write_tokens": 400}),
    ),
    "openai chat that spoke": answer(
        Usage(10, 16, total=26, audio_output=12),
        choices=[{"message": {"content": None, "audio": {"id": "a", "data": "UklGRg==", "transcript": "Hi"}}}],
        usage=counts(completion_tokens_details={"audio_tokens": 12}),
    ),
    "vllm": answer(
        Usage(10, 16, cached=8, cache_written=2, total=26),
        choices=SAID,
        usage=counts(
            prompt_tokens_details={"cached_tokens": 8, "created_cache_tokens": 2, "multimodal_tokens": None},
            completion_tokens_details=None,
        ),
        prompt_logprobs=None,
        kv_transfer_params=None,
    ),
    "vllm completions": answer(
        PLAIN, object="text_completion", choices=[{"text": "a"}, {"text": "b"}], usage=counts()
    ),
    "sglang": answer(
        Usage(10, 16, reasoning=9, total=26),
        choices=SAID,
        usage=counts(prompt_tokens_details=None, completion_tokens_details=None, reasoning_tokens=9),
        metadata={"weight_version": "default"},
    ),
    "llama.cpp": answer(
        Usage(10, 16, cached=3, total=26),
        choices=SAID,
        usage=counts(prompt_tokens_details={"cached_tokens": 3}),
        timings={"cache_n": 3, "prompt_n": 7, "prompt_ms": 51.2, "predicted_n": 16, "predicted_per_second": 80.5},
    ),
    "ollama": answer(PLAIN, choices=SAID, usage=counts(), system_fingerprint="fp_ollama"),
    "tgi": answer(PLAIN, choices=SAID, usage=counts(), system_fingerprint="3.3.4-sha"),
    "litellm before anthropic": answer(
        Usage(110, 16, cached=80, cache_written=20, total=126),
        choices=SAID,
        usage=counts(
            110,
            completion_tokens_details={"reasoning_tokens": 0, "audio_tokens": None, "text_tokens": 16},
            prompt_tokens_details={"audio_tokens": None, "cached_tokens": 80, "cache_creation_tokens": 20},
            cache_creation_input_tokens=20,
            cache_read_input_tokens=80,
        ),
    ),
    "deepseek": answer(
        Usage(10, 16, cached=8, reasoning=6, total=26),
        choices=SAID,
        usage=counts(
            prompt_cache_hit_tokens=8,
            prompt_cache_miss_tokens=2,
            completion_tokens_details={"reasoning_tokens": 6},
        ),
    ),
    "groq": answer(
        PLAIN,
        choices=SAID,
        usage=counts(queue_time=0.0368, prompt_time=0.0007, completion_time=0.4607, total_time=0.4614),
        usage_breakdown=None,
        x_groq={"id": "req_1", "seed": 7},
    ),
    "mistral": answer(
        PLAIN,
        choices=SAID,
        usage=counts(prompt_audio_seconds=None, num_cached_tokens=0, prompt_tokens_details={"cached_tokens": 0}),
    ),
    "mistral, with its own names for the cache": answer(
        Usage(10, 16, cached=8, total=26),
        choices=SAID,
        usage=counts(num_cached_tokens=8),
    ),
    "mistral, with details of another name": answer(
        Usage(10, 16, cached=8, total=26),
        choices=SAID,
        usage=counts(prompt_token_details={"cached_tokens": 8}),
    ),
    "a php gateway, whose empty objects are lists": answer(
        PLAIN, choices=SAID, usage=counts(prompt_tokens_details=[], completion_tokens_details=[])
    ),
    "details per modality": answer(
        PLAIN,
        choices=SAID,
        usage=counts(prompt_tokens_details=[{"modality": "TEXT", "token_count": 10}], reasoning_tokens="0"),
    ),
    "a server that knows of no cache": answer(
        Usage(10, 16, reasoning=3, total=26),
        choices=SAID,
        usage=counts(
            prompt_tokens_details={"cached_tokens": -1}, completion_tokens_details={"reasoning_tokens": 3}
        ),
    ),
    "gemini, thinking in the total only": answer(
        Usage(10, 16, total=226), choices=SAID, usage=counts() | {"total_tokens": 226}
    ),
    "xai, reasoning beside the completion": answer(
        Usage(10, 333, reasoning=317, total=343),
        choices=SAID,
        usage=counts(completion_tokens_details={"reasoning_tokens": 317}, num_sources_used=0)
        | {"total_tokens": 343},
    ),
    "openrouter": answer(
        Usage(10, 16, reasoning=4, total=26),
        provider="DeepInfra",
        choices=SAID,
        usage=counts(
            cost=0.00014,
            is_byok=False,
            prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
            cost_details={"upstream_inference_cost": None, "upstream_inference_prompt_cost": 0.1},
            completion_tokens_details={"reasoning_tokens": 4, "image_tokens": 0},
        ),
    ),
    "azure": answer(
        PLAIN,
        choices=[{**SAID[0], "content_filter_results": {"hate": {"filtered": False}}}],
        prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}],
        usage=counts(),
    ),
    "fireworks": answer(
        Usage(10, 16, cached=2, total=26),
        choices=SAID,
        usage=counts(prompt_tokens_details={"cached_tokens": 2}),
        perf_metrics=None,
    ),
    "together": answer(Usage(10, 16, cached=5, total=26), prompt=[], choices=SAID, usage=counts(cached_tokens=5)),
    "sambanova": answer(
        PLAIN, choices=SAID, usage=counts(time_to_first_token=0.04, total_latency=0.2, is_last_response=True)
    ),
    "perplexity": answer(
        Usage(10, 16, reasoning=16, total=26),
        choices=SAID,
        usage=counts(
            citation_tokens=2000, num_search_queries=18, reasoning_tokens=7000, search_context_size="low"
        ),
    ),
    "cloudflare's own": answer(PLAIN, response="Grüße", tool_calls=[], usage=counts()),
    "a gateway that fills both names": answer(
        PLAIN, choices=SAID, usage=counts(input_tokens=0, output_tokens=0, input_tokens_details=None)
    ),
    # ---------------------------------------------------------------- Responses
    "openai responses": answer(
        Usage(10, 16, cached=4, reasoning=12, total=26, cache_written=1),
        object="response",
        status="completed",
        error=None,
        output=OUTPUT,
        text={"format": {"type": "text"}},
        usage={
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
            "output_tokens": 16,
            "output_tokens_details": {"reasoning_tokens": 12},
            "total_tokens": 26,
        },
    ),
    "vllm responses": answer(
        PLAIN,
        object="response",
        output=OUTPUT,
        usage={
            "input_tokens": 10,
            "input_tokens_details": {
                "cached_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": 16,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
            },
            "total_tokens": 26,
        },
    ),
    "responses with anthropic's names beside the details": answer(
        Usage(10, 16, cached=4, total=26),
        object="response",
        output=OUTPUT,
        usage={
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 16,
            "cache_read_input_tokens": 4,
        },
    ),
    # ---------------------------------------------------------------- messages
    "anthropic": answer(
        Usage(110, 16, cached=80, cache_written=20, total=126),
        type="message",
        role="assistant",
        content=BLOCKS,
        stop_reason="end_turn",
        usage={
            "input_tokens": 10,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 80,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 16,
            "service_tier": "standard",
            "server_tool_use": {"web_search_requests": 0},
        },
    ),
    "vllm messages without cache details": answer(
        PLAIN, type="message", content=BLOCKS, usage={"input_tokens": 10, "output_tokens": 16}
    ),
    "sglang messages": answer(
        Usage(90, 16, cached=80, total=106),
        type="message",
        content=BLOCKS,
        usage={"input_tokens": 10, "output_tokens": 16, "cache_read_input_tokens": 80},
    ),
    "messages of a server whose total has no room for the cache": answer(
        Usage(90, 16, cached=80, total=106),
        type="message",
        content=BLOCKS,
        usage={"input_tokens": 90, "output_tokens": 16, "cache_read_input_tokens": 80, "total_tokens": 106},
    ),
    "messages of a server whose total has room for the cache": answer(
        Usage(90, 16, cached=80, total=106),
        type="message",
        content=BLOCKS,
        usage={"input_tokens": 10, "output_tokens": 16, "cache_read_input_tokens": 80, "total_tokens": 106},
    ),
    "anthropic, with a context that was compacted": answer(
        Usage(203_000, 4500, total=207_500),
        type="message",
        content=[{"type": "compaction", "content": "Summary"}, *BLOCKS],
        usage={
            "input_tokens": 23_000,
            "output_tokens": 1000,
            "iterations": [
                {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
                {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
            ],
        },
    ),
    "anthropic, with advice, and a cache in each pass": answer(
        Usage(785_000, 90, cached=540_000, cache_written=8000, total=785_090),
        type="message",
        content=BLOCKS,
        usage={
            "input_tokens": 4,
            "cache_creation_input_tokens": 8000,
            "cache_read_input_tokens": 540_000,
            "output_tokens": 60,
            "iterations": [
                one_pass("message", 2, 30, 3500, 270_000),
                one_pass("advisor_message", 236_996, 30, 0, 0) | {"model": "another"},
                one_pass("message", 2, 30, 4500, 270_000),
            ],
        },
    ),
    # ---------------------------------------------------------------- servers' own APIs
    "llama.cpp's own": answer(
        Usage(10, 16, cached=9, total=26),
        index=0,
        content="Grüße",
        tokens=[],
        id_slot=0,
        stop=True,
        model="tiny",
        tokens_predicted=16,
        tokens_evaluated=10,
        generation_settings={"n_predict": 16, "stream": False},
        prompt="<s>Hello",
        stop_type="limit",
        truncated=False,
        tokens_cached=25,
        timings={"cache_n": 9, "prompt_n": 1, "prompt_ms": 54.9, "predicted_n": 16, "predicted_ms": 2310.6},
    ),
    "llama.cpp's own, before it told of the cache": answer(
        PLAIN,
        content="Grüße",
        slot_id=0,
        stop=True,
        tokens_predicted=16,
        tokens_evaluated=10,
        tokens_cached=26,
        timings={"prompt_n": 10, "predicted_n": 16},
    ),
    "llama.cpp's own, for several prompts": Answer(
        json.dumps(
            [
                {"index": 0, "content": "a", "stop": True, "tokens_predicted": 16, "tokens_evaluated": 10},
                {"index": 1, "content": "b", "stop": True, "tokens_predicted": 4, "tokens_evaluated": 3},
            ]
        ).encode(),
        Usage(13, 20, total=33),
    ),
    "ollama's own embeddings": answer(
        Usage(10, 0, total=10),
        model="tiny",
        embeddings=[[0.25, -1e-3]],
        total_duration=14_143_917,
        load_duration=1_019_500,
        prompt_eval_count=10,
    ),
    "ollama's own": answer(
        Usage(10, 16, cached=8, total=26),
        model="tiny",
        created_at="2026-03-04T11:30:15.414671Z",
        response="Grüße",
        done=True,
        done_reason="stop",
        context=[1, 2],
        total_duration=174_560_334,
        prompt_eval_count=10,
        prompt_eval_cached_count=8,
        prompt_eval_duration=13_074_791,
        eval_count=16,
    ),
    "ollama's own chat": answer(
        PLAIN,
        message={"role": "assistant", "content": "Grüße", "thinking": "hm"},
        done=True,
        prompt_eval_count=10,
        eval_count=16,
    ),
    "sglang's own": answer(
        Usage(10, 0, total=10),
        embedding=[0.25],
        meta_info={"id": "1", "finish_reason": {"type": "length", "length": 0}, "prompt_tokens": 10},
    ),
    "sglang's own, for several texts": Answer(
        json.dumps([{"embedding": [0.25], "meta_info": {"id": "1", "prompt_tokens": n}} for n in (4, 6)]).encode(),
        Usage(10, 0, total=10),
    ),
    # ---------------------------------------------------------------- embeddings, rerank, score
    "openai embeddings": answer(
        Usage(10, 0, total=10), object="list", data=EMBEDDING, usage={"prompt_tokens": 10, "total_tokens": 10}
    ),
    "vllm score": answer(
        Usage(10, 0, total=10),
        object="list",
        data=[{"index": 0, "object": "score", "score": 0.99}],
        usage=counts(10, 0, prompt_tokens_details=None),
    ),
    "vllm rerank": answer(
        Usage(0, 0, total=56),
        results=[{"index": 0, "document": {"text": "a"}, "relevance_score": 0.9}],
        usage={"total_tokens": 56},
    ),
    "jina rerank": answer(
        Usage(56, 0, total=56), object="list", results=[], usage={"total_tokens": 56, "prompt_tokens": 56}
    ),
    "cohere rerank, in searches": answer(
        Absence.OTHER_UNIT,
        results=[{"index": 3, "relevance_score": 0.9}],
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    ),
    "cohere rerank, in tokens": answer(
        Usage(56, 0, total=56),
        results=[],
        meta={
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": 56, "output_tokens": 0},
        },
    ),
    "litellm rerank": answer(
        Usage(0, 0, total=56), results=[], meta={"billed_units": {"total_tokens": 56}, "tokens": None}
    ),
    "cohere embeddings, in pictures": answer(
        Absence.OTHER_UNIT,
        embeddings={"float": [[0.25]]},
        meta={"api_version": {"version": "2"}, "billed_units": {"images": 1}},
        response_type="embeddings_by_type",
    ),
    "cohere embeddings, in tokens of text and of pictures": answer(
        Usage(514, 0, total=514),
        embeddings={"float": [[0.25]]},
        meta={"billed_units": {"input_tokens": 2, "image_tokens": 512}},
    ),
    "cohere's own usage": answer(
        Usage(71, 16, total=87),
        message={"role": "assistant", "content": BLOCKS},
        usage={
            "billed_units": {"input_tokens": 5, "output_tokens": 16},
            "tokens": {"input_tokens": 71, "output_tokens": 16},
        },
    ),
    "meta that is none of usage": answer(Absence.MISSING, data=EMBEDDING, meta={"page": 1}),
    "meta that is no object": answer(Absence.MISSING, data=EMBEDDING, meta="v1"),
    # ---------------------------------------------------------------- audio
    "openai transcription": answer(
        Usage(14, 45, total=59, audio_input=14),
        text="Grüße",
        usage={
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45,
            "total_tokens": 59,
        },
    ),
    "whisper": answer(Absence.OTHER_UNIT, text="Grüße", usage={"type": "duration", "seconds": 3}),
    "whisper, verbose": answer(
        Absence.OTHER_UNIT,
        task="transcribe",
        duration=8.47,
        text="Grüße",
        usage={"type": "duration", "seconds": 9},
    ),
    "groq transcription": answer(Absence.MISSING, text="Grüße", x_groq={"id": "req_1"}),
    "mistral transcription": answer(
        Usage(378, 41, total=419, audio_input=375),
        text="Grüße",
        usage={
            "prompt_audio_seconds": 12,
            "prompt_tokens": 3,
            "completion_tokens": 41,
            "total_tokens": 419,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 375},
        },
    ),
    "mistral transcription, total only": answer(
        Usage(0, 0, total=89),
        segments=[],
        usage={"prompt_audio_seconds": 32, "total_tokens": 89, "request_count": 1},
    ),
    # ---------------------------------------------------------------- images
    "gpt-image": answer(
        Usage(50, 4160, total=4210),
        created=1713833628,
        data=[{"b64_json": "aGk="}],
        usage={
            "total_tokens": 4210,
            "input_tokens": 50,
            "output_tokens": 4160,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens_details": {"image_tokens": 4160, "text_tokens": 0},
        },
    ),
    "an image without usage": answer(Absence.MISSING, created=1713833628, data=[{"url": "https://x"}]),
}

# ---------------------------------------------------------------- streams


def groq_end():
    usage = counts(queue_time=0.06, prompt_time=0.0002, completion_time=0.79, total_time=0.79)
    return text_chunk("", "stop", x_groq={"id": "req_1", "usage": usage})


def llama(text, predicted, **fields):
    """An event of llama.cpp's own stream."""
    counted = {"tokens_predicted": predicted, "tokens_evaluated": 10}
    return {"index": 0, "content": text, "tokens": [], "stop": False, "id_slot": 0} | counted | fields


def messages(start, delta, *texts, content=("text", "text_delta")):
    """A stream of Anthropic's, with what its first and its last but one event say of usage."""
    opening = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "tiny",
        "usage": start,
    }
    field, kind = content
    ending = {"delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    return (
        named("message_start", message=opening),
        named("content_block_start", index=0, content_block={"type": field, field: ""}),
        named("ping"),
        *(named("content_block_delta", index=0, delta={"type": kind, field: text}) for text in texts),
        named("content_block_stop", index=0),
        named("message_delta", **ending, **({} if delta is None else {"usage": delta})),
        named("message_stop"),
    )


def responded(kind, status, usage, **fields):
    return named(kind, sequence_number=1, response={"id": "resp_1", "status": status, "usage": usage, **fields})


def responses(last, *deltas):
    return (
        responded("response.created", "in_progress", None, error=None),
        responded("response.in_progress", "in_progress", None, error=None),
        named("response.output_item.added", item={"type": "message", "content": []}, output_index=0),
        *deltas,
        named("response.output_text.done", text="Grüße, 世界"),
        named("response.output_item.done", item={"type": "message", "content": OUTPUT[0]["content"]}),
        last,
    )


RESPONSES_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 16,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 26,
}
RESPONDED = Usage(10, 16, cached=4, reasoning=12, total=26)
MESSAGES, RESPONSES = Endpoint.MESSAGES, Endpoint.RESPONSES

STREAMS = {
    "azure": Stream(
        (
            no_choices(prompt_filter_results=[{"prompt_index": 0}]),
            text_chunk("Grüße", usage=None),
            text_chunk("", "stop", usage=None),
            no_choices(usage=counts()),
            DONE,
        ),
        PLAIN,
        frozenset({3}),
    ),
    "groq": Stream((text_chunk("Grüße", x_groq={"id": "req_1"}), groq_end(), DONE), PLAIN),
    "groq that was asked for usage": Stream(
        (text_chunk("Grüße", x_groq={"id": "req_1"}), groq_end(), no_choices(usage=counts()), DONE),
        PLAIN,
        frozenset({2}),
    ),
    "mistral, together, fireworks: usage in the last chunk": Stream(
        (text_chunk("Grüße", usage=None), text_chunk("", "stop", usage=counts()), DONE), PLAIN
    ),
    "moonshot: usage in the last choice": Stream(
        (
            text_chunk("Grüße"),
            event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": counts()}]}),
            DONE,
        ),
        PLAIN,
    ),
    "moonshot: usage in one choice of two": Stream(
        (event({"choices": [{"index": 0, "delta": {}, "usage": counts()}, {"index": 1, "delta": {}}]}), DONE),
        PLAIN,
    ),
    "gemini: usage as it grows, and a total that knows more": Stream(
        (
            text_chunk("Grü", usage=counts(10, 1) | {"total_tokens": 100}),
            text_chunk("ße", "stop", usage=counts(10, 16) | {"total_tokens": 226}),
            DONE,
        ),
        Usage(10, 16, total=226),
    ),
    "cloudflare: zeros until the end": Stream(
        (
            text_chunk("Grüße", usage=counts(0, 0)),
            text_chunk("", "stop", usage=counts(0, 0)),
            no_choices(usage=counts()),
            DONE,
        ),
        PLAIN,
        frozenset({2}),
    ),
    "cloudflare's own": Stream(
        (event({"response": "Grüße"}), event({"response": "", "usage": counts()}), DONE), PLAIN, frozenset({1})
    ),
    "cloudflare's own, text with the usage": Stream(
        (event({"response": "Grü"}), event({"response": "ße", "usage": counts()}), DONE), PLAIN
    ),
    "openrouter": Stream(
        (
            b": OPENROUTER PROCESSING\n\n",
            text_chunk("Grüße"),
            b": OPENROUTER PROCESSING\n\n",
            text_chunk("", usage=counts(cost=0.01, completion_tokens_details={"reasoning_tokens": 3})),
            DONE,
        ),
        Usage(10, 16, reasoning=3, total=26),
    ),
    "llama.cpp": Stream(
        (
            text_chunk("Grüße"),
            no_choices(usage=counts(), timings={"predicted_ms": 1.5, "predicted_n": 16}),
            DONE,
        ),
        PLAIN,
        frozenset({1}),
        left={1: no_choices(timings={"predicted_ms": 1.5, "predicted_n": 16})},
    ),
    "llama.cpp's own": Stream(
        (
            event(llama("", 0, prompt_progress={"total": 10, "cache": 3, "processed": 10, "time_ms": 20})),
            *(event(llama("x", n)) for n in range(1, 17)),
            event(llama("", 16, stop=True, tokens_cached=25, timings={"cache_n": 3, "prompt_n": 7})),
        ),
        Usage(10, 16, cached=3, total=26),
        endpoint=Endpoint.COMPLETIONS,
    ),
    "llama.cpp's own, with counts at the end": Stream(
        (
            event({"content": "Grü", "slot_id": 0, "stop": False}),
            event({"content": "ße", "slot_id": 0, "stop": False}),
            event({"content": "", "slot_id": 0, "stop": True, "tokens_predicted": 16, "tokens_evaluated": 10}),
        ),
        PLAIN,
        endpoint=Endpoint.COMPLETIONS,
    ),
    "llama.cpp's own, for several prompts at once": Stream(
        (
            event(llama("a", 1)),
            event(llama("b", 1, index=1, tokens_evaluated=5)),
            event(llama("b", 2, index=1, tokens_evaluated=5)),
            event(llama("", 2, index=1, tokens_evaluated=5, stop=True)),
            event(llama("a", 2)),
            event(llama("", 2, stop=True)),
        ),
        Usage(15, 4, total=19),
        endpoint=Endpoint.COMPLETIONS,
    ),
    "completions": Stream(
        (
            event(
                {"object": "text_completion", "choices": [{"index": 0, "text": "Grüße", "finish_reason": None}]}
            ),
            event({"object": "text_completion", "choices": [], "usage": counts()}),
            DONE,
        ),
        PLAIN,
        frozenset({1}),
        Endpoint.COMPLETIONS,
    ),
    "anthropic": Stream(
        messages(
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 20,
                "cache_read_input_tokens": 80,
                "output_tokens": 1,
            },
            {"output_tokens": 16},
            "Grüße, ",
            "世界",
        ),
        Usage(110, 16, cached=80, cache_written=20, total=126),
        endpoint=MESSAGES,
    ),
    "anthropic, with a context that was compacted": Stream(
        messages(
            {"input_tokens": 23_000, "output_tokens": 1},
            {
                "input_tokens": 23_000,
                "output_tokens": 1000,
                "iterations": [
                    one_pass("compaction", 180_000, 3500, 0, 0),
                    one_pass("message", 23_000, 1000, 0, 0),
                ],
            },
            "Grüße",
        ),
        Usage(203_000, 4500, total=207_500),
        endpoint=MESSAGES,
    ),
    "anthropic, cumulative": Stream(
        messages(
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 4,
            },
            {
                "input_tokens": 300,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 16,
                "server_tool_use": {"web_search_requests": 1},
            },
            "hm",
            content=("thinking", "thinking_delta"),
        ),
        Usage(300, 16, total=316),
        endpoint=MESSAGES,
    ),
    "vllm messages: the cache is known at the end": Stream(
        messages(
            {"input_tokens": 90, "output_tokens": 0},
            {
                "input_tokens": 10,
                "output_tokens": 16,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 80,
            },
            '{"a":',
            "1}",
            content=("partial_json", "input_json_delta"),
        ),
        Usage(90, 16, cached=80, total=106),
        endpoint=MESSAGES,
    ),
    "litellm messages: nothing is known before the end": Stream(
        messages({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 10, "output_tokens": 16}, "Grüße"),
        PLAIN,
        endpoint=MESSAGES,
    ),
    "messages whose end forgets the prompt": Stream(
        messages(
            {"input_tokens": 10, "cache_read_input_tokens": 80, "output_tokens": 0},
            {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 16},
            "Grüße",
        ),
        Usage(90, 16, cached=80, total=106),
        endpoint=MESSAGES,
    ),
    "messages with openai's names": Stream(
        messages(
            {"prompt_tokens": 10, "completion_tokens": 0}, {"prompt_tokens": 10, "completion_tokens": 16}, "a"
        ),
        PLAIN,
        endpoint=MESSAGES,
    ),
    "responses": Stream(
        responses(
            responded("response.completed", "completed", RESPONSES_USAGE, output=OUTPUT),
            named("response.reasoning_summary_text.delta", delta="hm"),
            named("response.output_text.delta", delta="Grüße, 世界", logprobs=[]),
            named("response.function_call_arguments.delta", delta='{"a":1}'),
        ),
        RESPONDED,
        endpoint=RESPONSES,
    ),
    "responses, incomplete": Stream(
        responses(responded("response.incomplete", "incomplete", RESPONSES_USAGE, output=OUTPUT)),
        RESPONDED,
        endpoint=RESPONSES,
    ),
    "responses that failed after a while": Stream(
        responses(
            responded(
                "response.failed", "failed", RESPONSES_USAGE, error={"code": "server_error", "message": "x"}
            ),
            named("response.output_text.delta", delta="Grüße"),
        ),
        RESPONDED,
        endpoint=RESPONSES,
    ),
    "transcription": Stream(
        (
            event({"type": "transcript.text.delta", "delta": "Grüße"}),
            event(
                {
                    "type": "transcript.text.done",
                    "text": "Grüße",
                    "usage": {
                        "type": "tokens",
                        "input_tokens": 10,
                        "input_token_details": {"text_tokens": 0, "audio_tokens": 10},
                        "output_tokens": 16,
                        "total_tokens": 26,
                    },
                }
            ),
        ),
        Usage(10, 16, total=26, audio_input=10),
        endpoint=Endpoint.TRANSCRIPTIONS,
    ),
    "mistral transcription": Stream(
        (
            named("transcription.text.delta", text="Grüße"),
            named("transcription.done", text="Grüße", usage=counts(prompt_audio_seconds=3)),
        ),
        PLAIN,
        endpoint=Endpoint.TRANSCRIPTIONS,
    ),
    "speech": Stream(
        (
            event({"type": "speech.audio.delta", "audio": "UklGRg=="}),
            event(
                {
                    "type": "speech.audio.done",
                    "usage": {"input_tokens": 10, "output_tokens": 16, "total_tokens": 26},
                }
            ),
        ),
        PLAIN,
        endpoint=Endpoint.SPEECH,
    ),
    "images": Stream(
        (
            named("image_generation.partial_image", b64_json="aGk=", partial_image_index=0),
            named(
                "image_generation.completed",
                b64_json="aGkh",
                usage={
                    "total_tokens": 26,
                    "input_tokens": 10,
                    "output_tokens": 16,
                    "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
                },
            ),
        ),
        PLAIN,
        endpoint=Endpoint.IMAGES,
    ),
}
