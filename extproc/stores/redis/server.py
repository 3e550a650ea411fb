"""One Redis server as scripts see it: whichever process answers at its address, and the scripts loaded into it.

The id of the process (`run_id` in INFO) is part of every script's text. So a script's digest is good for one
process: a server that was restarted, or another one that took over, answers NOSCRIPT instead of counting in what
may have lost writes. Only then is its id read and are the scripts loaded, both over one connection that is never
replaced in between: a script that names one process can't get into another.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

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
# The driver sends a command again if its connection breaks. A reserve might then be denied at the second try, and
# held by the first one, which arrives later: nobody would know of that hold.
_SENT_ONCE: Final = "reserve"
_RUN_ID = re.compile(rb"^run_id:([0-9a-f]+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its KEYS and ARGV, or (without a script) a command with its arguments."""

    partition: int
    script: str
    keys: Sequence[str]
    args: Sequence[Argument]


def command(partition: int, *words: Argument) -> Call:
    """A command that is no script."""
    return Call(partition, "", (), words)


class Server:
    """A client of one server. Raises the driver's errors."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        self._digests: dict[str, str] = {}
        self._loads = 0
        self._loading = asyncio.Lock()

    async def call(self, call: Call) -> Any:
        try:
            loads = await self._loaded() if call.script else self._loads
            try:
                return await self._sent(call)
            except NoScriptError:
                await self._load(loads)
                return await self._sent(call)
        except ReadOnlyError:
            await self._leave()
            raise

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """All in one round trip, not atomic. A call's error is in the place of its reply, as Redis sent it."""
        loads = await self._loaded() if any(call.script for call in calls) else self._loads
        replies = await self._send(calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self._load(loads)
            replies = await self._send(calls)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await self._leave()
        return replies

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _loaded(self) -> int:
        """How often the scripts were loaded; at least once."""
        if not self._loads:
            await self._load(0)
        return self._loads

    def _words(self, call: Call) -> tuple[Argument, ...]:
        if not call.script:
            return tuple(call.args)
        return ("EVALSHA", self._digests[call.script], len(call.keys), *call.keys, *call.args)

    async def _sent(self, call: Call) -> Any:
        if call.script == _SENT_ONCE:
            return await self._send_once(self._words(call))
        return await self._execute(*self._words(call))

    async def _send_once(self, words: Sequence[Argument]) -> Any:
        """Send a command that the server may receive once at the most, unlike one that the driver sends.

        A connection that broke before anything was sent is opened again. One that breaks later leaves unknown what
        becomes of the command, and so raises.
        """
        pool: Any = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            if _has_ended(connection):
                await connection.disconnect(nowait=True)
            try:
                await connection.send_command(*words)
            except RedisConnectionError:  # it was reset while idle
                await connection.send_command(*words)
            return await connection.read_response()
        finally:
            await pool.release(connection)

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command(*self._words(call))
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    async def _leave(self) -> None:
        """What answers is a replica now: the next call looks for the master anew, where a name leads to it."""
        await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _load(self, loads: int) -> None:
        """Loads all scripts, unless somebody did so since `loads` was read."""
        async with self._loading:
            if self._loads != loads:
                return
            pool: Any = self._client.connection_pool
            connection = await pool.get_connection()
            try:
                (info,) = await _exchange(connection, [("INFO", "server")])
                texts = [script_text(name, _run_id(info)) for name in _SCRIPTS]
                digests = await _exchange(connection, [("SCRIPT", "LOAD", text) for text in texts])
            except BaseException:
                await connection.disconnect(nowait=True)  # what it would answer next is nobody's
                raise
            finally:
                await pool.release(connection)
            self._digests = dict(zip(_SCRIPTS, (str(digest, "ascii") for digest in digests), strict=True))
            self._loads += 1


def _has_ended(connection: Any) -> bool:
    """Return whether the server has closed a connection. The pool hands such ones out."""
    reader: asyncio.StreamReader | None = connection._reader  # noqa: SLF001 - the driver does not tell
    return reader is not None and reader.at_eof()


def _run_id(info: bytes) -> str:
    found = _RUN_ID.search(info)
    if found is None:
        raise RedisError("the server does not say its run_id")
    return str(found[1], "ascii")


def script_text(name: str, run_id: str) -> str:
    """The script for one process: its first line as it is, then the process and the guard, then the rest."""
    first, _, rest = _lua(name).partition("\n")
    return f"{first}\nlocal RUN = '{run_id}'\n{_lua('epoch')}{rest}"


def _lua(name: str) -> str:
    return (files("extproc.stores.redis") / "lua" / f"{name}.lua").read_text()


async def _exchange(connection: Any, commands: Sequence[tuple[str, ...]]) -> list[bytes]:
    """Sends commands over this very connection to the process that it leads to; never over a new one."""
    if not connection.is_connected:
        raise RedisConnectionError("the connection was lost")
    # Without a health check: that one would connect again.
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    replies = []
    for _ in commands:
        reply = await connection.read_response(disable_decoding=True)
        if isinstance(reply, ResponseError):
            raise reply
        replies.append(reply)
    return replies
