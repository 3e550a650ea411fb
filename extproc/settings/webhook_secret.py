"""Read the secret that signs webhooks: in the form of Standard Webhooks, or any text."""

import base64
import binascii
from typing import Final

from pydantic import SecretStr

MIN_CHARS: Final = 16
MAX_CHARS: Final = 512
_PREFIX: Final = "whsec_"
_MIN_BYTES: Final = 24
_MAX_BYTES: Final = 64


class WebhookSecret(SecretStr):
    """Hold a text that stands for the bytes of an HMAC key."""

    def key(self) -> bytes:
        """Return the key: the decoded bytes of `whsec_<base64>`, else the text itself in UTF-8.

        The base64 must have the standard alphabet, with or without padding, and stand for 24 to 64 bytes. Raise
        `ValueError` if it does not; the message does not quote the text.
        """
        text = self.get_secret_value()
        if not text.startswith(_PREFIX):
            return text.encode()
        encoded = text.removeprefix(_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"must be base64 after {_PREFIX}") from None
        if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
            raise ValueError(f"must stand for {_MIN_BYTES} to {_MAX_BYTES} bytes after {_PREFIX}")
        return key


def webhook_secret(secret: WebhookSecret) -> WebhookSecret:
    """Return the secret. Raise `ValueError` if its length or form is wrong; the message does not quote it."""
    if not MIN_CHARS <= len(secret) <= MAX_CHARS:
        raise ValueError(f"must have {MIN_CHARS} to {MAX_CHARS} characters")
    secret.key()
    return secret
