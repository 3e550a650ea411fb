"""Define the errors of an operator's input."""


class AdminError(Exception):
    """Report that the request can't be carried out; the message names the field and the fix."""


class NotFoundError(AdminError):
    """Report that the named tenant or limit does not exist."""


class StaleVersionError(AdminError):
    """Report that the document has another version than the one that the change was meant for."""
