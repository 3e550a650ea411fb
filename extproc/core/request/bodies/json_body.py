"""The top level of a JSON body: its fields, and how they are read strictly.

A field that is read is read strictly: a server that takes `"stream": "true"` for true must not make us believe
that there is no stream. What is not read is the upstream's to judge, and is only measured.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import (
    MAX_CHOICES,
    MAX_MODEL_CHARS,
    MAX_TOKENS,
    FieldError,
    Malformed,
    is_model,
)

_Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_TokensOrNone = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
_Model = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]

_tokens: Final = msgspec.json.Decoder(_Tokens | None).decode
_tokens_or_none: Final = msgspec.json.Decoder(_TokensOrNone | None).decode
_choices: Final = msgspec.json.Decoder(_Choices | None).decode
_flag: Final = msgspec.json.Decoder(bool | None).decode
_model: Final = msgspec.json.Decoder(_Model).decode

_NULL: Final = (b"", b"null")  # a Raw that is empty stands for nothing
# Fields that we don't know may become prompt too: what such a body has beyond this is counted.
_SMALL_FIELDS_BYTES: Final = 1024
# What a field has beside its name and its value: two quotes, a colon, a comma.
_SYNTAX_BYTES: Final = 4
_REQUIRED: Final = object()

T = TypeVar("T")


def head(raw: Raw, size: int = 1) -> bytes:
    """The first bytes of a value, without a copy of the rest."""
    return memoryview(raw)[:size].tobytes()


class AnyObject(msgspec.Struct, gc=False):
    """An object of which nothing is read: the cheapest way to count them."""


@dataclass(frozen=True, slots=True)
class JsonBody:
    """The fields that are read of one body, as they are written, and the size of the whole."""

    fields: dict[str, Raw]
    body_bytes: int

    def given(self, name: str) -> bool:
        """Whether there is a value, and not null."""
        raw = self.fields.get(name)
        return raw is not None and head(raw, 5) not in _NULL

    def model(self) -> str:
        rule = f"a string of 1 to {MAX_MODEL_CHARS} printable characters, without space around it"
        name: str = self.read("model", _model, rule)
        if not is_model(name):
            raise FieldError("model", rule)
        return name

    def flag(self, name: str) -> bool:
        return bool(self.read(name, _flag, "true or false", absent=False))

    def tokens(self, *names: str, least: int = 1) -> int | None:
        """The largest of the bounds that are given: servers disagree which of two wins, so that one is safe."""
        decode = _tokens if least else _tokens_or_none
        rule = f"an integer from {least} to {MAX_TOKENS}"
        bounds = [self.read(name, decode, rule, absent=None) for name in names]
        return max((bound for bound in bounds if bound is not None), default=None)

    def choices(self, *names: str) -> int:
        rule = f"an integer from 1 to {MAX_CHOICES}"
        counts = [self.read(name, _choices, rule, absent=None) for name in names]
        return max((count for count in counts if count is not None), default=1)

    def objects(self, name: str, of_what: str) -> int:
        """The length of an array of objects."""
        rule = f"an array of {of_what}, at most {MAX_CHOICES}"
        count = len(self.read(name, _objects, rule))
        if count > MAX_CHOICES:
            raise FieldError(name, rule)
        return count

    def read(self, name: str, decode: Callable[[Raw], Any], rule: str, absent: object = _REQUIRED) -> Any:
        """The decoded value. Raises `FieldError` where it does not fit the rule, or is missing and required."""
        raw = self.fields.get(name)
        if raw is None:
            if absent is not _REQUIRED:
                return absent
            raise FieldError(name, f"given: {rule}")
        try:
            return decode(raw)
        except (msgspec.DecodeError, UnicodeError):
            raise FieldError(name, rule) from None

    def prompt(self, names: Iterable[str]) -> tuple[bytes, int]:
        """What becomes prompt: its fields as a JSON object, and the bytes of their values with unknown ones."""
        kept = {name: self.fields[name] for name in names if self.given(name)}
        known_bytes = sum(map(len, kept.values()))
        further_bytes = max(0, self.body_bytes - known_bytes - _SMALL_FIELDS_BYTES)
        return msgspec.json.encode(kept), known_bytes + further_bytes

    @property
    def small_bytes(self) -> int:
        """The bytes of fields that nobody here reads, as far as `prompt` does not count them: white space too."""
        read = sum(len(name) + len(raw) + _SYNTAX_BYTES for name, raw in self.fields.items())
        return min(_SMALL_FIELDS_BYTES, max(0, self.body_bytes - read))


_objects: Final = msgspec.json.Decoder(list[AnyObject]).decode


def json_body(body: bytes, read: Collection[str]) -> JsonBody | Malformed:
    """The fields named in `read` of a body, or why it can't be read. A field that is read may stand there once."""
    if not body.strip():
        return Malformed("The request has no body; send a JSON object.", code="empty_body")
    try:
        body.decode()
        members = jsonkeys.members(body)
    except UnicodeDecodeError as error:
        return Malformed(f"The body is not valid UTF-8 (byte {error.start}).", code="invalid_json")
    except msgspec.ValidationError:
        rule = f"a JSON object of at most {jsonkeys.MAX_MEMBERS} fields"
        return Malformed(f"The body must be {rule}.", code="invalid_json")
    except msgspec.DecodeError as error:
        return Malformed(f"The body is not valid JSON: {_reason(error)}.", code="invalid_json")
    except RecursionError:
        return Malformed("The body is nested too deeply.", code="invalid_json")
    twice = jsonkeys.repeated(members, read)
    if twice is not None:
        return Malformed(f"'{twice}' is given more than once.", twice, "duplicate_field")
    disguised = next((name for name, _ in members if name not in read and name.casefold() in read), None)
    if disguised is not None:
        # Some servers read names in any letter case (Go's JSON does), and would see another value than we.
        plain = disguised.casefold()
        return Malformed(
            f"'{disguised[:MAX_MODEL_CHARS]}' must be spelled '{plain}'.", plain, "invalid_field_name"
        )
    return JsonBody({name: value for name, value in members if name in read}, len(body))


def _reason(error: msgspec.DecodeError) -> str:
    return str(error).removeprefix("JSON is malformed: ")
