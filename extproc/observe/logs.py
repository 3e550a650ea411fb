"""Log to stderr as JSON, one object per line. No secret, body or token is ever passed to a logger.

Lines that are logged while a request is served carry its request id.
"""

import logging
import sys
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Hold Envoy's `x-request-id` of the request that the current task serves."""

_FIELDS = "%(levelname)s %(name)s %(message)s"


def set_up(level: str) -> None:
    """Send all logging to stderr as JSON, at `level` (a name such as "INFO") and above."""
    formatter = JsonFormatter(
        _FIELDS,
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",  # ISO 8601, UTC, with microseconds
        json_ensure_ascii=True,  # control characters and ANSI escapes in names stay visible and harmless
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_with_request_id)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a line for each malformed form
    for noisy in ("pymongo", "asyncio", "grpc", "httpx", "httpcore", "uvicorn", "botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _with_request_id(record: logging.LogRecord) -> bool:
    served = request_id.get()
    if served and not hasattr(record, "request_id"):
        record.request_id = served
    return True
