"""Transcriptions and speech: seconds and tokens, plain, as text, and as two kinds of stream."""

import io
import wave

import pytest

from extproc.local.model import SampleModel

from .model_calls import CALLS, MODEL, Call, answer, calling, events_of, post, stream, transcription, wav

PATH = "/v1/audio/transcriptions"
SPEECH = CALLS["audio_speech"]


@pytest.fixture
def app():
    return SampleModel(max_model_len=2048)


@pytest.fixture
async def client(app):
    async with calling(app) as open_client:
        yield open_client


@pytest.mark.parametrize(
    ("audio", "seconds"),
    [(wav(1.5), 2), (wav(2.0), 2), (wav(0.1), 1), (b"\xff\xfb" + bytes(31_998), 2), (b"RIFFjunk", 1)],
    ids=["1.5 s", "2 s", "0.1 s", "no wav", "broken wav"],
)
async def test_seconds_are_rounded_up(app, client, audio, seconds):
    whole = await answer(client, transcription(), audio=audio)
    assert list(whole) == ["text", "usage"]
    assert whole["usage"] == {"type": "duration", "seconds": seconds}
    assert app.ledger.report()["audio_seconds"] == seconds


async def test_the_same_audio_says_the_same(client):
    said = [(await answer(client, transcription(), audio=wav(length)))["text"] for length in (1, 2, 1)]
    assert said[0] == said[2] != said[1]


async def test_text_is_plain_text(client):
    whole = await answer(client, transcription())
    text = await post(client, transcription(response_format="text"))
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == whole["text"] + "\n"


async def test_a_verbose_answer_tells_the_duration_and_no_usage(client):
    verbose = await answer(client, transcription(response_format="verbose_json", language="de"))
    assert list(verbose) == ["duration", "language", "text", "segments", "words"]
    assert (verbose["duration"], verbose["language"]) == ("1.5", "de")
    assert verbose["segments"][0]["text"] == verbose["text"]


async def test_usage_in_tokens_tells_what_was_heard_and_read(app, client):
    whole = await answer(client, transcription(prompt="a river"), usage="tokens")
    usage = whole["usage"]
    assert usage["type"] == "tokens"
    details = usage["input_token_details"]
    assert details == {"text_tokens": usage["input_tokens"] - 20, "audio_tokens": 20}
    assert details["text_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    told = app.ledger.report()
    assert (told["prompt_tokens"], told["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])


async def test_a_stream_says_what_a_plain_answer_does_and_ends_with_usage(app, client):
    whole = await answer(client, transcription())
    app.ledger.reset()
    events = [document for _, document in await stream(client, CALLS["audio_transcriptions"], done=True)]
    *chunks, last = events
    assert {chunk["object"] for chunk in events} == {"transcription.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole["text"]
    assert ["finish_reason" in chunk["choices"][0] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert last["choices"] == []
    told = app.ledger.report()
    assert last["usage"] == {key: told[key] for key in ("prompt_tokens", "total_tokens", "completion_tokens")}
    assert not [chunk for chunk in chunks if "usage" in chunk]


async def test_a_stream_tells_usage_only_if_asked_and_all_along_if_so(client):
    plain = await post(client, transcription(stream="true"))
    assert "usage" not in plain.text
    asked = {"stream": "true", "stream_include_usage": "true", "stream_continuous_usage_stats": "true"}
    events = events_of((await post(client, transcription(**asked))).text, done=True)
    counted = [document["usage"]["completion_tokens"] for _, document in events]
    assert counted == [*range(1, len(events)), len(events) - 1]


async def test_a_stream_in_tokens_is_that_of_gpt_4o_transcribe(client):
    whole = await answer(client, transcription(), usage="tokens")
    *deltas, done = [
        document for _, document in await stream(client, transcription(stream="true"), usage="tokens")
    ]
    assert {delta["type"] for delta in deltas} == {"transcript.text.delta"}
    assert "".join(delta["delta"] for delta in deltas) == whole["text"]
    assert done == {"type": "transcript.text.done"} | whole


async def test_the_output_can_be_bounded(client):
    bounded = {"max_completion_tokens": "300", "ignore_eos": "true"}
    assert (await answer(client, transcription(**bounded), usage="tokens"))["usage"]["output_tokens"] == 300


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": ""}, 400),
        ({"model": "nope"}, 404),
        ({"response_format": "srt"}, 400),
        ({"stream": "perhaps"}, 400),
        ({"stream": "true", "response_format": "verbose_json"}, 400),
        ({"stream_include_usage": "true"}, 400),
        ({"max_completion_tokens": "many"}, 400),
        ({"max_completion_tokens": "4096"}, 400),
    ],
    ids=str,
)
async def test_a_wrong_form_is_refused(client, fields, status):
    response = await post(client, transcription(**fields))
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "request_parts",
    [
        {"json": {"model": MODEL}},
        {"data": {"model": MODEL}},
        {"data": {"model": MODEL, "file": "words"}, "files": {"other": b"x"}},
        {"data": {"model": MODEL}, "files": {"file": ("a.wav", b"")}},
        {"files": {"file": ("a.wav", wav()), "model": ("m", b"x")}},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ],
    ids=["json", "no multipart", "a string", "empty", "a file for a name", "no boundary", "no parts"],
)
async def test_what_is_no_form_with_a_file_is_refused(client, request_parts):
    response = await client.post(PATH, **request_parts)
    assert response.status_code == 400, response.text


async def test_speech_is_as_long_as_its_text(app, client):
    lengths = []
    for text in ("A river.", "A river. " * 5):
        call = Call("audio_speech", SPEECH.path, SPEECH.body | {"input": text, "response_format": "wav"})
        spoken = await post(client, call)
        assert spoken.headers["content-type"] == "audio/wav"
        with wave.open(io.BytesIO(spoken.content)) as file:
            lengths.append(file.getnframes() / file.getframerate())
    assert lengths[1] > 2 * lengths[0] > 0
    assert app.ledger.report()["prompt_tokens"] == 4 * sum(lengths)


@pytest.mark.parametrize(
    ("form", "media_type", "start"), [("mp3", "audio/mpeg", b"\xff\xfb"), ("pcm", "audio/pcm", b"\0\0")]
)
async def test_speech_comes_in_other_forms(client, form, media_type, start):
    spoken = await post(client, Call("audio_speech", SPEECH.path, SPEECH.body | {"response_format": form}))
    assert spoken.headers["content-type"] == media_type
    assert spoken.content.startswith(start)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"input": ""}, 400), ({"voice": None}, 400), ({"response_format": "opus"}, 400), ({"model": "nope"}, 404)],
    ids=str,
)
async def test_what_cannot_be_said_is_refused(client, fields, status):
    assert (await post(client, Call("audio_speech", SPEECH.path, SPEECH.body | fields))).status_code == status
