"""Declare what the queries of several operations have in common."""

from typing import Annotated

from msgspec import Meta

from extproc.core.request.identity import MAX_NAME_CHARS

_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Address = Annotated[str, Meta(max_length=64)]
Date = Annotated[str, Meta(pattern=_DATE, description="YYYY-MM-DD, inclusive.")]
