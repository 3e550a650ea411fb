"""Verify JWTs of one configured issuer, and read roles and tenants from their claims."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from extproc.admin.access import Caller, Grant, Role
from extproc.admin.api.issuer_keys import IssuerKeys
from extproc.admin.errors import AdminError
from extproc.core.request.identity import is_name
from extproc.ports.audit import Actor, ActorKind

# Symmetric algorithms and `none` are missing: with them, whoever knows the public key could sign.
ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
_REQUIRED: Final = ["exp", "iss", "aud", "sub"]


class TokenError(Exception):
    """Report a token that proves nothing. The message is for its bearer, and never quotes the token."""


class NoRoleError(Exception):
    """Report a token that is valid, and gives no role here."""


@dataclass(frozen=True, slots=True)
class JWTOptions:
    """Say whose tokens are accepted, and what they grant.

    Claims may be paths, such as `realm_access.roles`. `roles` maps values of the role claim to roles; of several
    the highest one counts. `leeway_s` is how far the clocks may differ.
    """

    issuer: str
    audience: str
    role_claim: str
    tenants_claim: str
    roles: Mapping[str, Role]
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    leeway_s: float = 30.0


class JWTs:
    """Verify tokens."""

    def __init__(self, options: JWTOptions, keys: IssuerKeys) -> None:
        self._options = options
        self._keys = keys

    async def caller(self, token: str, origin: str) -> Caller:
        """Return who bears the token. Raise `TokenError`, `NoRoleError`, and `KeysError` if no key is known."""
        claims = await self._claims(token)
        subject = claims["sub"]
        if not is_name(subject):
            raise TokenError("the token's claim 'sub' must be a printable name")
        return Caller(Actor(subject, ActorKind.JWT, origin), self._grant(claims))

    async def _claims(self, token: str) -> dict[str, Any]:
        options = self._options
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenError("the token is no JWT") from None
        if header.get("alg") not in options.algorithms:
            raise TokenError(f"the token must be signed by one of {', '.join(options.algorithms)}")
        key = await self._keys.key(header.get("kid"))
        if key is None:
            raise TokenError("the token is signed by a key that its issuer does not have")
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                audience=options.audience,
                issuer=options.issuer,
                leeway=options.leeway_s,
                options={"require": _REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise TokenError("the token has expired") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise TokenError("the token is of another issuer, or for another audience") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # A key of another kind than the algorithm needs raises TypeError.
            raise TokenError("the token is not valid") from None

    def _grant(self, claims: Mapping[str, Any]) -> Grant:
        options = self._options
        named = _texts(_at(claims, options.role_claim))
        roles = [options.roles[name] for name in named if name in options.roles]
        if not roles:
            raise NoRoleError(f"the token's claim '{options.role_claim}' names no role that is known here")
        role = max(roles, key=list(Role).index)
        tenants = _at(claims, options.tenants_claim)
        try:
            if role is Role.ADMIN:
                return Grant.checked(role, None)
            return Grant.checked(role, _texts(tenants) if tenants is not None else None)
        except AdminError as error:
            raise NoRoleError(f"the token's claim '{options.tenants_claim}' can't be used: {error}") from None


def _at(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim: by its whole name, else by the path of names that dots join."""
    if path in claims:
        return claims[path]
    found: object = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
