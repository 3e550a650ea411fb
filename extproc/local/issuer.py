"""Issue tokens for the demo, in the role of a company's identity provider."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Final

try:
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from jwt.algorithms import RSAAlgorithm
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("the token issuer needs: pip install 'tokenweir[local]'") from error

ISSUER: Final = "https://issuer.tokenweir.local"
AUDIENCE: Final = "tokenweir-demo"
TENANT_CLAIM: Final = "tenant"
_KEY_ID = "demo"
_KEY_BITS = 2048
_REGISTERED = frozenset({"iss", "sub", "aud", "iat", "exp", TENANT_CLAIM})


class TokenIssuer:
    """Sign tokens with an RSA key of its own."""

    def __init__(
        self,
        *,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
        clock: Callable[[], float] = time.time,
        private_pem: str | None = None,
    ) -> None:
        """Create an issuer. `clock` returns the time in seconds since the epoch. Without `private_pem` it draws a
        key.
        """
        self.issuer = issuer
        self.audience = audience
        self._clock = clock
        self._key = _new_key() if private_pem is None else _read_key(private_pem)

    def private_pem(self) -> str:
        """Return the key, for another process of this user that issues tokens for the same stack."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self._key.private_bytes(encoding, form, serialization.NoEncryption()).decode()

    def jwks_json(self) -> str:
        """Return the public key as a JSON Web Key Set (RFC 7517)."""
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**public, "kid": _KEY_ID, "alg": "RS256", "use": "sig"}]})

    def issue(
        self,
        subject: str,
        *,
        tenant: str | None = None,
        audience: str | None = None,
        ttl_s: int = 3600,
        claims: Mapping[str, object] | None = None,
    ) -> str:
        """Return a signed token (RS256) for `subject`, the service account.

        Args:
            subject: the claim `sub`.
            tenant: the claim `tenant`; None leaves it out.
            audience: the claim `aud`; None is the issuer's own audience.
            ttl_s: seconds until it expires; negative for one that has already.
            claims: further claims.

        Raises:
            ValueError: `claims` names a claim that the other arguments set.
        """
        return self._sign(self._key, self._claims(subject, tenant, audience, ttl_s, claims))

    def forge(
        self,
        subject: str,
        *,
        tenant: str | None = None,
        audience: str | None = None,
        ttl_s: int = 3600,
        claims: Mapping[str, object] | None = None,
    ) -> str:
        """Return a token as from `issue`, but signed by another key under the same key id: verification must
        fail.
        """
        return self._sign(_new_key(), self._claims(subject, tenant, audience, ttl_s, claims))

    def _claims(
        self,
        subject: str,
        tenant: str | None,
        audience: str | None,
        ttl_s: int,
        extra: Mapping[str, object] | None,
    ) -> dict[str, object]:
        extra = extra or {}
        if taken := _REGISTERED & extra.keys():
            raise ValueError(f"set by their own arguments: {', '.join(sorted(taken))}")
        now = int(self._clock())
        claims: dict[str, object] = {
            **extra,
            "iss": self.issuer,
            "sub": subject,
            "aud": self.audience if audience is None else audience,
            "iat": now,
            "exp": now + ttl_s,
        }
        return claims if tenant is None else {**claims, TENANT_CLAIM: tenant}

    @staticmethod
    def _sign(key: rsa.RSAPrivateKey, claims: dict[str, object]) -> str:
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": _KEY_ID})


def _read_key(pem: str) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    return key


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
