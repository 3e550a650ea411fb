"""What an operator gets wrong."""


class AdminError(Exception):
    """The request can't be carried out; the message names the field and the fix."""


class NotFoundError(AdminError):
    """There is no such thing."""
