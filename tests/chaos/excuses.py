"""Excuse the few requests that may be lost or charged unserved: the windows that docs/reliability.md states."""

from .sizes import SLACK

# A reservation that ended so shortly before is not in MongoDB yet. A busy machine needs longer to write it.
ENDED_S = min(0.5 * SLACK, 1.0)
# A reservation that is open for less than this is not saved in MongoDB yet.
YOUNG_S = 1.0
# A replica and Redis' memory are lost together: others take over what the replica left in this time.
TOGETHER_S = 2.0
# A rebuild waits so long for a replica that stands still.
BARRIER_S = 1.25
# A replica that is killed or paused so shortly after it was asked: nobody got the answer, and nothing says so yet.
DECIDING_S = min(0.5 * SLACK, 1.0)


def may_be_lost(asked, timeline):
    """Return the reason for which a served request may be in no ledger; None if there is none.

    Its replica was killed, and Redis lost its memory, within `TOGETHER_S`.
    """
    for killed_at in timeline.kills(asked.replica):
        for lost_at in (*timeline.lost, *timeline.failed_over):
            first, second = sorted((killed_at, lost_at))
            # A verdict needs a moment to the client.
            if asked.decided_at > first + ENDED_S or second > _others_may_act(first, timeline) + TOGETHER_S:
                continue
            # A failover loses what the other Redis does not have yet: a moment, whatever MongoDB has.
            all_of_it = lost_at in timeline.lost
            written = _written_until(first, timeline) if all_of_it else lost_at
            if asked.ended_at is not None and asked.ended_at <= first:
                if asked.ended_at >= written - ENDED_S:
                    return "ended, and not in MongoDB yet, when its replica and Redis' memory were lost together"
            elif asked.decided_at >= written - (YOUNG_S if all_of_it else ENDED_S):
                return "open for less than a second when its replica and Redis' memory were lost together"
    return None


def may_be_charged(asked, timeline):
    """Return the reason for which a request may be charged that the upstream never saw; None if there is none."""
    for outcome, moments, what in (
        ("broken", timeline.kills(asked.replica), "killed"),
        ("unavailable", timeline.kills(asked.replica), "killed"),
        ("given up", timeline.pauses(asked.replica), "paused"),
    ):
        if asked.outcome == outcome and any(at - DECIDING_S <= asked.sent_at <= at for at in moments):
            return f"its replica was {what} within {DECIDING_S * 1000:g} ms after it was asked"
    return None


def may_count_late(asked, timeline):
    """Return the reason for which what a served request took may be held by others too; None if there is none.

    Its replica stood still when Redis lost its memory, and for longer than a rebuild waits; and the request was too
    young to be saved. It counts again when the replica goes on.
    """
    for still in timeline.paused.get(asked.replica, []):
        open_then = asked.decided_at <= still.begin and (asked.ended_at is None or asked.ended_at > still.begin)
        if still.end - still.begin < BARRIER_S or not open_then or asked.decided_at < still.begin - YOUNG_S:
            continue
        losses = (*timeline.lost, *timeline.failed_over)
        if any(still.begin <= at <= min(still.end, still.begin + TOGETHER_S) for at in losses):
            return "open for less than a second when its replica stood still and Redis' memory was lost"
    return None


def _written_until(moment, timeline):
    """Return the moment up to which all entries are in MongoDB: the given one, or when MongoDB went away.

    Entries that waited meanwhile are written in the first seconds after MongoDB is back.
    """
    away = [w.begin for w in timeline.mongo_away if w.begin <= moment <= w.end + TOGETHER_S]
    return min([moment, *away])


def _others_may_act(moment, timeline):
    """Return the moment from which on others can write the entries of a dead replica: MongoDB has to be there."""
    return max(
        [moment, *(w.end for w in timeline.mongo_away if w.begin <= moment + TOGETHER_S and w.end >= moment)]
    )
