"""Know which replicas are here, by the notes that all of them leave in the store of one shard's counters."""

from collections.abc import Mapping
from typing import Final

# Replicas that are known as gone. Further ones make the longest known ones unknown, which only costs time.
_GONE_AT_MOST: Final = 1000


class Presence:
    """Keep what the last look at the notes showed (takeover.py looks)."""

    def __init__(self, replica: str) -> None:
        """Begin with nobody known. `replica` is this one."""
        self.replica = replica
        self._here: set[str] = set()
        self._gone: dict[str, None] = {}

    def looked(self, ages_s: Mapping[str, float], gone_s: float) -> None:
        """Take the ages of all notes; one that is older than `gone_s` is of a replica that is gone."""
        self._here = {replica for replica, age_s in ages_s.items() if age_s <= gone_s}
        for replica in self._here:
            self._gone.pop(replica, None)
        self._gone.update(dict.fromkeys(ages_s.keys() - self._here))
        while len(self._gone) > _GONE_AT_MOST:
            del self._gone[next(iter(self._gone))]

    def not_seen(self) -> None:
        """Take nobody for here: the notes can't be read."""
        self._here = set()

    def is_here(self, replica: str) -> bool:
        """Tell whether a replica was here at the last look."""
        return replica in self._here

    def place(self) -> int:
        """Return how many of the replicas that are here act before this one."""
        return sum(replica < self.replica for replica in self._here)

    def awaits(self, replica: str, waited_s: float, *, barrier_s: float, unseen_s: float) -> bool:
        """Tell whether a rebuild that waited so long waits on for a replica that has not registered.

        For one that is here up to `barrier_s`, for one that is gone not at all, for any other up to `unseen_s`.
        """
        if replica in self._here:
            return waited_s < barrier_s
        return replica not in self._gone and waited_s < unseen_s
