"""Log in each new connection with the user and password of now, so that a password rotates without a restart."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from redis.credentials import CredentialProvider

from extproc.stores.redis_addresses import Address, parse_address

_LOGIN: Final = ("username", "password")


class _CurrentLogin(CredentialProvider):
    """Read user and password from the options of the present address, when a connection is made."""

    def __init__(self, options: Callable[[], dict[str, Any]]) -> None:
        self._options = options

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        options = self._options()
        user, password = options.get("username"), options.get("password")
        if password is None:
            return ()  # type: ignore[return-value]  # redis-py then logs in with nothing
        return (password,) if user is None else (user, password)


def with_current_login(address: Address, current_url: Callable[[], str]) -> Address:
    """Return the address without its login; connections take the login of `current_url` when they are made.

    Only user and password follow the URL. Another host or option needs a restart.
    """

    def of_redis() -> dict[str, Any]:
        return parse_address(current_url()).options

    def of_sentinels() -> dict[str, Any]:
        return parse_address(current_url()).sentinel_options or {}

    options = _without_login(address.options) | {"credential_provider": _CurrentLogin(of_redis)}
    if address.sentinel_options is None:
        return replace(address, options=options)
    sentinels = _without_login(address.sentinel_options) | {"credential_provider": _CurrentLogin(of_sentinels)}
    return replace(address, options=options, sentinel_options=sentinels)


def _without_login(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _LOGIN}
