"""Define the errors of starting the local stack."""


class LocalError(RuntimeError):
    """Report that the stack, or a part of it, can't run; the message names the cause and the fix."""
