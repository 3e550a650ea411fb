"""Calls from a replica to a store, over a network that drops, delays and repeats them as a seed has it.

What is sent is carried out by the store's side, whatever becomes of the caller: a command may be carried out after
its caller gave up, was killed, or has sent others; it may be carried out though the answer gets lost.
"""

import contextvars
from dataclasses import dataclass

from extproc.ports.base import StoreError
from extproc.ports.counters import Closing

_SLOW_REPLY_S = 0.08
# What can become of one call.
PASS, SLOW, REFUSED, REPLY_LOST, HANGS, TWICE, LATE, SLOW_REPLY = range(8)
FATES = ("pass", "slow", "refused", "reply lost", "hangs", "twice", "late", "slow reply")


@dataclass(frozen=True, slots=True)
class Weather:
    """How likely each fate is, per thousand calls; what is left passes."""

    slow: int = 0
    refused: int = 0
    reply_lost: int = 0
    hangs: int = 0
    twice: int = 0
    late: int = 0
    slow_reply: int = 0

    def thresholds(self):
        sums, total = [], 0
        for fate, share in (
            (SLOW, self.slow),
            (REFUSED, self.refused),
            (REPLY_LOST, self.reply_lost),
            (HANGS, self.hangs),
            (TWICE, self.twice),
            (LATE, self.late),
            (SLOW_REPLY, self.slow_reply),
        ):
            total += share
            if share:
                sums.append((total / 1000, fate))
        return sums


CALM = Weather()


class Host:
    """The machine that a store runs on: up, refusing connections (down), or standing still (stopped)."""

    def __init__(self, loop, rng, name, trace, give_up_s):
        self.loop, self.rng, self.name, self.trace = loop, rng, name, trace
        self.give_up_s = give_up_s
        self.down = False
        self.stopped = False
        self.ambush = None  # called around each command
        self.life = 0  # commands of an earlier life are lost with its sockets
        self.stormy = False  # whether calls may meet anything but a pass
        self._away = []  # periods: when they began, and how long they were
        self.sockets = {}  # open connections, in their order
        self._queue = []
        self._thresholds = []

    def weather(self, weather):
        self._thresholds = weather.thresholds()
        self.stormy = self.stormy or bool(self._thresholds)

    def kill(self):
        """Its sockets are closed: what was sent and not carried out is lost."""
        self.life += 1
        self.refuse()
        self.stopped = False
        queue, self._queue = self._queue, []
        for _, _, lost in queue:
            lost()
        for socket in list(self.sockets):
            socket.ends()

    def refuse(self):
        self._goes_away()
        self.down = True

    def stop(self):
        self._goes_away()
        self.stopped = True

    def go_on(self):
        """It is back; what has waited is carried out."""
        if self.healthy:
            return
        self.down = self.stopped = False
        self._away[-1][1] = self.loop.time()
        queue, self._queue = self._queue, []
        for life, carry_out, _ in queue:
            if life == self.life:
                carry_out()

    def away_s(self, since, until):
        """For how long it was not there."""
        return sum(max(0.0, min(end, until) - max(start, since)) for start, end in self._away)

    def _goes_away(self):
        if self.healthy:
            self._away.append([self.loop.time(), float("inf")])

    @property
    def healthy(self):
        return not self.down and not self.stopped

    def fate(self):
        if self._thresholds:
            drawn = self.rng.random()
            for threshold, fate in self._thresholds:
                if drawn < threshold:
                    return fate
        return PASS

    async def call(self, caller, name, operation, args=()):
        """`operation` carries it out, at once and as a whole."""
        rng = self.rng
        answer = self.loop.create_future()
        fate = self.fate()
        about = self.told(caller, name, args, fate) if self.trace is not None else ""
        life = self.life
        there = 0.0001 + rng.random() * 0.002
        back = 0.0001 + rng.random() * 0.001

        def failed(error):
            if not answer.done():
                answer.set_exception(error)

        def lost(message="connection lost"):
            failed(StoreError(message, transient=True))

        def deliver(result, error):
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def carry_out():
            if not self.meets(caller, name, life):
                lost()
                return
            try:
                result, error = operation(), None
                if fate == TWICE:
                    result = operation()
            except Exception as raised:  # noqa: BLE001 - the caller's, whatever it is
                result, error = None, raised
            if self.trace is not None and (fate not in (PASS, REFUSED) or error is not None):
                self.trace(f"{about}: carried out: {error or 'done'}")
            if self.ambush is not None:
                self.ambush(caller, name, after=True)
            if fate == REPLY_LOST:
                self.at(back, lost, "reply lost")
            elif fate == SLOW_REPLY:
                self.at(_SLOW_REPLY_S, deliver, result, error)
            elif fate != LATE:
                self.at(back, deliver, result, error)

        self.transmit(fate, there, life, carry_out, lost, times_out=True)
        if fate != PASS:
            self.at(self.give_up_s, lost, "timeout")
        return await answer

    def told(self, caller, name, args, fate, further=""):
        """Trace something that is sent. Return what it is."""
        about = f"{caller}: {self.name}.{name}({', '.join(_named(args))}){further}"
        self.trace(f"{about}: {FATES[fate]}" + ("" if self.healthy else " (away)"))
        return about

    def meets(self, caller, name, life):
        """Let what waits for a command happen before it. Return whether the command is still carried out."""
        if self.ambush is None:
            return True
        self.ambush(caller, name, after=False)
        return self.life == life and not self.down

    def transmit(self, fate, there, life, carry_out, lost, *, times_out):
        """Let `carry_out` or `lost` come to pass, each at its time, as `fate` has it; both if it is late.

        `times_out`: who sent it gives up while the machine stands still.
        """
        rng = self.rng

        def arrive():
            if self.life != life or self.down:
                lost()
            elif self.stopped:
                self._queue.append((life, carry_out, lost))
                if times_out:
                    self.at(self.give_up_s, lost, "timeout")
            else:
                carry_out()

        if fate == REFUSED:
            self.at(there, lost, "refused")
        elif fate == LATE:
            self.at(there, lost, "no answer")
            self.at(rng.choice((0.05, 0.3, 1.0, 5.0, 15.0)) * rng.random(), arrive)
        elif fate == SLOW:
            self.at(rng.random() * rng.choice((0.1, 0.3, 1.0)), arrive)
        elif fate != HANGS:
            self.at(there, arrive)

    def at(self, seconds, callback, *args):
        """Call it so much later, in no process."""
        self.loop.call_later(seconds, callback, *args, context=_OUTSIDE)


_OUTSIDE = contextvars.Context()


def at_once(coroutine):
    """The result of a coroutine that waits for nothing: the memory stores are such."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    coroutine.close()
    raise AssertionError("a memory store waited")


def _named(value):
    """The reservations that a call is about, and the epoch."""
    if isinstance(value, list | tuple):
        return [name for each in value for name in _named(each)]
    if isinstance(value, Closing):
        return [f"{value.reservation.id} {value.outcome}"]
    name = getattr(value, "id", None) or (value if isinstance(value, str) else None)
    return [str(name)] if name is not None else []


class RemoteCounters:
    """A replica's client of the counters. Which epochs it works in is what it knew when it sent a command."""

    independent = False

    def __init__(self, host, server, caller, make):
        self._host, self._server, self._caller, self._make = host, server, caller, make
        self._sender = self._knowing({})

    def _knowing(self, adopted):
        sender = self._make(self._server())
        sender._adopted = adopted
        return sender

    def __getattr__(self, name):
        host, caller, server = self._host, self._caller, self._server

        async def call(*args, **kwargs):
            sender = self._sender

            def operation():
                # The server as it is when the command arrives, which may be another than when it was sent.
                sender.server = server()
                return at_once(getattr(sender, name)(*args, **kwargs))

            return await host.call(caller, name, operation, args)

        async def register(epoch, replica):
            sender = self._knowing(dict(self._sender._adopted))  # its own: it may arrive though nobody hears of it

            def operation():
                sender.server = server()
                return at_once(sender.register(epoch, replica))

            await host.call(caller, name, operation, (epoch, replica))
            # Known here when the answer is. What was sent before knows what was known then.
            self._sender = self._knowing(self._sender._adopted | {epoch.partition: epoch.id})

        if name == "register":
            call = register

        self.__dict__[name] = call
        return call


class RemoteStore:
    """A replica's client of the ledger, of what else is durable, or of the tenants' limits."""

    def __init__(self, host, store, caller):
        self._host, self._store, self._caller = host, store, caller

    def __getattr__(self, name):
        host, caller, method = self._host, self._caller, getattr(self._store, name)

        async def call(*args, **kwargs):
            return await host.call(caller, name, lambda: at_once(method(*args, **kwargs)), args)

        self.__dict__[name] = call
        return call

    async def append(self, entries, still=None):
        """The process asks before it sends; what was sent is carried out, however late."""
        if still is not None and not still():
            raise StoreError("the write came too late", transient=True)
        await self._host.call(self._caller, "append", lambda: at_once(self._store.append(entries)), (entries,))

    async def changes(self):
        raise StoreError("no change stream", transient=True)
        yield
