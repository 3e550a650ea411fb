"""What can go wrong when the local stack is started."""


class LocalError(RuntimeError):
    """The stack, or a part of it, can't run; the message says why and what to do."""
