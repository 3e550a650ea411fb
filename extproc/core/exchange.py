"""Run one HTTP exchange as a state machine: an event goes in, effects come out. It knows no transport.

The order of effects is the order in which they are carried out. After each `Admitted` there is exactly one
`Close`, whatever happens; after `Finish` nothing follows.

    Started -> ReadingBody -> Deciding -> Forwarded -> Answered -> Done
       |         |  |   ^        ^ |
       |         |  v   |        | |
       |         | ReadingApart -+ |          (a large body)
       |         +-----------------+--> rejected: Done
       +--> Inspecting --> Done          (a caller that asks for its quota)
       +--> Done                         (a path that is not metered, or a tenant at its cap)

The phases up to the decision are in request_phases.py, the others in answer_phases.py.
"""

from collections.abc import Sequence

from extproc.core.events import Effect, Event, ResponseBody, StreamClosed
from extproc.core.phase import ExchangeRules, Phase
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.request.in_flight import Place
from extproc.core.request_phases import Started


class Exchange:
    """Move one exchange through its phases. Not thread-safe, not reusable."""

    __slots__ = ("_phase", "_place")

    def __init__(self, rules: ExchangeRules, route: Route = NO_ROUTE) -> None:
        self._place = Place(rules.in_flight)
        self._phase: Phase = Started(rules, route, self._place)

    def receive(self, event: Event) -> list[Effect]:
        """Return the effects of an event. Raise `ProtocolError` if it can't come now, and nothing else.

        From its head until `StreamClosed` a metered request counts as in flight.
        """
        if isinstance(event, StreamClosed):
            self._place.leave()
        self._phase, effects = self._phase.receive(event)
        return effects

    def read_at_once(self, event: ResponseBody) -> Sequence[Effect] | None:
        """Return the effects of a piece in the middle of an answer; None if `receive` has to take it.

        They are carried out at once: a hold that grows, and what the client gets for the piece.
        """
        return self._phase.read_at_once(event)

    @property
    def awaits_request(self) -> bool:
        """Tell whether the request is not whole yet."""
        return self._phase.awaits_request

    def give_up(self) -> list[Effect]:
        """Return the effects of a request whose rest takes too long."""
        self._phase, effects = self._phase.give_up()
        return effects
