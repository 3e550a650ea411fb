"""The server of the simulation answers as a real one does, to the commands and in the scripts that it knows."""

import random

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.sizes import sized

KEYS = ("h", "s", "z", "x", "other")
FIELDS = ("a", "b", "c")
NUMBERS = ("0", "1", "-2", "7", "1.5", "-inf", "+inf", "inf", "nan", "x", "", "1772345678.25", "9007199254740993")
STEPS = 400


@pytest_asyncio.fixture
async def both(small_redis, valkey):
    """Two clients of empty servers, of which the second is real."""
    clients = [
        Redis.from_url(part.url, protocol=3, single_connection_client=True) for part in (small_redis, valkey)
    ]
    for client in clients:
        await client.flushall()
    yield clients
    for client in clients:
        await client.aclose()


async def answer(client, words):
    """Return the reply; of an error its kind and its code, which the driver leaves out if it is ERR."""
    try:
        return await client.execute_command(*words)
    except RedisError as error:
        code = str(error).split(" ")[0]
        return f"{type(error).__name__} {code if code.isupper() else ''}"


def command(rng):
    """Return any command, on a key of any kind, often with something wrong."""
    key, field, number = rng.choice(KEYS), rng.choice(FIELDS), rng.choice(NUMBERS)
    end = rng.choice(["(", ""]) + rng.choice(NUMBERS)
    return rng.choice(
        [
            ("PING",),
            ("EXISTS", key, rng.choice(KEYS)),
            (rng.choice(["DEL", "UNLINK"]), key, *rng.choice([(), (rng.choice(KEYS),)])),
            ("EXPIRE", key, rng.choice(["1000", "2000", "-1", "0", "x"]), *rng.choice([(), ("GT",)])),
            ("EXPIREAT", key, rng.choice(["1", "4000000000", "4000000001"]), *rng.choice([(), ("GT",), ("gt",)])),
            ("EXPIRETIME", key),
            ("HGET", key, field),
            ("HMGET", key, field, rng.choice(FIELDS)),
            ("HGETALL", key),
            ("HSET", key, field, number, *rng.choice([(), ("d",), ("d", "1")])),
            ("HDEL", key, field, field, rng.choice(FIELDS)),
            ("HINCRBY", key, field, number),
            ("SADD", key, field, rng.choice(FIELDS)),
            ("SREM", key, field, rng.choice(FIELDS)),
            ("SMEMBERS", key),
            ("SISMEMBER", key, field),
            ("ZADD", key, number, field, *rng.choice([(), ("3", "d"), ("3",)])),
            ("ZREM", key, field, rng.choice(FIELDS)),
            ("ZSCORE", key, field),
            ("ZCARD", key),
            ("ZRANGEBYSCORE", key, end, rng.choice(NUMBERS)),
            ("ZRANGEBYSCORE", key, "-inf", end, "WITHSCORES", "LIMIT", "0", rng.choice(["1", "2", "-1", "x"])),
            ("ZRANGEBYSCORE", key, "-inf", "+inf", "LIMIT", "1", "1"),
            ("ZSCAN", key, "0", "COUNT", "100"),
            ("XLEN", key),
            ("XDEL", key, rng.choice(["1-0", "5", "x"])),
            ("XRANGE", key, rng.choice(["-", "1", "(1-0", "x"]), rng.choice(["+", "1", "5-0", "(5"])),
            ("NONSENSE", key),
            ("HGET", key),
        ]
    )


@pytest.mark.parametrize("seed", range(sized(6, 60)))
async def test_a_command_has_the_reply_of_a_real_server(both, seed):
    rng = random.Random(seed)
    for _ in range(STEPS):
        words = command(rng)
        small, real = [await answer(client, words) for client in both]
        if words[0] == "ZSCAN" and not isinstance(small, str):
            small, real = sorted(small[1]), sorted(real[1])
        assert small == real, words
    for key in KEYS:
        small, real = [await answer(client, ("PTTL", key)) for client in both]
        assert small == pytest.approx(real, abs=60_000), key


async def test_a_stream_has_ids_that_rise_and_gives_its_entries_in_their_order(both):
    for client in both:
        ids = [await client.xadd("x", {"n": number}) for number in range(30)]
        assert ids == sorted(ids, key=lambda each: tuple(map(int, each.split(b"-"))))
        entries = await client.xrange("x")
        assert [entry for entry, _ in entries] == ids
        assert [int(fields[b"n"]) for _, fields in entries] == list(range(30))
        assert await client.xrange("x", b"(" + ids[3], ids[6], count=2) == entries[4:6]
        assert await client.xrange("x", ids[5], ids[5]) == [entries[5]]
        assert await client.xdel("x", ids[0], ids[0], ids[2]) == 2
        assert await client.xlen("x") == 28
        await client.xdel("x", *ids)
        assert await client.exists("x") == 1


async def test_a_walk_finds_every_key_and_every_member(both):
    for client in both:
        for number in range(300):
            await client.hset(f"tw:{{{number}}}", "a", 1)
            await client.zadd("z", {f"m{number}": number / 4})
        assert len([key async for key in client.scan_iter("tw:{*")]) == 300
        assert dict([each async for each in client.zscan_iter("z")]) == {b"m%d" % n: n / 4 for n in range(300)}


SCRIPTS = [
    "return 1",
    "return 3.99",
    "return -3.99",
    "return 'text'",
    "return true",
    "return false",
    "return nil",
    "return {}",
    "return {1, 2.5, 'a', true, false, {7, {8}}, nil, 9}",
    "return {err = 'UNREADY no'}",
    "return {ok = 'fine'}",
    "return redis.error_reply('UNREADY no')",
    "return redis.status_reply('fine')",
    "return {KEYS[1], KEYS[2] or 'none', ARGV[1], #ARGV}",
    "return redis.call('HMGET', 'h', 'a', 'b')",
    "return redis.call('HMGET', 'h', 'a', 'b')[2] == false",
    "return redis.call('HGET', 'none', 'a') == false",
    "return redis.call('HSET', 'h', 'n', 1.0, 'm', 2.5, 'k', 9007199254740992) and redis.call('HGETALL', 'h')",
    "return redis.call('ZSCORE', 'z', 'a')",
    "return type(redis.call('ZSCORE', 'z', 'a'))",
    "return redis.call('ZRANGEBYSCORE', 'z', '-inf', '+inf', 'WITHSCORES')",
    "return redis.call('SMEMBERS', 's')",
    "return redis.call('XRANGE', 'x', '-', '+')[1][2]",
    "return #redis.call('XRANGE', 'x', '5', '6')",
    "return redis.call('DEL', unpack(KEYS))",
    "return redis.call('EXISTS', 'h') == 1",
    "return redis.call('PING').ok",
    "return redis.call('HGET', 's', 'a')",
    "return redis.call('NONSENSE')",
    "return redis.call('HGET', 'h')",
    "return redis.call('HGET', 'h', {})",
    "return redis.call('HGET', 'h', nil)",
    "return tonumber(ARGV[1]) + 1",
    "return tonumber('x') + 1",
    "return nowhere",
    "made = 1",
    "return string.format('%d %s', 3, table.concat({1, 2.5}, ' '))",
    "return math.floor(7 / 2) + math.ceil(0.2) + math.max(1, 2)",
]


@pytest.mark.parametrize("text", SCRIPTS)
async def test_a_script_has_the_reply_of_a_real_server(both, text):
    replies = []
    for client in both:
        await client.hset("h", mapping={"a": "1"})
        await client.zadd("z", {"a": 1.5, "b": 2})
        await client.sadd("s", "m")
        await client.xadd("x", {"id": "i", "entry": "e"})
        digest = await client.script_load(text)
        replies.append((digest, await answer(client, ("EVALSHA", digest, 2, "one", "two", "7"))))
    assert replies[0] == replies[1]


async def test_a_script_that_is_not_loaded_is_unknown(both):
    replies = [await answer(client, ("EVALSHA", "0" * 40, 0)) for client in both]
    assert replies[0] == replies[1]
    assert replies[0].startswith("NoScriptError")


async def test_a_script_that_is_no_lua_is_refused(both):
    replies = [await answer(client, ("SCRIPT", "LOAD", "return return")) for client in both]
    assert replies[0] == replies[1]
