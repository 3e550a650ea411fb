"""One process of the server, and the connections to it."""

import asyncio
import hashlib
import time
from collections.abc import Callable

import hiredis

from .commands import carry_out
from .replies import Status, Text, encoded, refusal
from .scripts import lua
from .values import Data, RefusedError

_OK = Status(b"OK")


class Process:
    """Hold what a process has beside its keys: its id, and the scripts that were loaded into it."""

    def __init__(self, data: Data, run_id: str) -> None:
        self.data = data
        self.run_id = run_id
        self.scripts: dict[bytes, bytes] = {}  # digest -> text
        self.names: dict[bytes, str] = {}  # text -> the name of a script, for people
        self._lua = lua()

    def load(self, text: bytes) -> bytes:
        """Keep a script. Return its digest."""
        self._lua.compiled(text)
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self.scripts[digest] = text
        return digest

    def evaluate(self, digest: bytes, count: bytes, *words: bytes) -> object:
        text = self.scripts.get(digest.lower())
        if text is None:
            raise RefusedError("NOSCRIPT No matching script. Please use EVAL.")
        keys = int(count)
        data = self.data
        return self._lua.run(
            text, list(words[:keys]), list(words[keys:]), lambda command: carry_out(data, command)
        )

    def info(self) -> bytes:
        return b"# Server\r\nredis_version:7.0.0\r\nrun_id:%b\r\n" % self.run_id.encode()


class Session:
    """Serve one connection: bytes in, commands, replies, bytes out."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._protocol = 2
        self._reader = hiredis.Reader()

    def commands(self, received: bytes) -> list[list[bytes]]:
        """Return the commands that are complete with these bytes."""
        self._reader.feed(received)
        found = []
        while (words := self._reader.gets()) is not False:
            found.append(words)
        return found

    def reply(self, words: list[bytes]) -> bytes:
        """Carry a command out, as a whole. Return its encoded reply."""
        function = _OF_THE_PROCESS.get(words[0].upper())
        try:
            reply = function(self, *words[1:]) if function else carry_out(self._process.data, words)
        except RefusedError as error:
            return refusal(str(error))
        return encoded(reply, self._protocol)

    def told(self, words: list[bytes]) -> str:
        """Return the name of a command or a script with its first key, for people."""
        process, name = self._process, words[0]
        if name == b"EVALSHA":
            text = process.scripts.get(words[1], b"")
            name, words = process.names.get(text, "unknown script").encode(), words[2:]
        return b" ".join([name, *words[1:2]])[:60].decode(errors="replace")

    # ------------------------------------------------ commands about the process, not its keys

    def _hello(self, version: bytes = b"2", *_: bytes) -> object:
        self._protocol = int(version)
        return {b"server": b"redis", b"version": b"7.0.0", b"proto": self._protocol, b"role": b"master"}

    def _client(self, what: bytes, *_: bytes) -> object:
        if what.upper() not in (b"SETINFO", b"SETNAME"):
            raise RefusedError(f"ERR unknown subcommand '{what.decode()}'")
        return _OK

    def _info(self, *_: bytes) -> object:
        return Text(self._process.info())

    def _script(self, what: bytes, *words: bytes) -> object:
        if what.upper() != b"LOAD":
            raise RefusedError(f"ERR unknown subcommand '{what.decode()}'")
        return self._process.load(*words)

    def _evalsha(self, *words: bytes) -> object:
        return self._process.evaluate(*words)


_OF_THE_PROCESS: dict[bytes, Callable[..., object]] = {
    b"HELLO": Session._hello,
    b"CLIENT": Session._client,
    b"INFO": Session._info,
    b"SCRIPT": Session._script,
    b"EVALSHA": Session._evalsha,
    b"SELECT": lambda *_: _OK,
}


async def listen(port: int) -> asyncio.Server:
    """Serve on a real socket of this machine, by its clock."""
    process = Process(Data(time.time), "0" * 40)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(process)
        try:
            while received := await reader.read(65536):
                writer.writelines([session.reply(words) for words in session.commands(received)])
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port)
