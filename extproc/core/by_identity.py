"""Keep what was computed of objects, each found by its identity: for objects that many requests share."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

_Thing = TypeVar("_Thing")
_Value = TypeVar("_Value")
_AT_MOST: Final = 4096


class ByIdentity(Generic[_Thing, _Value]):
    """Compute a value once for each of up to 4,096 objects. With more, all are forgotten.

    To compare objects costs more than to look one up. An object is kept with its value, so that no other object
    can have its identity.
    """

    __slots__ = ("_compute", "_known")

    def __init__(self, compute: Callable[[_Thing], _Value]) -> None:
        self._compute = compute
        self._known: dict[int, tuple[_Thing, _Value]] = {}

    def of(self, thing: _Thing) -> _Value:
        """Return the value of an object that nobody changes."""
        found = self._known.get(id(thing))
        if found is not None and found[0] is thing:
            return found[1]
        value = self._compute(thing)
        if len(self._known) >= _AT_MOST:
            self._known.clear()
        self._known[id(thing)] = (thing, value)
        return value
