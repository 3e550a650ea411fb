"""Connections to a machine over its network, for the loop of the simulation: bytes in and out, as of TCP.

What is written at once, a command or a pipeline, has one fate. It arrives in the order of its connection. After a
fault the connection is lost to its client, even if the server still carries out what was sent.
"""

import asyncio
import contextvars
import inspect
from collections import deque

from .network import LATE, PASS, REPLY_LOST, TWICE

# The call of a port that sends it: its name and its arguments.
CALL = contextvars.ContextVar("call", default=("connection", ()))


class Named:
    """A port's adapter of which the network knows the calls by their names."""

    def __init__(self, adapter):
        self._adapter = adapter

    def __getattr__(self, name):
        method = getattr(self._adapter, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args, **kwargs):
            token = CALL.set((name, args))
            try:
                return await method(*args, **kwargs)
            finally:
                CALL.reset(token)

        self.__dict__[name] = call
        return call


class Sockets:
    """What listens on a machine. `accept()` returns a session with the process that is there at that moment."""

    def __init__(self, host, accept):
        self._host, self._accept = host, accept

    async def connect(self, protocol, caller):
        """Return a connection, as the loop's `create_connection` does."""
        host = self._host
        await asyncio.sleep(0.0001 + host.rng.random() * 0.001)
        if host.down:
            raise ConnectionRefusedError("refused")
        socket = Socket(host, self._accept(), protocol, caller)
        protocol.connection_made(socket)
        return socket, protocol


class Socket(asyncio.Transport):
    """The client's end of one connection."""

    def __init__(self, host, session, protocol, caller):
        super().__init__()
        self._host, self._session, self._protocol, self._caller = host, session, protocol, caller
        self._life = host.life
        self._closed = self._ended = False
        self._sent = deque()  # what has not been carried out, oldest first
        self._answers = deque()  # on their way, oldest first; None: from here on nothing arrives
        self._answered_at = 0.0
        host.sockets[self] = True

    # ------------------------------------------------ the client's side

    def write(self, data):
        if not self._closed:
            batch = _Batch(self, self._session.commands(data))
            self._sent.append(batch)
            batch.send()

    def set_protocol(self, protocol):
        self._protocol = protocol

    def is_closing(self):
        return self._closed

    def close(self):
        if not self._closed:
            self._close()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self):
        self.close()

    def _close(self):
        self._closed = True
        self._host.sockets.pop(self, None)

    # ------------------------------------------------ the network's side

    def ends(self):
        """The process at the other end is gone: in order, or by a reset."""
        host = self._host
        later = max(0.0001 + host.rng.random() * 0.001, self._answered_at - host.loop.time())
        host.at(later, host.rng.choice((self.lost, self._end)))

    def _end(self):
        """The client may still write: what it writes is refused by a reset."""
        if not self._closed:
            self._ended = True
            if not self._protocol.eof_received():
                self.close()

    def lost(self, message="connection lost"):
        if not self._closed:
            self._close()
            self._protocol.connection_lost(ConnectionResetError(message))

    def carried_out(self):
        """Carry out, in their order, what has arrived."""
        while self._sent and self._sent[0].arrived:
            if self._sent[0].is_carried_out():
                self._sent.popleft()

    def answer(self, reply, fate, back):
        host = self._host
        self._answered_at = max(host.loop.time() + back, self._answered_at)
        later = self._answered_at - host.loop.time()
        if fate != LATE:
            self._answers.append(None if fate == REPLY_LOST else reply)
            host.at(later, self._receive)

    def _receive(self):
        reply = self._answers.popleft()
        if reply is None:
            self.lost("reply lost")
        elif not self._closed and not self._ended:
            self._protocol.data_received(reply)


class _Batch:
    """Commands that were written at once. Others' commands may come between its two parts, if it has two."""

    def __init__(self, socket, commands):
        self._socket, self._host = socket, socket._host
        self._name, self._args = CALL.get()
        self._parts = deque([commands])
        self._replies = []
        self.arrived = False

    def send(self):
        host, rng = self._host, self._host.rng
        self._fate = host.fate()
        self._about = ""
        if host.trace is not None:
            told = ", ".join(dict.fromkeys(self._socket._session.told(words) for words in self._parts[0]))
            self._about = host.told(self._socket._caller, self._name, self._args, self._fate, f" {told}")
        self._back = 0.0001 + rng.random() * 0.001
        commands = self._parts[0]
        if len(commands) > 1 and rng.random() < 0.3:
            first = rng.randrange(1, len(commands))
            self._parts = deque([commands[:first], commands[first:]])
        self._transmit(self._fate)

    def _transmit(self, fate):
        socket, host = self._socket, self._host
        there = 0.0001 + host.rng.random() * 0.002
        host.transmit(fate, there, socket._life, self._arrive, socket.lost, times_out=False)

    def _arrive(self):
        self.arrived = True
        self._socket.carried_out()

    def is_carried_out(self):
        """Carry out a part. Return whether it was the last one."""
        socket, host = self._socket, self._host
        self.arrived = False
        if not host.meets(socket._caller, self._name, socket._life):
            socket.lost()
            return True
        session, commands = socket._session, self._parts.popleft()
        replies = [session.reply(words) for words in commands]
        if self._fate == TWICE:
            replies = [session.reply(words) for words in commands]
        self._replies += replies
        if host.trace is not None:
            self._trace(commands, replies)
        if host.ambush is not None:
            host.ambush(socket._caller, self._name, after=True)
        if self._parts:
            self._transmit(PASS)
            return False
        socket.answer(b"".join(self._replies), self._fate, self._back)
        return True

    def _trace(self, commands, replies):
        refused = [reply[1:].decode().strip() for reply in replies if reply.startswith(b"-")]
        if self._fate != PASS or refused:
            told = f"{len(commands)} carried out"
            self._host.trace(f"{self._about}: {', '.join([told, *dict.fromkeys(refused)])}")
