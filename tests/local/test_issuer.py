import json

import jwt
import pytest

from extproc.local.issuer import AUDIENCE, ISSUER, TokenIssuer


@pytest.fixture(scope="module")
def issuer():
    return TokenIssuer()


def verified(issuer, token, audience=AUDIENCE):
    keys = jwt.PyJWKSet.from_json(issuer.jwks_json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=["RS256"], audience=audience, issuer=ISSUER)


def test_a_token_verifies_against_the_published_keys(issuer):
    token = issuer.issue("console@zone-prod", tenant="zone-prod", claims={"team": "search"})
    claims = verified(issuer, token)
    assert (claims["sub"], claims["tenant"], claims["team"]) == ("console@zone-prod", "zone-prod", "search")


def test_a_token_without_a_tenant_has_no_such_claim(issuer):
    assert "tenant" not in verified(issuer, issuer.issue("console"))


def test_a_token_lives_as_long_as_was_asked(issuer):
    fixed = TokenIssuer(clock=lambda: 1_000_000.9)
    claims = jwt.decode(fixed.issue("a", ttl_s=90), options={"verify_signature": False})
    assert (claims["iat"], claims["exp"]) == (1_000_000, 1_000_090)


def test_a_token_for_another_audience_is_not_for_ours(issuer):
    token = issuer.issue("a", audience="somebody-else")
    with pytest.raises(jwt.InvalidAudienceError):
        verified(issuer, token)
    assert verified(issuer, token, "somebody-else")["sub"] == "a"


def test_an_expired_token_can_be_made(issuer):
    with pytest.raises(jwt.ExpiredSignatureError):
        verified(issuer, issuer.issue("a", ttl_s=-1))


def test_a_forged_token_differs_by_its_signature_only(issuer):
    clock = lambda: 1_000_000.0  # noqa: E731
    fixed = TokenIssuer(clock=clock)
    real, forged = (make("a", tenant="t").rsplit(".", 1) for make in (fixed.issue, fixed.forge))
    assert real[0] == forged[0]
    assert real[1] != forged[1]
    with pytest.raises(jwt.InvalidSignatureError):
        verified(issuer, issuer.forge("a"))


def test_the_published_keys_are_public(issuer):
    (key,) = json.loads(issuer.jwks_json())["keys"]
    assert set(key) == {"kty", "key_ops", "n", "e", "kid", "alg", "use"}


@pytest.mark.parametrize("name", ["sub", "exp", "tenant"])
def test_further_claims_can_not_replace_the_ones_with_an_argument(issuer, name):
    with pytest.raises(ValueError, match=name):
        issuer.issue("a", claims={name: "x"})
