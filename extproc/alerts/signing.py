"""Sign webhooks by the Standard Webhooks scheme, version 1.0.0, with its symmetric signature `v1`.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
from typing import Final

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"


def signed_headers(key: bytes, message_id: str, second: int, body: bytes) -> dict[str, str]:
    """Return the three headers of one attempt: the id, the Unix time in seconds, and the signature.

    The signature is an HMAC-SHA256 over `<id>.<time>.<body>`. It covers the time, so a receiver can refuse an
    attempt that somebody recorded and sends again later. `message_id` must hold no dot.
    """
    signed = f"{message_id}.{second}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(second),
        SIGNATURE_HEADER: f"v1,{base64.b64encode(digest).decode()}",
    }
