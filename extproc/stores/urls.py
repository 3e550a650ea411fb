"""Check the stores' URLs with the drivers that will use them, and print them without secrets.

A driver's message about a bad URL is never passed on: it may quote the password.
"""

import re
import warnings

from pydantic import Secret

MEMORY = "memory://"

_HIDDEN = "***"
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:pass|token|secret|properties)[^=&]*=)[^&]*", re.IGNORECASE)
_HINT = "percent-encode user and password, and check host, port and options"


class StoreURL(Secret[str]):
    """Hold a URL that prints with its password masked: `redis://user:***@host:6379/0`."""

    def _display(self) -> str:
        return masked(self.get_secret_value())

    @property
    def in_memory(self) -> bool:
        return self.get_secret_value().startswith(MEMORY)


def masked(url: str) -> str:
    """Return the URL without its secrets: the password, and options that hold one. In doubt, removes more."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return _HIDDEN
    # Cut at the last @: a password that was not encoded correctly may contain any of @ / ? &
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    shown = f"{user}:{_HIDDEN}" if colon else _HIDDEN
    place = _SECRET_OPTION.sub(rf"\g<1>{_HIDDEN}", place)
    return f"{scheme}://{shown}@{place}" if at else f"{scheme}://{place}"


def redis_url(url: StoreURL) -> StoreURL:
    """Check that redis-py can use the URL. Raise `ValueError` if not. Opens no connection."""
    if url.in_memory:
        return url
    # Imported where there is a URL: the drivers are most of what a short command would load.
    from redis.exceptions import RedisError

    from extproc.stores.redis_addresses import SCHEMES, parse_address

    text = url.get_secret_value()
    if not text.startswith(("redis://", "rediss://", "unix://", *SCHEMES)):
        raise ValueError(
            "must start with redis://, rediss:// (TLS), unix://, redis+cluster://, rediss+cluster://, "
            "redis+sentinel://, rediss+sentinel:// or memory:// (one replica, for trials)"
        )
    try:
        parse_address(text)
    except (ValueError, TypeError, RedisError):  # TypeError: an unknown option
        raise ValueError(f"is no URL that redis-py can use: {_HINT}") from None
    return url


def mongo_url(url: StoreURL) -> StoreURL:
    """Check that PyMongo can use the URL. Raise `ValueError` if not. Opens no connection and resolves no SRV
    record.
    """
    if url.in_memory:
        return url
    from pymongo import AsyncMongoClient
    from pymongo.errors import PyMongoError

    text = url.get_secret_value()
    if not text.startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError("must start with mongodb://, mongodb+srv:// or memory:// (for trials)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PyMongo only warns of an unknown option
            AsyncMongoClient[dict[str, object]](text)
    except OSError:
        raise ValueError("names a TLS file that can't be read on this host") from None
    except (ValueError, TypeError, UserWarning, PyMongoError):
        raise ValueError(f"is no URL that PyMongo can use: {_HINT}") from None
    return url
