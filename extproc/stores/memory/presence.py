"""Note replicas in memory, by the rules of `ports.Presence`."""

from extproc.ports.presence import FORGOTTEN_S, REPLICAS_AT_MOST, SILENCE_S


class Notes:
    """Hold when each replica was last noted. Instants are seconds of the store's clock."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def note(self, replica: str, now: float) -> dict[str, float]:
        """Note the replica. Return the seconds since each was noted, the longest unseen first."""
        self._pass_over_silence(now)
        self._at[replica] = now
        self._at = {each: at for each, at in self._at.items() if now - at <= FORGOTTEN_S}
        others = sorted(self._at.keys() - {replica}, key=self._at.__getitem__)
        return {each: now - self._at[each] for each in others[: REPLICAS_AT_MOST - 1]} | {replica: 0.0}

    def forget(self, replica: str, now: float, older_than_s: float) -> bool:
        """Forget the replica unless it was noted since then. Return whether it is not noted any more."""
        at = self._at.get(replica)
        if at is not None and now - at < older_than_s:
            return False
        self._at.pop(replica, None)
        return True

    def _pass_over_silence(self, now: float) -> None:
        silence_s = now - max(self._at.values(), default=now)
        skipped_s = silence_s - min(silence_s, SILENCE_S) if silence_s >= 0 else silence_s
        self._at = {replica: at + skipped_s for replica, at in self._at.items()}
