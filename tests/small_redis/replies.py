"""Encode replies for a connection, by the version of the protocol that it chose."""


class Status(bytes):
    """Stand for a simple string, as OK is."""


class Text(bytes):
    """Stand for a text that version 3 marks as one, as INFO is."""


class Members(list):
    """Stand for a set."""


class Scored(list):
    """Stand for members with their scores: tuples of bytes and float."""


def encoded(reply: object, protocol: int) -> bytes:
    """Return the bytes of a reply."""
    kind = type(reply)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int:
        return b":%d\r\n" % reply
    if reply is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    if kind is list:
        return b"*%d\r\n" % len(reply) + b"".join([encoded(each, protocol) for each in reply])
    if kind is float:
        return b",%b\r\n" % number(reply) if protocol == 3 else encoded(number(reply), protocol)
    return _ENCODERS[kind](reply, protocol)


def number(value: float) -> bytes:
    """Return a score as text, without a fraction if it has none."""
    return b"%d" % value if value.is_integer() and abs(value) < 1e17 else repr(value).encode()


def refusal(text: str) -> bytes:
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode()


def flat(pairs: list[tuple]) -> list:
    return [each for pair in pairs for each in pair]


def _members(reply: Members, protocol: int) -> bytes:
    sign = b"~" if protocol == 3 else b"*"
    return sign + encoded(list(reply), protocol)[1:]


def _scored(reply: Scored, protocol: int) -> bytes:
    pairs = [list(pair) for pair in reply]
    return encoded(pairs if protocol == 3 else flat(pairs), protocol)


def _map(reply: dict, protocol: int) -> bytes:
    words = b"".join([encoded(each, protocol) for each in flat(list(reply.items()))])
    return (b"%%%d\r\n" % len(reply) if protocol == 3 else b"*%d\r\n" % (2 * len(reply))) + words


def _text(reply: Text, protocol: int) -> bytes:
    if protocol == 3:
        return b"=%d\r\ntxt:%b\r\n" % (len(reply) + 4, bytes(reply))
    return encoded(bytes(reply), protocol)


_ENCODERS = {
    Status: lambda reply, _: b"+%b\r\n" % bytes(reply),
    Text: _text,
    Members: _members,
    Scored: _scored,
    dict: _map,
    tuple: lambda reply, protocol: encoded(list(reply), protocol),
}
