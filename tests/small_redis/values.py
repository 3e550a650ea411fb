"""Keep the keys of a server, with the time at which each is forgotten."""

import copy
from collections.abc import Callable


class RefusedError(Exception):
    """Report an error that is the reply to a command. The text begins with its code."""


WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NO_INTEGER = "ERR value is not an integer or out of range"
NO_FLOAT = "ERR value is not a valid float"


class Hash(dict):
    """Map fields to texts."""


class Set(dict):
    """Keep members in the order in which they came."""


class Sorted(dict):
    """Map members to scores."""


class Stream(dict):
    """Map ids (milliseconds, number) to fields and values, oldest first."""

    last = (0, 0)

    def __copy__(self):
        twin = Stream(self)
        twin.last = self.last
        return twin


class Data:
    """Keep all keys. `clock` returns seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._values: dict[bytes, dict] = {}
        self._until: dict[bytes, int] = {}  # milliseconds since the epoch

    def copy(self) -> "Data":
        twin = Data(self.clock)
        twin._values = {key: copy.copy(value) for key, value in self._values.items()}
        twin._until = dict(self._until)
        return twin

    def now_ms(self) -> int:
        return int(self.clock() * 1000)

    def names(self) -> list[bytes]:
        return [key for key in list(self._values) if self.exists(key)]

    def exists(self, key: bytes) -> bool:
        until = self._until.get(key)
        if until is not None and until <= self.now_ms():
            self.delete(key)
        return key in self._values

    def get(self, key: bytes, kind: type) -> dict:
        """Return the value; an empty one, which is not kept, if there is none."""
        if not self.exists(key):
            return kind()
        value = self._values[key]
        if type(value) is not kind:
            raise RefusedError(WRONG_TYPE)
        return value

    def make(self, key: bytes, kind: type) -> dict:
        """Return the value; a new one, which is kept, if there is none."""
        value = self.get(key, kind)
        return self._values.setdefault(key, value)

    def shrunk(self, key: bytes, value: dict) -> None:
        """Delete a key whose last member is gone. A stream stays."""
        if not value:
            self.delete(key)

    def delete(self, key: bytes) -> bool:
        self._until.pop(key, None)
        return self._values.pop(key, None) is not None

    def clear(self) -> None:
        self._values.clear()
        self._until.clear()

    def until(self, key: bytes) -> int | None:
        """Return when the key is forgotten, in milliseconds since the epoch; None: never."""
        return self._until.get(key)

    def forget_at(self, key: bytes, until_ms: int) -> None:
        if until_ms <= self.now_ms():
            self.delete(key)
        else:
            self._until[key] = until_ms
