"""JWTs of a configured issuer: what is accepted, what it grants, and all that is refused."""

import asyncio
import base64
import hashlib
import hmac
import json
import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from extproc.admin.api.issuer_keys import MAX_KEYS, IssuerKeys, KeysError, from_file, from_url, parsed_keys
from extproc.web.listening import listen, port_of
from extproc.web.server import ServerOptions, running

from .api import ISSUER, MINE, OTHER, Keys, Running, of

KEYS = Keys()


async def asked(token, path="/v1/me", keys=KEYS):
    return await Running(keys=keys).bearing(token).get(path)


@pytest.mark.parametrize(("alg", "kid"), [("RS256", "r"), ("ES256", "e")])
async def test_a_token_of_the_issuer_says_who_calls_and_with_which_role(alg, kid):
    key = {"r": KEYS.rsa, "e": KEYS.ec}[kid]
    me = of(await asked(KEYS.token(alg=alg, kid=kid, key=key)), 200)
    assert me == {"name": "ada", "kind": "jwt", "role": "admin", "tenants": None}


@pytest.mark.parametrize(
    ("claims", "role", "tenants"),
    [
        ({"roles": ["tw-viewers"]}, "viewer", None),
        ({"roles": "tw-viewers"}, "viewer", None),
        ({"roles": ["tw-viewers"], "tenants": [MINE]}, "viewer", [MINE]),
        ({"roles": ["tw-leads"], "tenants": [OTHER, MINE]}, "team-lead", [MINE, OTHER]),
        ({"roles": ["tw-leads"], "tenants": MINE}, "team-lead", [MINE]),
        ({"roles": ["strangers", "tw-viewers", "tw-admins"], "tenants": [MINE]}, "admin", None),
    ],
)
async def test_of_several_roles_the_highest_counts_and_tenants_come_from_their_claim(claims, role, tenants):
    me = of(await asked(KEYS.token(**claims)), 200)
    assert (me["role"], me["tenants"]) == (role, tenants)


@pytest.mark.parametrize(
    "claims",
    [
        {"roles": []}, {"roles": ["strangers"]}, {"roles": None}, {"roles": {"tw-admins": True}}, {"roles": 1},
        {"roles": [["tw-admins"]]}, {"roles": "tw-admins "}, {"drop": ("roles",)},
        {"roles": ["tw-leads"]}, {"roles": ["tw-leads"], "tenants": []}, {"roles": ["tw-leads"], "tenants": [1]},
        {"roles": ["tw-viewers"], "tenants": []}, {"roles": ["tw-viewers"], "tenants": ["\n"]},
        {"roles": ["tw-leads"], "tenants": [f"t{n}" for n in range(101)]},
    ],
)  # fmt: skip
async def test_a_token_without_a_usable_role_is_refused(claims):
    of(await asked(KEYS.token(**claims)), 403, "no-role")


def segment(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})


def by_public_key():
    """HS256 with the public key as its secret: an old attack."""
    public = KEYS.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': 'r'})}.{segment(claims_of(KEYS.token()))}"
    signature = hmac.new(public, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def altered():
    head, _, signature = KEYS.token(roles=["tw-viewers"]).split(".")
    return f"{head}.{segment(claims_of(KEYS.token()))}.{signature}"


STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
REFUSED = {
    "of another key": lambda: KEYS.token(key=STRANGER),
    "of a key that nobody knows": lambda: KEYS.token(key=STRANGER, kid="unheard-of"),
    "with a key of its own in its head": lambda: KEYS.token(
        key=STRANGER, headers={"jwk": json.loads(KEYS.jwks())["keys"][0]}
    ),
    "altered": altered,
    "alg none": lambda: f"{segment({'alg': 'none', 'kid': 'r'})}.{segment(claims_of(KEYS.token()))}.",
    "HS256 by the public key": by_public_key,
    "HS256": lambda: KEYS.token(key="x" * 32, alg="HS256"),
    "a kind of signature that is not listed": lambda: KEYS.token(alg="RS512"),
    "a key of another kind": lambda: KEYS.token(kid="e"),
    "expired": lambda: KEYS.token(exp=int(time.time()) - 31),
    "not valid yet": lambda: KEYS.token(nbf=int(time.time()) + 60),
    "without an end": lambda: KEYS.token(drop=("exp",)),
    "an end that is no number": lambda: KEYS.token(exp="never"),
    "for another audience": lambda: KEYS.token(aud="somebody"),
    "without an audience": lambda: KEYS.token(drop=("aud",)),
    "of another issuer": lambda: KEYS.token(iss=ISSUER + "/"),
    "without an issuer": lambda: KEYS.token(drop=("iss",)),
    "without a subject": lambda: KEYS.token(drop=("sub",)),
    "a subject that is no name": lambda: KEYS.token(sub="a\nb"),
    "empty parts": lambda: "..",
    "no JWT": lambda: "abc",
    "not ASCII": lambda: "ä.ö.ü".encode().decode("latin-1"),
    "deeply nested": lambda: f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.e30.e30",
    "a head that is no object": lambda: f"{segment([1])}.{segment({})}.e30",
    "too long": lambda: KEYS.token(padding="x" * 9000),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_proves_nothing_is_refused(what):
    token = REFUSED[what]()
    transport = httpx.ASGITransport(Running(keys=KEYS).api)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        answer = await client.get("/v1/me", headers=[(b"authorization", b"Bearer " + token.encode("latin-1"))])
    problem = of(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="tokenweir", error="invalid_token"'
    assert token not in answer.text or len(token) < 5
    assert problem["detail"]


async def test_clocks_may_differ_by_the_leeway():
    of(await asked(KEYS.token(exp=int(time.time()) - 20)), 200)


async def test_without_an_issuer_no_jwt_is_accepted():
    of(await Running().bearing(KEYS.token()).get("/v1/me"), 401)


async def test_a_new_key_is_found_and_unknown_ones_have_the_issuer_asked_once_a_minute():
    keys, now = Keys(), [1000.0]
    api = Running(keys=keys, clock=lambda: now[0])
    of(await api.bearing(keys.token()).get("/v1/me"), 200)
    assert keys.reads == 1
    keys.published["new"] = fresh = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for _ in range(20):
        of(await api.bearing(keys.token(key=fresh, kid="new")).get("/v1/me"), 401)
    assert keys.reads == 1, "within the first minute"
    now[0] += 60
    of(await api.bearing(keys.token(key=fresh, kid="new")).get("/v1/me"), 200)
    assert keys.reads == 2


async def test_a_key_that_was_withdrawn_ends_within_ten_minutes():
    keys, now = Keys(), [1000.0]
    api = Running(keys=keys, clock=lambda: now[0])
    of(await api.bearing(keys.token()).get("/v1/me"), 200)
    del keys.published["r"]
    now[0] += 600
    of(await api.bearing(keys.token()).get("/v1/me"), 401)


async def test_known_keys_stay_while_the_issuer_is_down_and_without_any_it_is_said():
    now, fault = [1000.0], [None]

    async def read():
        if fault[0] is not None:
            raise fault[0]
        return KEYS.jwks()

    keys = IssuerKeys(read, lambda: now[0])
    fault[0] = KeysError("down")
    with pytest.raises(KeysError, match="can't be read at the moment"):
        await keys.key("r")
    now[0], fault[0] = 1061.0, None
    assert await keys.key("r") is not None
    now[0], fault[0] = 2000.0, KeysError("down")
    assert await keys.key("r") is not None
    assert await keys.key("other") is None


async def test_the_issuer_that_is_down_is_a_503_and_no_401():
    class Down(Keys):
        async def read(self):
            raise KeysError("no answer")

    down = Down()
    answer = await asked(down.token(), keys=down)
    of(answer, 503, "issuer-unavailable")
    assert answer.headers["retry-after"] == "60"


async def test_many_that_need_the_keys_at_once_read_them_once():
    keys = Keys()
    api = Running(keys=keys)
    client = api.bearing(keys.token())
    answers = await asyncio.gather(*(client.get("/v1/me") for _ in range(10)))
    assert {each.status_code for each in answers} == {200}
    assert keys.reads == 1


def test_a_key_set_has_usable_keys_of_signatures_only():
    shared = {"kty": "oct", "kid": "s", "k": "c2VjcmV0"}
    listed = json.loads(KEYS.jwks())["keys"]
    encrypts = {**listed[0], "kid": "enc", "use": "enc"}
    odd = {"kty": "unheard-of", "kid": "o"}
    found = parsed_keys(json.dumps({"keys": [shared, encrypts, odd, *listed]}).encode())
    assert set(found) == {"r", "e"}
    for text in (
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b"[" * 5000,
        json.dumps({"keys": [shared]}).encode(),
    ):
        with pytest.raises(KeysError):
            parsed_keys(text)
    with pytest.raises(KeysError, match=f"at most {MAX_KEYS} keys"):
        parsed_keys(json.dumps({"keys": listed * 51}).encode())


async def test_keys_come_from_a_file(tmp_path):
    file = tmp_path / "jwks.json"
    with pytest.raises(KeysError, match=str(file)):
        await from_file(file)()
    file.write_bytes(KEYS.jwks())
    assert await from_file(file)() == KEYS.jwks()


async def test_keys_come_from_a_url_within_bounds():
    async def issuer(scope, receive, send):
        del receive
        status = {"/ok": 200, "/large": 200, "/moved": 302}.get(scope["path"], 404)
        body = b"x" * 300_000 if scope["path"] == "/large" else KEYS.jwks()
        headers = [(b"location", b"/ok")] if status == 302 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with listen("127.0.0.1:0") as listening:
        url = f"http://127.0.0.1:{port_of(listening)}"
        async with running(issuer, ServerOptions(keep_alive_s=1, finish_s=1), listening):
            assert await from_url(f"{url}/ok")() == KEYS.jwks()
            for path, said in (("large", "more than"), ("moved", "status 302"), ("gone", "status 404")):
                with pytest.raises(KeysError, match=said):
                    await from_url(f"{url}/{path}")()
    with pytest.raises(KeysError):
        await from_url(f"{url}/ok")()
