"""Write messages to S3 or a compatible service: one object per message."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("sink s3 needs: pip install 'tokenweir[dumper]'") from error

from extproc.dumper.message import Message, json_line, path_of
from extproc.dumper.sinks import Written
from extproc.ports.base import StoreError

T = TypeVar("T")

_CONNECT_S: Final = 3.0
_EXISTS: Final = "PreconditionFailed"
_NOT_IMPLEMENTED: Final = 501


@dataclass(frozen=True, slots=True)
class S3Options:
    """Say where to write. Credentials are not among the options: the AWS SDK finds them."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    parallel: int = 16
    timeout_s: float = 10.0


class S3Sink:
    """Write messages to a bucket. An object that exists is not written again, so a repeated message changes
    nothing.
    """

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._condition: dict[str, str] = {"IfNoneMatch": "*"}
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=options.endpoint,
                region_name=options.region,
                config=Config(
                    connect_timeout=min(_CONNECT_S, options.timeout_s),
                    read_timeout=options.timeout_s,
                    max_pool_connections=options.parallel,
                    # The writer retries by itself.
                    retries={"total_max_attempts": 1},
                    # Many compatible services support neither the newer checksums nor buckets in host names.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "auto" if options.endpoint is None else "path"},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"S3: {error}", transient=False) from error
        self._threads = ThreadPoolExecutor(max_workers=options.parallel, thread_name_prefix="s3")

    async def prepare(self) -> None:
        """Check that the bucket answers. Raise `StoreError`."""
        await self._in_thread(lambda: self._client.head_bucket(Bucket=self._options.bucket))

    async def write(self, messages: Sequence[Message]) -> Sequence[Written]:
        results = await asyncio.gather(*(self._write(message) for message in messages), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if not isinstance(error, StoreError) or len(errors) == len(results):
                raise error
        return [Written.FAILED if isinstance(result, BaseException) else result for result in results]

    async def _write(self, message: Message) -> Written:
        key = "/".join(filter(None, (self._options.prefix, f"{path_of(message)}.json")))
        return await self._in_thread(lambda: self._put(key, json_line(message)))

    def _put(self, key: str, body: bytes) -> Written:
        whole = {"Bucket": self._options.bucket, "Key": key, "Body": body, "ContentType": "application/json"}
        try:
            self._client.put_object(**whole, **self._condition)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == _EXISTS:
                return Written.REPEATED
            if not self._condition or _status(error) != _NOT_IMPLEMENTED:
                raise
            self._condition = {}  # no conditional writes: a repeated message overwrites its equal
            self._client.put_object(**whole)
        return Written.STORED

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise StoreError(f"S3 refused: {code} (status {_status(error)})", transient=True) from error
        except BotoCoreError as error:
            raise StoreError(f"S3: {type(error).__name__}: {str(error)[:200]}", transient=True) from error

    async def aclose(self) -> None:
        # A call that hangs ends by its own timeout; nothing waits for it.
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
