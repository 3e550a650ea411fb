"""Reading of rendered objects: a field that nobody takes is an error, so that nothing is ignored in silence."""

from contextlib import contextmanager

_REQUIRED = object()


class Fields:
    def __init__(self, value, where):
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        self._left = dict(value)
        self._where = where

    def take(self, name, default=_REQUIRED):
        if default is _REQUIRED:
            assert name in self._left, f"{self._where} has no {name}"
        return self._left.pop(name, default)

    def expect(self, name, value):
        """Takes a field that may only have this value, or be left out."""
        assert self.take(name, value) == value, f"{self._where}.{name} is not {value!r}"

    def done(self):
        assert not self._left, f"{self._where}: not translated: {sorted(self._left)}"


@contextmanager
def fields(value, where):
    """Takes fields; at the end of the block none may be left."""
    found = Fields(value, where)
    yield found
    found.done()


def only(value, where):
    """The one key and value of an object, as in `{exact: /v1}`."""
    assert isinstance(value, dict), f"{where} is no object: {value!r}"
    assert len(value) == 1, f"{where} has not one field: {value!r}"
    return next(iter(value.items()))
