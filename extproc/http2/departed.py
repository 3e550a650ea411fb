"""Remember the streams that we have ended while their peer may still send on them."""


class Departed:
    """Hold the numbers of such streams: the last `most` of them."""

    __slots__ = ("_most", "_streams")

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: dict[int, None] = {}

    def add(self, stream: int) -> None:
        """Remember a stream, and forget the oldest if there are too many."""
        self._streams[stream] = None
        if len(self._streams) > self._most:
            del self._streams[next(iter(self._streams))]

    def knows(self, stream: int) -> bool:
        """Tell whether we ended this stream, so that frames which were on their way are no error."""
        return stream in self._streams

    def forget(self, stream: int) -> bool:
        """Forget a stream whose peer has ended it too. Tell whether it was known."""
        if stream not in self._streams:
            return False
        del self._streams[stream]
        return True
