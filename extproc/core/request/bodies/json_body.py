"""Read the top level of a JSON body strictly.

Every field that we use is read strictly: if a server takes `"stream": "true"` for true, we must not conclude that
there is no stream. All other fields are only measured; the upstream judges them.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Raw

from extproc.core.request import jsonkeys
from extproc.core.request.bodies.facts import (
    MAX_CHOICES,
    MAX_MODEL_CHARS,
    MAX_TOKENS,
    UNNAMED,
    FieldError,
    Malformed,
    is_model,
)
from extproc.core.request.bodies.steering import steers

_Tokens = Annotated[int, Meta(le=MAX_TOKENS)]
_Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
_Model = Annotated[str, Meta(max_length=MAX_MODEL_CHARS)]

_tokens: Final = msgspec.json.Decoder(_Tokens | None).decode
_choices: Final = msgspec.json.Decoder(_Choices | None).decode
_flag: Final = msgspec.json.Decoder(bool | None).decode
_model: Final = msgspec.json.Decoder(_Model).decode

_NULL: Final = (b"", b"null")  # an empty Raw means that there is no value
_NULL_BYTES: Final = 4
# What a field must be.
_MODEL_RULE: Final = f"a string of 1 to {MAX_MODEL_CHARS} printable characters, without space around it"
_TOKENS_RULE: Final = f"an integer of at most {MAX_TOKENS}; a negative one stands for no bound"
_CHOICES_RULE: Final = f"an integer from 1 to {MAX_CHOICES}"
# Unknown fields may become prompt too: their bytes beyond this are counted.
_SMALL_FIELDS_BYTES: Final = 1024
# The syntax of a field beside its name and value: two quotes, a colon, a comma.
_SYNTAX_BYTES: Final = 4
_REQUIRED: Final = object()

T = TypeVar("T")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def without_mark(body: bytes) -> bytes:
    """Return a body without the mark that editors and .NET put before UTF-8; servers ignore it."""
    return body.removeprefix(_BYTE_ORDER_MARK)


def head(raw: Raw, size: int = 1) -> bytes:
    """Return the first bytes of a value without a copy of the rest."""
    return memoryview(raw)[:size].tobytes()


class AnyObject(msgspec.Struct, gc=False):
    """Stand for any object. None of its fields is read, which is the cheapest way to count objects."""


class JsonBody(msgspec.Struct, frozen=True):
    """Hold the fields of a body that are read, as they are written, and the size of the whole body."""

    fields: dict[str, Raw]
    body_bytes: int

    def given(self, name: str) -> bool:
        """Return whether the field has a value other than null."""
        raw = self.fields.get(name)
        return raw is not None and (len(raw) > _NULL_BYTES or bytes(raw) not in _NULL)

    def model(self) -> str:
        """Return the name of the model; `UNNAMED` if it is left out, null or empty."""
        if not self.given("model"):
            return UNNAMED
        name: str = self.read("model", _model, _MODEL_RULE)
        if not name:
            return UNNAMED
        if not is_model(name):
            raise FieldError("model", _MODEL_RULE)
        return name

    def flag(self, name: str) -> bool:
        return bool(self.read(name, _flag, "true or false", absent=False))

    def tokens(self, *names: str, zero: int | None = None) -> int | None:
        """Return the largest of the given bounds, None if there is none. A negative one stands for none, too.

        Servers disagree about precedence, so the largest one is safe. They also disagree about 0: `zero` is
        returned for it.
        """
        given = [self.read(name, _tokens, _TOKENS_RULE) for name in names if name in self.fields]
        bounds = [bound for bound in given if bound is not None]
        if not bounds or min(bounds) < 0:
            return None
        return max(bounds) or zero

    def choices(self, *names: str) -> int:
        counts = [self.read(name, _choices, _CHOICES_RULE) for name in names if name in self.fields]
        return max((count for count in counts if count is not None), default=1) if counts else 1

    def objects(self, name: str, of_what: str) -> int:
        """Return the length of an array of objects."""
        rule = f"an array of {of_what}, at most {MAX_CHOICES}"
        count = len(self.read(name, _objects, rule))
        if count > MAX_CHOICES:
            raise FieldError(name, rule)
        return count

    def lists(self, name: str) -> bool:
        """Return whether the field is an array that is not empty, without reading it."""
        return self.given(name) and len(self.fields[name]) > len("[]")

    def has_any(self, names: Iterable[str]) -> bool:
        """Return whether any of these fields has a value other than null."""
        return any(self.given(name) for name in names if name in self.fields)

    def read(self, name: str, decode: Callable[[Raw], Any], rule: str, absent: object = _REQUIRED) -> Any:
        """Return the decoded value. Raise `FieldError` if it breaks the rule, or is required and missing."""
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
        """Return the prompt's fields as a JSON object, and the size of their values and of unknown fields in
        bytes.
        """
        kept = {name: self.fields[name] for name in names if name in self.fields and self.given(name)}
        known_bytes = sum(map(len, kept.values()))
        further_bytes = max(0, self.body_bytes - known_bytes - _SMALL_FIELDS_BYTES)
        return msgspec.json.encode(kept), known_bytes + further_bytes

    @property
    def small_bytes(self) -> int:
        """Return the bytes of unknown fields and white space that `prompt` does not count."""
        fields = self.fields
        read = sum(map(len, fields)) + sum(map(len, fields.values())) + _SYNTAX_BYTES * len(fields)
        return min(_SMALL_FIELDS_BYTES, max(0, self.body_bytes - read))


_objects: Final = msgspec.json.Decoder(list[AnyObject]).decode


def json_body(body: bytes, read: Collection[str], refused: Collection[str] = ()) -> JsonBody | Malformed:
    """Return the fields of a body that `read` names, or an error. A field that is read may occur only once.

    A field that `refused` names may be null, and nothing else.
    """
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
    for name, value in members:
        if name in refused and head(value, 5) != b"null":
            return steers(name)
    fields = {name: value for name, value in members if name in read}
    problem = _problem_of(members, read) if len(fields) < len(members) else None
    return problem or JsonBody(fields, len(body))


def _problem_of(members: list[tuple[str, Raw]], read: Collection[str]) -> Malformed | None:
    """Return what is wrong with names that are not read, or come twice."""
    twice = jsonkeys.repeated(members, read)
    if twice is not None:
        return Malformed(f"'{twice}' is given more than once.", twice, "duplicate_field")
    disguised = next((name for name, _ in members if name not in read and name.casefold() in read), None)
    if disguised is None:
        return None
    # Some servers ignore the letter case of names (Go's JSON does). Such a server would read another value
    # than we do.
    plain = disguised.casefold()
    return Malformed(f"'{disguised[:MAX_MODEL_CHARS]}' must be spelled '{plain}'.", plain, "invalid_field_name")


def _reason(error: msgspec.DecodeError) -> str:
    return str(error).removeprefix("JSON is malformed: ")
