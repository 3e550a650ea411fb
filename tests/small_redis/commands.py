"""Carry out commands on the keys of a server.

A new command is one function with `@_command`: its name is the command's, its arguments are the keys of the server
and then the words, as bytes. It returns None, int, float, bytes, list, dict, or one of the kinds in `replies`.
"""

import fnmatch
import inspect
import math
from collections.abc import Callable
from zlib import crc32

from .replies import Members, Scored, Status, flat, number
from .values import NO_FLOAT, NO_INTEGER, Data, Hash, RefusedError, Set, Sorted, Stream

COMMANDS: dict[bytes, Callable] = {}
_WORDS: dict[bytes, tuple[int, float]] = {}  # how many a command takes
# COUNT is a hint: pages are small, so that walks have several.
_PAGE, _KEYS_PAGE = 3, 100


def carry_out(data: Data, words: list[bytes]) -> object:
    """Return the reply. Raise RefusedError if it is an error."""
    name = words[0].upper()
    function = COMMANDS.get(name)
    if function is None:
        raise RefusedError(f"ERR unknown command '{words[0].decode()}'")
    least, most = _WORDS[name]
    if not least <= len(words) - 1 <= most:
        raise RefusedError(f"ERR wrong number of arguments for '{name.decode().lower()}' command")
    return function(data, *words[1:])


def _command(function: Callable) -> Callable:
    name = function.__name__.rstrip("_").upper().encode()
    given = list(inspect.signature(function).parameters.values())[1:]
    least = sum(each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty for each in given)
    most = math.inf if any(each.kind is each.VAR_POSITIONAL for each in given) else len(given)
    COMMANDS[name], _WORDS[name] = function, (least, most)
    return function


# ------------------------------------------------ keys


@_command
def ping(data, text=None):
    return text if text is not None else Status(b"PONG")


@_command
def time(data):
    seconds = data.clock()
    whole = int(seconds)
    return [b"%d" % whole, b"%d" % int((seconds - whole) * 1e6)]


@_command
def flushall(data, how=b"SYNC"):
    data.clear()
    return Status(b"OK")


@_command
def exists(data, *keys):
    return sum(data.exists(key) for key in keys)


@_command
def del_(data, key, *keys):
    return sum(data.exists(each) and data.delete(each) for each in (key, *keys))


@_command
def unlink(data, key, *keys):
    return del_(data, key, *keys)


@_command
def expire(data, key, seconds, condition=None):
    return _forget(data, key, data.now_ms() + 1000 * _int(seconds), condition)


@_command
def expireat(data, key, seconds, condition=None):
    return _forget(data, key, 1000 * _int(seconds), condition)


def _forget(data, key, until_ms, condition):
    if not data.exists(key):
        return 0
    known = data.until(key)
    if condition is not None:
        if condition.upper() != b"GT":
            raise RefusedError(f"ERR Unsupported option {condition.decode()}")
        if known is None or until_ms <= known:
            return 0
    data.forget_at(key, until_ms)
    return 1


@_command
def pttl(data, key):
    if not data.exists(key):
        return -2
    until = data.until(key)
    return until - data.now_ms() if until is not None else -1


@_command
def expiretime(data, key):
    if not data.exists(key):
        return -2
    until = data.until(key)
    return (until + 500) // 1000 if until is not None else -1


@_command
def scan(data, cursor, *options):
    given = _options(options, b"MATCH", b"COUNT")
    following, found = _page(data.names(), cursor, given.get(b"COUNT"), _KEYS_PAGE)
    pattern = given.get(b"MATCH", b"*").decode("latin-1")
    return [following, [key for key in found if fnmatch.fnmatchcase(key.decode("latin-1"), pattern)]]


def _page(names, cursor, count, most):
    """Return the following cursor, and what has a place from `cursor` on: each has the same place in any walk."""
    at_most = min(most, _int(count) if count is not None else 10)
    places = sorted((crc32(name), name) for name in names)
    left = [each for each in places if each[0] >= _int(cursor)]
    page, rest = left[:at_most], left[at_most:]
    while rest and rest[0][0] == page[-1][0]:
        page.append(rest.pop(0))
    return b"%d" % (rest[0][0] if rest else 0), [name for _, name in page]


# ------------------------------------------------ hashes


@_command
def hget(data, key, field):
    return data.get(key, Hash).get(field)


@_command
def hmget(data, key, field, *fields):
    found = data.get(key, Hash)
    return [found.get(each) for each in (field, *fields)]


@_command
def hgetall(data, key):
    return dict(data.get(key, Hash))


@_command
def hset(data, key, field, value, *more):
    if len(more) % 2:
        raise RefusedError("ERR wrong number of arguments for 'hset' command")
    found = data.make(key, Hash)
    before = len(found)
    words = (field, value, *more)
    found.update(zip(words[::2], words[1::2], strict=True))
    return len(found) - before


@_command
def hdel(data, key, field, *fields):
    return _removed(data, key, data.get(key, Hash), (field, *fields))


@_command
def hincrby(data, key, field, by):
    more, known = _int(by), data.get(key, Hash).get(field, b"0")
    try:
        value = _int(known) + more
    except RefusedError:
        raise RefusedError("ERR hash value is not an integer") from None
    data.make(key, Hash)[field] = b"%d" % value
    return value


# ------------------------------------------------ sets, sorted and not


@_command
def sadd(data, key, member, *members):
    found = data.make(key, Set)
    before = len(found)
    found.update(dict.fromkeys((member, *members)))
    return len(found) - before


@_command
def smembers(data, key):
    return Members(data.get(key, Set))


@_command
def sismember(data, key, member):
    return int(member in data.get(key, Set))


@_command
def srem(data, key, member, *members):
    return _removed(data, key, data.get(key, Set), (member, *members))


@_command
def zadd(data, key, score, member, *more):
    if len(more) % 2:
        raise RefusedError("ERR syntax error")
    words = (score, member, *more)
    scores = [_float(each) for each in words[::2]]
    found = data.make(key, Sorted)
    before = len(found)
    found.update(zip(words[1::2], scores, strict=True))
    return len(found) - before


@_command
def zrem(data, key, member, *members):
    return _removed(data, key, data.get(key, Sorted), (member, *members))


@_command
def zscore(data, key, member):
    return data.get(key, Sorted).get(member)


@_command
def zcard(data, key):
    return len(data.get(key, Sorted))


@_command
def zrangebyscore(data, key, least, most, *options):
    rest = [each.upper() for each in options]
    scored = b"WITHSCORES" in rest
    rest = [each for each in rest if each != b"WITHSCORES"]
    start, count = 0, None
    if rest:
        if rest[0] != b"LIMIT" or len(rest) != 3:
            raise RefusedError("ERR syntax error")
        start, count = _int(rest[1]), _int(rest[2])
    low, low_open = _bound(least)
    high, high_open = _bound(most)
    rows = sorted((score, member) for member, score in data.get(key, Sorted).items())
    rows = [
        (member, score)
        for score, member in rows
        if (low < score or (low == score and not low_open)) and (score < high or (score == high and not high_open))
    ]
    rows = rows[start : start + count if count is not None and count >= 0 else None]
    return Scored(rows) if scored else [member for member, _ in rows]


@_command
def zscan(data, key, cursor, *options):
    given = _options(options, b"COUNT")
    found = data.get(key, Sorted)
    following, names = _page(found, cursor, given.get(b"COUNT"), _PAGE)
    return [following, flat([(name, number(found[name])) for name in names])]


# ------------------------------------------------ streams


@_command
def xadd(data, key, id_, field, value, *more):
    if id_ != b"*" or len(more) % 2:
        raise RefusedError("ERR syntax error")
    stream = data.make(key, Stream)
    ms, nth = stream.last
    now = data.now_ms()
    stream.last = (now, 0) if now > ms else (ms, nth + 1)
    stream[stream.last] = [field, value, *more]
    return _id_text(stream.last)


@_command
def xlen(data, key):
    return len(data.get(key, Stream))


@_command
def xdel(data, key, id_, *ids):
    stream = data.get(key, Stream)
    if not data.exists(key):
        return 0
    return sum(stream.pop(_id(each, 0), None) is not None for each in (id_, *ids))


@_command
def xrange(data, key, start, end, *options):
    count = _options(options, b"COUNT").get(b"COUNT")
    first, after = _edge(start, 0)
    last, before = _edge(end, 2**64 - 1)
    rows = [
        [_id_text(each), list(fields)]
        for each, fields in data.get(key, Stream).items()
        if (first < each or (first == each and not after)) and (each < last or (each == last and not before))
    ]
    return rows[: _int(count)] if count is not None else rows


def _edge(text, nth):
    """Return an id, and whether it is itself left out."""
    if text == b"-":
        return (0, 0), False
    if text == b"+":
        return (2**64 - 1, 2**64 - 1), False
    return _id(text.removeprefix(b"("), nth), text.startswith(b"(")


def _id(text, nth):
    ms, dash, rest = text.partition(b"-")
    try:
        return int(ms), int(rest) if dash else nth
    except ValueError:
        raise RefusedError("ERR Invalid stream ID specified as stream command argument") from None


def _id_text(each):
    return b"%d-%d" % each


# ------------------------------------------------ words


def _removed(data, key, found, names):
    gone = [name for name in dict.fromkeys(names) if name in found]
    for name in gone:
        del found[name]
    if gone:
        data.shrunk(key, found)
    return len(gone)


def _options(words, *names):
    if len(words) % 2:
        raise RefusedError("ERR syntax error")
    given = {name.upper(): value for name, value in zip(words[::2], words[1::2], strict=True)}
    if given.keys() - set(names):
        raise RefusedError("ERR syntax error")
    return given


def _int(text):
    try:
        return int(text)
    except ValueError:
        raise RefusedError(NO_INTEGER) from None


def _float(text):
    try:
        value = float(text)
    except ValueError:
        raise RefusedError(NO_FLOAT) from None
    if math.isnan(value):
        raise RefusedError(NO_FLOAT)
    return value


def _bound(text):
    """Return a score, and whether it is itself left out. No text is 0."""
    try:
        return _float(text.removeprefix(b"(") or b"0"), text.startswith(b"(")
    except RefusedError:
        raise RefusedError("ERR min or max is not a float") from None
