import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from extproc.local.ports import free_ports
from extproc.observe import logs
from extproc.ports.base import StoreError
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.redis import RedisCounters, RedisOptions

SECRET = "hunter2"


@pytest.fixture
def lines(capsys):
    """Sets logging up at a level, and returns what was written since, as objects. Puts everything back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noisy = {name: logging.getLogger(name).level for name in ("pymongo", "asyncio", "grpc")}

    def start(level="INFO"):
        logs.set_up(level)
        return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)


def test_a_line_is_one_json_object_with_time_level_logger_message_and_extras(lines):
    written = lines()
    logging.getLogger("extproc.x").warning("no %s", "decision", extra={"request_id": "r1", "items": 3})
    (line,) = written()
    time = datetime.fromisoformat(line.pop("time"))
    assert line == {
        "level": "WARNING",
        "logger": "extproc.x",
        "message": "no decision",
        "request_id": "r1",
        "items": 3,
    }
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(seconds=10)


def test_control_characters_ansi_and_line_ends_in_names_stay_inside_the_line(lines, capsys):
    logs.set_up("INFO")
    name = '\x1b[31mred\n{"level": "ERROR"}\r\x00\u2028\u202e é'
    logging.getLogger("extproc").info("limits of %s", name, extra={"tenant": name})
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert text.isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["tenant"] == name
    lines()  # the fixture puts everything back


def test_an_exception_is_a_field_of_its_line(lines):
    written = lines()
    try:
        int("two\nlines")
    except ValueError:
        logging.getLogger("extproc").exception("stream failed")
    (line,) = written()
    assert line["message"] == "stream failed"
    assert "Traceback (most recent call last):\n" in line["exc_info"]


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("DEBUG", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("INFO", ["INFO", "WARNING", "ERROR"]),
        ("WARNING", ["WARNING", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_the_level_is_the_least_that_is_written(lines, level, seen):
    written = lines(level)
    for name in ("DEBUG", "INFO", "WARNING", "ERROR"):
        logging.getLogger("extproc.any").log(getattr(logging, name), "x")
    assert [line["level"] for line in written()] == seen


@pytest.mark.parametrize("name", ["pymongo.command", "asyncio", "grpc._cython"])
def test_drivers_are_heard_from_warnings_on_only_even_at_debug(lines, name):
    # PyMongo's debug lines hold whole commands, documents included.
    written = lines("DEBUG")
    logging.getLogger(name).debug("x")
    logging.getLogger(name).info("x")
    logging.getLogger(name).warning("heard")
    assert [line["message"] for line in written()] == ["heard"]
    written = lines("ERROR")
    logging.getLogger(name).warning("x")
    assert written() == []


def test_setting_up_twice_writes_each_line_once(lines):
    lines()
    written = lines()
    logging.getLogger("extproc").info("once")
    assert len(written()) == 1


# Passwords.


async def refused(use):
    with pytest.raises(StoreError) as raised:
        await use
    return str(raised.value)


async def test_no_message_of_a_store_that_is_away_holds_its_password(lines):
    written = lines("DEBUG")
    redis_port, mongo_port = free_ports(2)
    counters = RedisCounters(RedisOptions(f"redis://user:{SECRET}@127.0.0.1:{redis_port}/0"))
    mongo = Mongo(MongoOptions(f"mongodb://user:{SECRET}@127.0.0.1:{mongo_port}/?authSource=admin", timeout_s=0.2))
    try:
        messages = [await refused(counters.ping()), await refused(mongo.ping())]
    finally:
        await counters.aclose()
        await mongo.aclose()
    for message in messages:
        logging.getLogger("extproc").error("not ready", extra={"error": message})
    assert all("can't be reached" in message for message in messages)
    texts = json.dumps(written())
    assert "not ready" in texts
    assert SECRET not in texts


@pytest.mark.parametrize(
    "reply",
    [
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"-ERR AUTH <password> called without any password configured for the default user.\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"garbage\r\n",
    ],
)
async def test_no_message_of_a_redis_that_refuses_holds_the_password(reply):
    async def answer(reader, writer):
        await reader.read(1024)
        writer.write(reply * 4)
        await writer.drain()
        await reader.read(1024)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    counters = RedisCounters(RedisOptions(f"redis://user:{SECRET}@127.0.0.1:{port}/0"))
    try:
        message = await refused(counters.ping())
    finally:
        await counters.aclose()
        server.close()
        await server.wait_closed()
    assert SECRET not in message
    assert message.startswith("Redis")


async def test_what_is_logged_while_a_request_is_served_carries_its_id_and_no_other(lines):
    written = lines("DEBUG")
    log = logging.getLogger("extproc.x")

    async def serve(name):
        logs.request_id.set(name)
        await asyncio.sleep(0)
        log.debug("one")
        log.debug("other", extra={"request_id": "its own"})

    await asyncio.gather(*(asyncio.create_task(serve(name)) for name in ("r1", "r2")))
    log.debug("nobody's")
    found = [(line["message"], line.get("request_id")) for line in written() if line["logger"] == "extproc.x"]
    assert sorted(found, key=str) == [
        ("nobody's", None), ("one", "r1"), ("one", "r2"), ("other", "its own"), ("other", "its own"),
    ]  # fmt: skip
