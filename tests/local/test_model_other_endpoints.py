"""Images, tokenize and KServe's protocols."""

import struct
import zlib
from base64 import b64decode

import pytest

from extproc.local.model import SampleModel

from .model_calls import CALLS, MODEL, TURNS, Call, answer, calling, post

IMAGES = CALLS["images"]


def changed(name, path=None, **fields):
    call = CALLS[name]
    return Call(name, path or call.path, call.body | fields)


@pytest.fixture
def app():
    return SampleModel(models=[MODEL, "org/iris"], max_model_len=512)


@pytest.fixture
async def client(app):
    async with calling(app) as open_client:
        yield open_client


async def test_pictures_are_counted_by_quality_and_size(app, client):
    whole = await answer(client, changed("images", quality="low", size="1024x1536"))
    usage = whole["usage"]
    assert usage["output_tokens"] == usage["output_tokens_details"]["image_tokens"] == 2 * 408
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + 2 * 408
    told = app.ledger.report()
    assert (told["completion_tokens"], told["total_tokens"]) == (2 * 408, usage["total_tokens"])


def png_chunks(rest):
    chunks = {}
    while rest:
        size, kind = struct.unpack(">I4s", rest[:8])
        chunks[kind] = rest[8 : 8 + size]
        assert struct.unpack(">I", rest[8 + size : 12 + size]) == (zlib.crc32(rest[4 : 8 + size]),)
        rest = rest[12 + size :]
    return chunks


async def test_pictures_are_pictures(client):
    pictures = [b64decode(item["b64_json"]) for item in (await answer(client, IMAGES))["data"]]
    assert len(set(pictures)) == len(pictures) == 2
    for picture in pictures:
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        chunks = png_chunks(picture[8:])
        assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
        width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
        assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"n": 0}, 400), ({"n": 11}, 400), ({"size": "1x1"}, 400), ({"prompt": ""}, 400), ({"model": "nope"}, 404)],
    ids=str,
)
async def test_pictures_that_nobody_draws_are_refused(client, fields, status):
    assert (await post(client, changed("images", **fields))).status_code == status


async def test_tokens_of_a_text_go_back_into_it(client):
    text = "Im Fluß: 水は🛶"
    whole = await answer(client, changed("tokenize", prompt=text, return_token_strs=True))
    assert list(whole) == ["count", "max_model_len", "tokens", "token_strs"]
    assert whole["count"] == len(whole["tokens"]) == len(whole["token_strs"])
    bare = await answer(client, changed("tokenize", prompt=text, add_special_tokens=False))
    assert bare["tokens"] == whole["tokens"][1:]
    back = await answer(client, Call("tokenize", "/detokenize", {"model": MODEL, "tokens": whole["tokens"]}))
    assert back == {"prompt": text}


@pytest.mark.parametrize("turns", [TURNS, [*TURNS, {"role": "tool", "content": "2"}]], ids=["plain", "odd"])
async def test_tokens_of_a_chat_are_as_many_as_it_costs(app, client, turns):
    counted = await answer(client, Call("tokenize", "/tokenize", {"model": MODEL, "messages": turns}))
    assert app.ledger.report()["total_tokens"] == 0
    whole = await answer(client, changed("chat_completions", messages=turns))
    assert counted["count"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": MODEL}),
        ("/tokenize", {"model": "nope", "prompt": "x"}),
        ("/detokenize", {"model": MODEL}),
        ("/detokenize", {"tokens": [131_072]}),
        ("/detokenize", {"tokens": [-1]}),
    ],
    ids=str,
)
async def test_what_has_no_tokens_is_refused(client, path, body):
    assert (await post(client, Call("tokenize", path, body))).status_code in {400, 404}


@pytest.mark.parametrize("name", [MODEL, "org/iris"])
async def test_a_prediction_is_one_request_and_no_tokens(app, client, name):
    whole = await answer(client, Call("predict", f"/v1/models/{name}:predict", {"instances": [[1, 2], [3, 4.5]]}))
    assert whole == {"predictions": [3, 7.5]}
    report = app.ledger.report()
    assert report["by_endpoint"] == {"predict": report["by_model"][name]}
    assert (report["requests"], report["total_tokens"]) == (1, 0)


@pytest.mark.parametrize("version", [None, "7"])
@pytest.mark.parametrize("name", [MODEL, "org/iris"])
async def test_an_inference_is_one_request_and_no_tokens(app, client, name, version):
    path = f"/v2/models/{name}/versions/{version}/infer" if version else f"/v2/models/{name}/infer"
    whole = await answer(client, changed("infer", path, id="42"))
    assert (whole["model_name"], whole["model_version"], whole["id"]) == (name, version or "1", "42")
    assert [(tensor["shape"], tensor["data"]) for tensor in whole["outputs"]] == [([2], [1, 2])]
    assert app.ledger.report()["by_endpoint"]["infer"]["requests"] == 1
    assert app.ledger.report()["total_tokens"] == 0


@pytest.mark.parametrize(
    "path",
    ["/v1/models/nope:predict", "/v2/models/nope/infer", "/v2/models/nope/versions/1/infer"],
)
async def test_a_model_that_is_not_served_is_refused_in_kserves_shape(client, path):
    response = await client.post(path, json={"instances": [1], "inputs": []})
    assert (response.status_code, response.json()) == (404, {"error": "Model with name nope does not exist."})


@pytest.mark.parametrize(
    "call", [changed("infer", inputs=[{"name": "x"}]), changed("predict", instances=None)], ids=str
)
async def test_what_cannot_be_predicted_is_refused_in_kserves_shape(client, call):
    response = await post(client, call)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/org/iris", {"name": "org/iris", "ready": True, "id": "org/iris", "object": "model"}),
        ("/v2/models/org/iris/ready", {"name": "org/iris", "ready": True}),
        ("/v2/models/org/iris", {"name": "org/iris", "versions": ["1"]}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/health/live", {"live": True}),
    ],
)
async def test_models_and_health_are_told(app, client, path, expected):
    told = (await client.get(path)).json()
    assert {key: told[key] for key in expected} == expected
    assert app.ledger.report()["requests"] == 0


@pytest.mark.parametrize("path", ["/v1/models/nope", "/v2/models/nope", "/v2/models/nope/ready"])
async def test_models_that_are_not_served_are_not_found(client, path):
    assert (await client.get(path)).status_code == 404
