"""What an operator names: checked before it goes anywhere."""

from extproc.admin.errors import AdminError
from extproc.core.request.addresses import IPV6_PREFIX, UNKNOWN_IP, ClientIP, client_network
from extproc.core.request.addresses import client_ip as spelled
from extproc.core.request.identity import MAX_NAME_CHARS, TenantId, is_name


def named(what: str, text: str, kind: str = "a printable name") -> str:
    """Raises `AdminError` for what can't be a name, or text of that `kind` which has the same form."""
    if not is_name(text):
        raise AdminError(f"the {what} must be {kind} of 1 to {MAX_NAME_CHARS} characters")
    return text


def tenant_id(text: str) -> TenantId:
    return TenantId(named("tenant", text))


def client_ip(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """An address, or the IPv6 network that is stored for one, as it is stored. Raises `AdminError`."""
    network = "/" in text and ":" in text
    address = client_network(text, ipv6_prefix) if network else spelled(text, ipv6_prefix)
    if address == UNKNOWN_IP != text:
        raise AdminError(f"{text!r} is no IP address")
    return address
