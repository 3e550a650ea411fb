"""Keep the body of a request while it comes, and until it is forwarded."""

from collections.abc import Sequence

from extproc.core.request.buffers import PIECE_BYTES, Buffers, Kept


class GatheredBody:
    """Keep the pieces of a request's body, in order, within the room of all exchanges.

    `bytes` is their size, and `messages` the number of messages that brought them. `trailers`: they ended the
    request.
    """

    def __init__(self, buffers: Buffers, tenant: str) -> None:
        self.pieces: list[bytes] = []
        self.bytes = self.messages = 0
        self.trailers = False
        self._kept = Kept(buffers, tenant)

    def keep(self, data: bytes, more: Sequence[bytes] = ()) -> bool:
        """Keep what one more message brought; return False if there is no room for it."""
        self.messages += 1
        self.pieces.append(data)
        self.bytes += len(data)
        if more:
            self.pieces += more
            self.bytes += sum(map(len, more))
        return self._kept.keep(self.bytes + PIECE_BYTES * len(self.pieces))

    def joined(self) -> bytes:
        """Return the body in one piece. A body that came in one is not copied."""
        return b"".join(self.pieces)

    def let_go(self) -> None:
        """Release the memory."""
        self.pieces.clear()
        self._kept.keep(0)
