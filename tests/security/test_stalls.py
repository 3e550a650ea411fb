"""While one peer answers whatever it likes, another caller's requests take hardly longer, and none of them fails."""

import time

import pytest

from tests.envoy.messages import EXCHANGE, Books
from tests.sizes import sampled

from .answer_shapes import HONEST, SHAPES
from .speed import slowness
from .stalls import Shape, Stall, attack, attack_until

# In milliseconds of processor time, times `slowness`. On a machine with nothing else to do a turn takes up to 2, and a rise is below 5.
# What a stall took before there were steps is between 20 and 10,000.
_LONGEST_TURN_MS = 10.0
_MOST_RISE_MS = 20.0
_FREE = {"released"}
# Chunks of nothing but usage, for which the client did not ask.
_HIDDEN = ("data of usage", "data of odd usage")


# The quick form takes some of each kind.
_MANY = [name for name in SHAPES if "twenty" in name]
_SOME = [*sampled([name for name in SHAPES if name not in _MANY], 14), *sampled(_MANY, 2)]


def within_bounds(stall: Stall) -> bool:
    slow = slowness()
    return stall.longest_turn <= _LONGEST_TURN_MS * slow and stall.rise <= _MOST_RISE_MS * slow


def changed(shape, stall):
    """Return what the client got for the pieces of each answer, if it is not what the upstream sent."""
    pieces = [message.response_body.body for message in shape.messages() if message.HasField("response_body")]
    sent = b"".join(pieces)
    for replies in stall.passed:
        bodies = [reply.response_body.response for reply in replies if reply.HasField("response_body")]
        got = [
            body.body_mutation.body if body.HasField("body_mutation") else piece
            for body, piece in zip(bodies, pieces, strict=True)
        ]
        if b"".join(got) != sent:
            return got
    return None


@pytest.mark.parametrize("name", _SOME)
def test_no_answer_holds_up_others_and_it_passes_as_it_is_and_is_charged(name):
    shape = SHAPES[name]
    stall = attack_until(within_bounds, shape)
    assert within_bounds(stall), stall
    assert stall.failed == 0
    assert len(stall.ends) == shape.attackers * shape.times
    assert "error" in name or not {outcome for outcome, _ in stall.ends} & _FREE
    assert changed(shape, stall) is None or name.startswith(_HIDDEN)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_large_answer_is_hardly_noticed_and_settled_on_its_usage(name):
    longest = _LONGEST_TURN_MS / 2 * slowness()
    stall = attack_until(lambda stall: stall.longest_turn <= longest, SHAPES[name])
    assert stall.longest_turn <= longest, stall
    assert stall.failed == 0
    assert set(stall.ends) == {("settled", "usage")}


def test_the_measurement_sees_a_stall_and_whom_it_delays():
    class Stalling(Books):
        def close(self, reservation, settlement):
            until = time.thread_time() + 0.05
            while time.thread_time() < until:
                pass
            super().close(reservation, settlement)

    stall = attack(Shape(lambda: EXCHANGE, times=3), attacker=Stalling)
    assert stall.longest_turn >= 50
    assert stall.rise >= 49
    assert stall.spent >= 150
    assert (len(stall.ends), stall.failed) == (3, 0)
