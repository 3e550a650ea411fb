"""What an operator names: checked before it goes anywhere."""

from extproc.admin.errors import AdminError
from extproc.core.identity import MAX_NAME_CHARS, UNKNOWN_IP, ClientIP, TenantId, is_name, normalise_ip


def named(what: str, text: str, kind: str = "a printable name") -> str:
    """Raises `AdminError` for what can't be a name, or text of that `kind` which has the same form."""
    if not is_name(text):
        raise AdminError(f"the {what} must be {kind} of 1 to {MAX_NAME_CHARS} characters")
    return text


def tenant_id(text: str) -> TenantId:
    return TenantId(named("tenant", text))


def client_ip(text: str) -> ClientIP:
    """In the form that it is stored in. Raises `AdminError`."""
    address = normalise_ip(text)
    if address == UNKNOWN_IP != text:
        raise AdminError(f"{text!r} is no IP address")
    return address
