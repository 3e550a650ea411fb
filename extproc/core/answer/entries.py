"""Start with a dict that all share: one of its own takes 64 bytes of each open stream, often for nothing."""

from types import MappingProxyType
from typing import Any, Final, cast

NO_ENTRIES: Final = cast("dict[Any, Any]", MappingProxyType({}))
"""A dict that can only be read. Before the first entry, put another one in its place."""
