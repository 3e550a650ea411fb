"""Change a value, be it a dataclass or a struct."""

import dataclasses

import msgspec


def replace(value, /, **changes):
    """Return a copy of a value with some fields changed."""
    change = msgspec.structs.replace if isinstance(value, msgspec.Struct) else dataclasses.replace
    return change(value, **changes)
