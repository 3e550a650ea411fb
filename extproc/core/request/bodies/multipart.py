"""Read the fields of a form with files (multipart/form-data, RFC 7578). Files are measured, not kept.

FastAPI servers (vLLM, SGLang, ...) use the same parser, so both sides see the same fields. A form that they and
other servers could read in two ways is refused.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from extproc.core.request.bodies.facts import Malformed

MAX_PARTS: Final = 128
# RFC 2046: 1 to 70 characters.
_MAX_BOUNDARY_BYTES: Final = 70
_MAX_HEADERS: Final = 8
_MAX_HEADER_BYTES: Final = 2048
_NAMES: Final = re.compile(rb"(?:^|[;\s])name\s{0,8}=", re.IGNORECASE)
_PLAIN_ENCODINGS: Final = frozenset({b"7bit", b"8bit", b"binary"})
_CODE: Final = "invalid_multipart"

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass(slots=True)
class Form:
    """Hold the `fields` of a form in order, repeated names included, and name and size of its `files`."""

    fields: list[tuple[str, bytes]] = field(default_factory=list)
    files: list[tuple[str, int]] = field(default_factory=list)


class _BadPartError(Exception):
    """Report a part that can't be read, and the reason."""


def is_multipart(content_type: str) -> bool:
    """Return whether the content type is that of a form in parts."""
    return content_type.partition(";")[0].strip().lower().startswith("multipart/")


def read_form(content_type: str, body: bytes) -> Form | Malformed:
    """Return the fields of a form, or an error. Takes linear time; never raises."""
    try:
        kind, options = parse_options_header(content_type)
    except UnicodeError:
        kind, options = b"", {}
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        rule = f"multipart/form-data with a boundary of 1 to {_MAX_BOUNDARY_BYTES} characters"
        return Malformed(f"'content-type' must be {rule}.", "content-type", _CODE)
    # Count before parsing: the parser needs a few microseconds for each delimiter, or text that begins like one.
    if body.count(b"\r\n--" + boundary) > MAX_PARTS:
        return Malformed(
            f"The body is not a valid multipart form: it has more than {MAX_PARTS} parts.", code=_CODE
        )
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary, parts.callbacks(), max_header_count=_MAX_HEADERS, max_header_size=_MAX_HEADER_BYTES
        )
        parser.write(body)
    except FormParserError:
        return Malformed("The body is not a valid multipart form.", code=_CODE)
    except _BadPartError as error:
        return Malformed(f"The body is not a valid multipart form: {error}.", code=_CODE)
    if not parts.ended:
        return Malformed("The body is not a valid multipart form: its end is missing.", code=_CODE)
    return parts.form


class _Parts:
    """Take the parser's callbacks."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._is_file = False
        self._data: list[bytes] = []
        self._size = 0

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._headers.clear()
        self._data, self._size = [], 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = data[start:end].lower()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = data[start:end]

    def _on_header_end(self) -> None:
        if self._header in self._headers:
            raise _BadPartError("a part has a header twice")
        self._headers[self._header], self._value = self._value, b""

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options or len(_NAMES.findall(disposition)) != 1:
            raise _BadPartError("each part needs one content-disposition with one name")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:
            raise _BadPartError("a part has a content-transfer-encoding, which servers disagree about")
        try:
            self._name = options[b"name"].decode()
        except UnicodeDecodeError:
            raise _BadPartError("the name of a part is not valid UTF-8") from None
        self._is_file = b"filename" in options

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if not self._is_file:
            self._data.append(data[start:end])

    def _on_part_end(self) -> None:
        if self._is_file:
            self.form.files.append((self._name, self._size))
        else:
            self.form.fields.append((self._name, b"".join(self._data)))

    def _on_end(self) -> None:
        self.ended = True
