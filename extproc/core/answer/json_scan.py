"""Read a plain JSON answer while it passes: its usage wherever it stands, and how much text there is so far.

Memory is bounded and work is linear, whatever the answer is. Nothing is kept of it but what `members.py` lists.
"""

import re
from typing import Final

from extproc.core.answer.members import AT_THE_TOP, BLOCKS, IN_BLOCKS, INSIDE, OF_LOGPROBS, OF_RESULTS, Role
from extproc.core.answer.passing_over import STRING_CONTENT, PassingOver

# One value that is kept, and all of them together. Usage has less than 4 KiB.
MAX_VALUE_BYTES: Final = 16 << 10
MAX_KEPT_BYTES: Final = 64 << 10
_MAX_NAME_BYTES: Final = 64
_MAX_DEPTH: Final = 32
# Structure is read step by step while it is as sparse as in real answers. Beyond that, one member of the answer is
# passed over; where the members themselves are that many, all the rest.
_FREE_STEPS: Final = 2048
_BYTES_PER_STEP: Final = 24
_MOST_STEPS: Final = 2
# To begin to pass over the rest of a member takes as long as so many steps.
_STEPS_TO_PASS_OVER: Final = 16
_TOKEN: Final = re.compile(rb'["{}\[\],]')
# The rest of an object or array that has others in it to a depth of three at most, as log probabilities have. No
# byte is looked at twice.
_PLAIN: Final = rb'[^{}\[\]"\\]*+'
_TEXTS: Final = rb'%b(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"%b)*+' % (_PLAIN, _PLAIN)
_NESTED: Final = b"%b(?:[{\\[]%b[}\\]]%b)*+"
_ONE_DEEP: Final = _NESTED % (_TEXTS, _TEXTS, _TEXTS)
_TWO_DEEP: Final = _NESTED % (_TEXTS, _ONE_DEEP, _TEXTS)
_FLAT: Final = re.compile(b"%b[}\\]]" % (_NESTED % (_TEXTS, _TWO_DEEP, _TEXTS)), re.DOTALL)
_SHORT: Final = re.compile(rb'([^"\\]{0,64})"')
_SPACE: Final = b" \t\r\n"
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_READ: Final = frozenset({Role.ANSWER, Role.LIST, Role.TEXT, Role.UNKNOWN, Role.LOGPROBS, Role.ITEMS})
_PASSED_OVER: Final = frozenset({Role.KEPT, Role.NUMBERS, Role.WRITTEN})
_STRINGS: Final = frozenset({Role.TEXT, Role.STRING, Role.WRITTEN})
_OUTER: Final = frozenset({Role.ANSWER, Role.LIST})
_OPENING: Final = {ord("{"): True, ord("["): False}
_CLOSING: Final = {ord("}"): True, ord("]"): False}


class Text:
    """Measure generated text: its bytes, and its words. A word is at least one token."""

    __slots__ = ("_in_word", "size", "words")

    def __init__(self) -> None:
        self.size = 0
        self.words = 0
        self._in_word = False

    def begin(self) -> None:
        """Begin another string."""
        self._in_word = False

    def add(self, piece: bytes) -> None:
        """Add the next piece of the same string. The sums do not depend on how it is cut."""
        if not piece:
            return
        self.size += len(piece)
        self.words += len(piece.split()) - (self._in_word and not piece[:1].isspace())
        self._in_word = not piece[-1:].isspace()


class JsonScan:
    """Scan one JSON answer, or one list of answers.

    Attributes:
        kept: the members of the answer that are kept, as JSON text, by name; of its choices only the last usage.
        ended: what was kept of each answer of a list that has ended. The reader may empty it.
        values: how often a member was kept.
        text: strings that were generated.
        unknown: strings that may have been generated.
        media_bytes: the size of pictures and sounds, encoded, or of their addresses.
        sealed_bytes: the size of what was generated and encrypted.
        unread_bytes: bytes in which text was not looked for, because there was too much structure in them.
        dense: there was too much structure in the answer to read it step by step.
        complete: the answer has come to its end, and nothing but white space after it.
        overfull: a member, or all of them, were larger than what is kept.
    """

    __slots__ = (
        *("_escaped", "_expects_name", "_gave_up", "_ids", "_in_string", "_items", "_kept_bytes", "_lost"),
        *("_member", "_name", "_naming", "_next", "_objects", "_outer", "_over", "_roles", "_steps", "_value"),
        *("bytes", "complete", "dense", "ended", "kept", "media_bytes", "overfull", "sealed_bytes", "text"),
        *("unknown", "unread_bytes", "values"),
    )

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.values = 0
        self.ended: list[dict[bytes, bytes]] = []
        self.text = Text()
        self.unknown = Text()
        self.media_bytes = 0
        self.sealed_bytes = 0
        self.unread_bytes = 0
        self.bytes = 0
        self.dense = False
        self.complete = False
        self.overfull = False
        self._roles: list[Role] = []  # of the objects and arrays that are open
        self._objects: list[bool] = []  # which of them are objects
        self._outer = 0  # of them, those that are answers or a list of answers
        self._next = Role.ANSWER  # of the value that comes next
        self._expects_name = False
        self._naming = False
        self._in_string = False
        self._escaped = False  # the string so far ends with a backslash
        self._name = bytearray()
        self._member = b""  # of the answer
        self._value = bytearray()  # that is kept
        self._kept_bytes = 0
        self._over: PassingOver | None = None
        self._lost = False  # what is passed over may have text in it
        self._ids = 0  # of tokens that were listed
        self._items = 0  # log probabilities of tokens
        self._steps = 0
        self._gave_up = False

    @property
    def tokens(self) -> int:
        """Return the tokens that the answer has listed so far: by their ids, or with their log probabilities."""
        return max(self._items, self._listed)

    @property
    def _listed(self) -> int:
        over = self._over
        return self._ids + (over.commas + 1 if self._next is Role.NUMBERS and over and over.filled else 0)

    def feed(self, data: bytes) -> None:
        """Take the next bytes. The result does not depend on how the answer is cut."""
        self.bytes += len(data)
        at = 0
        while at < len(data):
            if self._gave_up or self.complete:
                self._gave_up = self._gave_up or bool(data[at:].strip(_SPACE))
                self.complete = self.complete and not self._gave_up
                self.unread_bytes += len(data) - at
                return
            if self._over is not None:
                at = self._pass_over(self._over, data, at)
            elif self._in_string:
                at = self._read_string(data, at)
            else:
                at = self._read_structure(data, at)

    def _read_structure(self, data: bytes, at: int) -> int:
        """Read up to the next string, or to what is passed over. Return the place behind."""
        while (found := _TOKEN.search(data, at)) is not None:
            place = found.start()
            if self._next is Role.KEPT:
                self._keep(data[at:place])
            at = place + 1
            self._steps += 1
            if self._steps > _FREE_STEPS + self.bytes // _BYTES_PER_STEP and self._is_too_much():
                return place
            token = data[place]
            if token in _OPENING:
                at = self._open(data, at, is_object=_OPENING[token])
            elif not self._roles:
                self._gave_up = True
            elif token == _QUOTE:
                at = self._begin_string(data, at)
            elif token in _CLOSING:
                self._close(is_object=_CLOSING[token])
            else:
                self._end_value()
                self._expects_name = self._objects[-1]
                self._next = Role.SKIP if self._expects_name else _element(self._roles[-1])
            if self._over is not None or self._in_string or self.complete or self._gave_up:
                return at
        if self._next is Role.KEPT:
            self._keep(data[at:])
        return len(data)

    def _is_too_much(self) -> bool:
        """Pass over the rest of a member, or of all. Return False where the members may still be read."""
        self.dense = True
        deeper = len(self._roles) - self._outer
        if deeper > 0:
            self._over, self._lost = PassingOver(deeper), True
            self._steps += _STEPS_TO_PASS_OVER
            del self._roles[self._outer :], self._objects[self._outer :]
            self._next, self._expects_name = Role.SKIP, False
        elif self._steps > _MOST_STEPS * (_FREE_STEPS + self.bytes // _BYTES_PER_STEP):
            self._gave_up = True
        return deeper > 0 or self._gave_up

    def _open(self, data: bytes, at: int, *, is_object: bool) -> int:
        """Begin an object or array, or pass over it. Return the place to go on from."""
        role, parent = self._next, self._roles[-1] if self._roles else None
        if parent is Role.ITEMS:
            self._items += 1
        role = _container(role, parent, is_object=is_object)
        if role is Role.KEPT:
            self._keep(b"{" if is_object else b"[")
        if role not in _READ or len(self._roles) == _MAX_DEPTH:
            self._next = role if role in _PASSED_OVER else Role.SKIP
            self.text.begin()
            self._over, self._lost = PassingOver(), False
            flat = _FLAT.match(data, at) if self._next is not Role.NUMBERS else None
            if flat is None:
                return at
            self._over = None
            self._passed(flat.group())
            self._end_value()
            return flat.end()
        self._outer += role in _OUTER
        self._roles.append(role)
        self._objects.append(is_object)
        self._expects_name = is_object
        self._next = Role.SKIP if is_object else _element(role)
        return at

    def _close(self, *, is_object: bool) -> None:
        self._end_value()
        role, opened = self._roles.pop(), self._objects.pop()
        self._outer -= role in _OUTER
        self._gave_up = opened is not is_object
        self.complete = not self._roles and not self._gave_up
        if role is Role.ANSWER and self._roles:
            self.ended.append(self.kept)
            self.kept, self._kept_bytes = {}, 0
        self._next, self._expects_name = Role.SKIP, False

    def _pass_over(self, over: PassingOver, data: bytes, at: int) -> int:
        end, done = over.feed(data, at)
        self._passed(data[at:end])
        self.unread_bytes += self._lost * (end - at)
        if done:
            if self._next is Role.NUMBERS:
                self._ids = self._listed
                self._next = Role.SKIP
            self._end_value()
            self._over = None
        return end

    def _passed(self, piece: bytes) -> None:
        """Take a piece of what is passed over."""
        if self._next is Role.KEPT:
            self._keep(piece)
        elif self._next is Role.WRITTEN:
            self.text.add(piece)

    def _begin_string(self, data: bytes, at: int) -> int:
        """Begin a string, or read it if it is short and all there. Return the place to go on from."""
        short = _SHORT.match(data, at)
        if self._expects_name:
            self._expects_name = False
            if short is not None:
                self._named(short.group(1))
                return short.end()
            self._in_string = self._naming = True
            self._name.clear()
            return at
        if self._next is Role.KEPT:
            self._keep(b'"')
        elif self._roles[-1] is Role.ITEMS:
            self._items += 1
        self.text.begin()
        self.unknown.begin()
        self._naming = False
        if short is None:
            self._in_string = True
            return at
        self._take(short.group(1))
        if self._next is Role.KEPT:
            self._keep(b'"')
        return short.end()

    def _read_string(self, data: bytes, at: int) -> int:
        """Read up to the end of a string. Return the place behind."""
        content = STRING_CONTENT.match(data, at + self._escaped)
        stop = content.end() if content is not None else len(data)
        self._escaped = stop < len(data) and data[stop] == _BACKSLASH
        stop += self._escaped
        self._take(data[at:stop])
        if stop < len(data):
            self._in_string = False
            if self._naming:
                self._named(bytes(self._name))
            elif self._next is Role.KEPT:
                self._keep(b'"')
        return stop + 1

    def _take(self, piece: bytes) -> None:
        """Take a piece of a string."""
        if self._naming:
            self._name += piece[: _MAX_NAME_BYTES + 1 - len(self._name)]
        elif self._next in _STRINGS:
            self.text.add(piece)
        elif self._next is Role.UNKNOWN:
            self.unknown.add(piece)
        elif self._next is Role.MEDIA:
            self.media_bytes += len(piece)
        elif self._next is Role.SEALED:
            self.sealed_bytes += len(piece)
        elif self._next is Role.KEPT:
            self._keep(piece)

    def _named(self, name: bytes) -> None:
        """Find the role of the value that follows its name."""
        role = self._roles[-1]
        if role is Role.ANSWER:
            self._member = name
            self._next = AT_THE_TOP.get(name, Role.UNKNOWN)
        elif role is Role.LOGPROBS:
            self._next = OF_LOGPROBS.get(name, Role.SKIP)
        elif name == b"usage" and self._member == b"choices":
            self._next = Role.KEPT  # of one choice, as Moonshot writes it
        elif name == OF_RESULTS:
            self._roles[-1] = self._next = Role.SKIP
        elif name in IN_BLOCKS and self._member in BLOCKS:
            self._next = IN_BLOCKS[name]
        else:
            self._next = INSIDE.get(name, role)
        self._value.clear()

    def _keep(self, piece: bytes) -> None:
        self._value += piece[: MAX_VALUE_BYTES + 1 - len(self._value)]

    def _end_value(self) -> None:
        if self._next is not Role.KEPT:
            return
        self._next = Role.SKIP
        value = bytes(self._value).lstrip(_SPACE + b":").rstrip(_SPACE)
        self._kept_bytes += len(value)
        if len(self._value) > MAX_VALUE_BYTES or self._kept_bytes > MAX_KEPT_BYTES:
            self.overfull = True
        else:
            self.values += 1
            in_choice = self._roles[-1] is not Role.ANSWER
            self.kept[self._member] = b'[{"usage":%b}]' % value if in_choice else value


def _element(role: Role) -> Role:
    """Return the role of an array's elements."""
    return Role.ANSWER if role is Role.LIST else Role.SKIP if role is Role.ITEMS else role


def _container(role: Role, parent: Role | None, *, is_object: bool) -> Role:
    """Return the role of an object or array, where `role` is that of a value."""
    match role:
        case Role.ANSWER if not is_object:
            return Role.LIST if parent is None else Role.SKIP
        case Role.NESTED:
            return Role.TEXT
        case Role.MEDIA:
            return parent or Role.SKIP
        case Role.LOGPROBS if not is_object:
            return Role.ITEMS
        case Role.ITEMS | Role.NUMBERS if is_object:
            return Role.SKIP
        case _:
            return role
