"""The answers as the clients read them that people use: `openai` and `anthropic`."""

from contextlib import asynccontextmanager

import openai
import pytest

from extproc.local.model import SampleModel, running
from tests.missing import missing

from .model_calls import MODEL, wav

TURNS = [{"role": "user", "content": "1 + 1 =?"}]
COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")


@asynccontextmanager
async def served(**options):
    app = SampleModel()
    async with running(app) as port:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=60, **options
        ) as client:
            yield app, client


@asynccontextmanager
async def served_to_anthropic():
    try:
        import anthropic
    except ImportError:
        missing("anthropic is not installed")
    app = SampleModel()
    async with running(app) as port:
        url = f"http://127.0.0.1:{port}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            yield app, client, anthropic


def counted(app):
    told = app.ledger.report()
    app.ledger.reset()
    return tuple(told[key] for key in COUNTED)


async def test_openai_chats():
    async with served() as (app, client):
        whole = await client.chat.completions.create(model=MODEL, messages=TURNS)
        assert whole.choices[0].message.content == "1 + 1 = 2"
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == counted(app)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model=MODEL, messages=TURNS, **options)
        ]
        assert "".join(c.delta.content for chunk in chunks for c in chunk.choices) == "1 + 1 = 2"
        assert chunks[-1].usage.total_tokens == counted(app)[2]


async def test_openai_completes():
    async with served() as (app, client):
        whole = await client.completions.create(model=MODEL, prompt=["1 + 1 =?", "ping"])
        assert [choice.text for choice in whole.choices] == ["1 + 1 = 2", "pong"]
        assert whole.usage.total_tokens == counted(app)[2]


async def test_openai_embeds():
    async with served() as (app, client):
        # It asks for base64 by itself and unpacks it.
        whole = await client.embeddings.create(model=MODEL, input=["a", "b"])
        plain = await client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
        assert whole.data[1].embedding == pytest.approx(plain.data[1].embedding)
        assert whole.usage.prompt_tokens + plain.usage.prompt_tokens == counted(app)[0]


async def test_openai_responds():
    async with served() as (app, client):
        whole = await client.responses.create(model=MODEL, input="1 + 1 =?")
        assert whole.output_text == "1 + 1 = 2"
        assert whole.usage.total_tokens == counted(app)[2]
        async with client.responses.stream(model=MODEL, input="1 + 1 =?") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert final.output_text == "1 + 1 = 2"
        assert (final.status, final.usage.total_tokens) == ("completed", counted(app)[2])


async def test_openai_transcribes():
    async with served() as (app, client):
        audio = ("speech.wav", wav())
        whole = await client.audio.transcriptions.create(model=MODEL, file=audio)
        assert whole.text
        assert (whole.usage.type, whole.usage.seconds) == ("duration", 2)
        text = await client.audio.transcriptions.create(model=MODEL, file=audio, response_format="text")
        assert text == f"{whole.text}\n"
        verbose = await client.audio.transcriptions.create(model=MODEL, file=audio, response_format="verbose_json")
        assert verbose.segments[0].text == whole.text
        app.ledger.reset()
        by_tokens = {"x-sample-usage": "tokens"}
        tokens = await client.audio.transcriptions.create(model=MODEL, file=audio, extra_headers=by_tokens)
        assert (tokens.usage.input_tokens, tokens.usage.output_tokens, tokens.usage.total_tokens) == counted(app)
        stream = await client.audio.transcriptions.create(
            model=MODEL, file=audio, stream=True, extra_headers=by_tokens
        )
        events = [event async for event in stream]
        assert "".join(event.delta for event in events[:-1]) == events[-1].text == whole.text
        assert events[-1].usage.total_tokens == counted(app)[2]


async def test_openai_speaks_and_draws():
    async with served() as (app, client):
        spoken = await client.audio.speech.create(
            model=MODEL, voice="alloy", input="A river.", response_format="wav"
        )
        assert (await spoken.aread()).startswith(b"RIFF")
        app.ledger.reset()
        drawn = await client.images.generate(model=MODEL, prompt="a river", n=2, quality="high")
        assert len(drawn.data) == 2
        assert drawn.usage.output_tokens == drawn.usage.output_tokens_details.image_tokens == 2 * 4160
        assert (drawn.usage.input_tokens, drawn.usage.output_tokens, drawn.usage.total_tokens) == counted(app)


async def test_openai_lists_models_and_understands_errors():
    async with served() as (_, client):
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.create(model="nope", input="x")
        assert missing.value.param == "model"
        broken = {"stream": True, "extra_headers": {"x-sample-fault": "error-in-stream"}}
        events = [event async for event in await client.responses.create(model=MODEL, input="tell me", **broken)]
        assert (events[-1].type, events[-1].message) == ("error", "Injected fault: error-in-stream")
        stream = await client.chat.completions.create(model=MODEL, messages=TURNS, **broken)
        with pytest.raises(openai.APIError, match="Injected fault: error-in-stream"):
            _ = [chunk async for chunk in stream]


async def test_anthropic_asks_and_counts():
    async with served_to_anthropic() as (app, client, anthropic):
        whole = await client.messages.create(model=MODEL, max_tokens=50, messages=TURNS)
        assert whole.content[0].text == "1 + 1 = 2"
        assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("end_turn", 9, 8)
        assert counted(app) == (9, 8, 17)
        tokens = await client.messages.count_tokens(model=MODEL, messages=TURNS)
        assert tokens.input_tokens == 9
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await client.messages.create(model="nope", max_tokens=5, messages=TURNS)


async def test_anthropic_streams():
    async with served_to_anthropic() as (app, client, anthropic):
        async with client.messages.stream(model=MODEL, max_tokens=3, messages=TURNS) as stream:
            said = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
        assert said == final.content[0].text == "1 + "
        assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("max_tokens", 9, 3)
        assert counted(app) == (9, 3, 12)
        broken = {"x-sample-fault": "error-in-stream"}
        async with client.messages.stream(
            model=MODEL, max_tokens=9, messages=TURNS, extra_headers=broken
        ) as stream:
            with pytest.raises(anthropic.APIStatusError, match="Injected fault"):
                await stream.get_final_message()
