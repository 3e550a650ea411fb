"""Check the names that an operator gives, before they are used."""

from extproc.admin.errors import AdminError
from extproc.core.request.addresses import IPV6_PREFIX, UNKNOWN_IP, ClientIP, client_network
from extproc.core.request.addresses import client_ip as spelled
from extproc.core.request.identity import MAX_NAME_CHARS, TenantId, is_name


def named(what: str, text: str, kind: str = "a printable name") -> str:
    """Return the name. Raise `AdminError` if the text can't be a name; `kind` describes the expected text."""
    if not is_name(text):
        raise AdminError(f"the {what} must be {kind} of 1 to {MAX_NAME_CHARS} characters")
    return text


def tenant_id(text: str) -> TenantId:
    return TenantId(named("tenant", text))


def client_ip(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """Return an address, or the IPv6 network stored for it, in its stored form. Raise `AdminError`."""
    network = "/" in text and ":" in text
    address = client_network(text, ipv6_prefix) if network else spelled(text, ipv6_prefix)
    if address == UNKNOWN_IP != text:
        raise AdminError(f"{text!r} is no IP address")
    return address
