"""Channels of tests: messages as values, on a transport that may have each write wait, or hands pieces over."""

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb


class EachWaits:
    """Send each message with a wait, as grpc.aio does: subclasses have `read`, and `write` for the message."""

    _unsent = None

    def take(self):
        return None

    def hand_over(self, hearer):
        """Hand nothing over."""

    def send(self, message):
        self._unsent = pb.ProcessingResponse.FromString(message)
        return False

    def send_parts(self, parts):
        return self.send(b"".join(parts))

    async def drained(self):
        message, self._unsent = self._unsent, None
        if message is not None:
            await self.write(message)
