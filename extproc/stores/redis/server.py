"""One Redis server as scripts see it: whichever process answers at its address, and the scripts loaded into it.

The id of the process (`run_id` in INFO) is part of every script's text. So a script's digest is good for one
process: a server that was restarted, or another one that took over, has other scripts, and does not count in what
may have lost writes. The id is read and the scripts are loaded over each connection by itself, before anything is
sent there: a script that names one process can't get into another.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from extproc.stores.redis.pipeline import Pipeline

Argument = str | int | float | bytes
_SCRIPTS: Final = (
    "reserve",
    "close",
    "renew",
    "begin",
    "register",
    "complete",
    "clear",
    "install",
    "forget",
    "written",
    "aside",
    "seen",
    "unseen",
    "opened",
    "generation",
)
# A command is sent again if its connection breaks. A reserve might then be denied at the second try, and held by
# the first one, which arrives later: nobody would know of that hold.
_SENT_ONCE: Final = "reserve"
# Notes that this replica is here. It has a connection of its own, so that nothing else makes it late.
_OF_PRESENCE: Final = "seen"
# Unanswered for so long, a connection is not waited for any longer: its server hangs, or nothing leads to it.
SILENT_S: Final = 0.5
PRESENCE_SILENT_S: Final = 0.4
# So many commands do not keep a request waiting.
_FEW: Final = 64
_RUN_ID = re.compile(rb"^run_id:([0-9a-f]+)\r?$", re.MULTILINE)


class Call(Struct, frozen=True):
    """A script with its KEYS and ARGV, or (without a script) a command with its arguments."""

    partition: int
    script: str
    keys: Sequence[str]
    args: Sequence[Argument]


def command(partition: int, *words: Argument) -> Call:
    """A command that is no script."""
    return Call(partition, "", (), words)


class Server:
    """A client of one server. Raises the driver's errors.

    Commands of requests share one connection. Many commands at once have another one, so that no request waits for
    the replies to all of them. A third one tells other replicas that this one is here: if that waited behind a
    request that hangs, the replica would seem gone. It is given up sooner, because nobody else waits there.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._callbacks: Mapping[Any, Callable[..., Any]] = client.response_callbacks
        self._of_requests = _Lane(client)
        self._of_many = _Lane(client)
        self._of_presence = _Lane(client, silent_s=PRESENCE_SILENT_S)
        self._lanes = (self._of_requests, self._of_many, self._of_presence)

    async def call(self, call: Call) -> Any:
        lane = self._of_presence if call.script == _OF_PRESENCE else self._of_requests
        connection = lane.connection or await lane.connected()
        sent_once = call.script == _SENT_ONCE
        try:
            reply = await self._sent(connection, call)
        except RedisConnectionError:
            if sent_once:
                raise
            connection = await lane.connected()
            reply = await self._sent(connection, call)
        except asyncio.CancelledError:
            lane.given_up(connection)
            raise
        if isinstance(reply, NoScriptError):
            await connection.load()
            reply = await self._sent(connection, call)
        if isinstance(reply, Exception):
            if isinstance(reply, ReadOnlyError):
                self.leave()
            raise reply
        return self._read(call, reply)

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """All in one round trip, not atomic. A call's error is in the place of its reply, as Redis sent it."""
        lane = self._of_requests if len(calls) <= _FEW else self._of_many
        connection = lane.connection or await lane.connected()
        try:
            replies = await connection.call_all(calls)
        except RedisConnectionError:
            connection = await lane.connected()
            replies = await connection.call_all(calls)
        except asyncio.CancelledError:
            lane.given_up(connection)
            raise
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await connection.load()
            replies = await connection.call_all(calls)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            self.leave()
        return [self._read(call, reply) for call, reply in zip(calls, replies, strict=True)]

    def leave(self) -> None:
        """End all connections: the next call looks anew where the server is."""
        for lane in self._lanes:
            lane.leave()

    async def aclose(self) -> None:
        for lane in self._lanes:
            await lane.aclose()
        await self._client.aclose()

    @staticmethod
    def _sent(connection: "_Connection", call: Call) -> asyncio.Future[Any]:
        return connection.pipeline.send(connection.words(call))

    def _read(self, call: Call, reply: Any) -> Any:
        """Return a reply as redis-py gives it, which depends on the command."""
        if call.script or isinstance(reply, Exception):
            return reply
        callback = self._callbacks.get(str(call.args[0]))
        return reply if callback is None else callback(reply)


class _Connection:
    """One connection to one process, with the scripts that were loaded over it."""

    def __init__(self, pipeline: Pipeline, connection: Any) -> None:
        self.pipeline = pipeline
        self._connection = connection  # redis-py's: it owns what the transport is made of
        self._digests: dict[str, str] = {}
        self._loads = 0
        self._loading = asyncio.Lock()

    def words(self, call: Call) -> tuple[Argument, ...]:
        if not call.script:
            return tuple(call.args)
        return ("EVALSHA", self._digests[call.script], len(call.keys), *call.keys, *call.args)

    def call_all(self, calls: Sequence[Call]) -> asyncio.Future[list[Any]]:
        return self.pipeline.send_all([self.words(call) for call in calls])

    async def load(self) -> None:
        """Load all scripts, unless somebody does so already."""
        loads = self._loads
        async with self._loading:
            if self._loads != loads:
                return
            info = await self.pipeline.send(("INFO", "server"))
            _raise_from([info])
            run_id = _run_id(info if isinstance(info, bytes) else bytes(info))
            digests = await self.pipeline.send_all(
                [("SCRIPT", "LOAD", script_text(name, run_id)) for name in _SCRIPTS]
            )
            _raise_from(digests)
            self._digests = dict(zip(_SCRIPTS, (str(digest, "ascii") for digest in digests), strict=True))
            self._loads += 1

    def end(self) -> None:
        self.pipeline.abort()


class _Lane:
    """Keep one connection, and make it again when it has ended. Callers share the making."""

    def __init__(self, client: Redis, silent_s: float = SILENT_S) -> None:
        self._client = client
        self._silent_s = silent_s
        self._made: _Connection | None = None
        self._making: asyncio.Task[_Connection] | None = None

    @property
    def connection(self) -> _Connection | None:
        """Return the connection if it is open."""
        made = self._made
        return made if made is not None and made.pipeline.is_open else None

    async def connected(self) -> _Connection:
        """Return the connection, made anew if it is not open. Raise the driver's errors."""
        if (connection := self.connection) is not None:
            return connection
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(_seen)
        return await asyncio.shield(self._making)

    def given_up(self, connection: _Connection) -> None:
        """End a connection on which a caller waited in vain, if nobody gets an answer there."""
        if connection.pipeline.is_silent(self._silent_s):
            connection.end()

    def leave(self) -> None:
        if self._made is not None:
            self._made.end()

    async def aclose(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait({self._making})
        self.leave()

    async def _make(self) -> _Connection:
        """Connect by redis-py, and take the connection over once it is logged in."""
        pool: Any = self._client.connection_pool
        driver = pool.make_connection()
        async with asyncio.timeout(driver.socket_connect_timeout):
            try:
                await driver.connect()
                pipeline = Pipeline(asyncio.get_running_loop())
                # redis-py has no way to hand a connection out. Its objects close the transport when they go.
                pipeline.take_over(driver._writer.transport)  # noqa: SLF001
                made = _Connection(pipeline, driver)
                await made.load()
            except BaseException:
                await driver.disconnect(nowait=True)
                raise
        self._made = made
        return made


def _seen(task: asyncio.Task[_Connection]) -> None:
    """Whoever waits gets its error too; where nobody does, the next call finds out."""
    if not task.cancelled():
        task.exception()


def _raise_from(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _run_id(info: bytes) -> str:
    found = _RUN_ID.search(info)
    if found is None:
        raise RedisError("the server does not say its run_id")
    return str(found[1], "ascii")


def script_text(name: str, run_id: str) -> str:
    """The script for one process: its first line as it is, then the process and the guard, then the rest."""
    first, _, rest = _lua(name).partition("\n")
    return f"{first}\nlocal RUN = '{run_id}'\n{_lua('epoch')}{rest}"


@cache
def _lua(name: str) -> str:
    return (files("extproc.stores.redis") / "lua" / f"{name}.lua").read_text()
