"""While one peer sends whatever it likes, another caller's requests take hardly longer, and none of them fails."""

import time

from tests.envoy.messages import EXCHANGE, Books

from .stalls import Shape, attack


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
