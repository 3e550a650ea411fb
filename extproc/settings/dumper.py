"""Read the dumper's settings from the command line and TOKENWEIR_DUMPER_ variables."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from extproc.settings.environment import is_service_link
from extproc.settings.types import DatabaseName, HostAndPort, Level, MongoURL, Seconds, Section
from extproc.stores.urls import StoreURL

PREFIX: Final = "TOKENWEIR_DUMPER_"
_MIB: Final = 1 << 20
_COLLECTION: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_BUCKET: Final = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{1,253}[a-zA-Z0-9]$"
# Part of each key: characters that all compatible services accept, and no empty or relative segment.
_KEY_PREFIX: Final = r"^([A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*)?$"


class DumperSettingsError(Exception):
    """Report invalid settings. The message has one line per problem: the variable or option, and the problem."""


class DumperSettings(Section):
    """Hold the settings. Each field is a variable TOKENWEIR_DUMPER_*; `listen`, `sink` and `bodies` are options
    too.
    """

    listen: HostAndPort = Field(default="127.0.0.1:8080", description="Address of events, metrics and health.")
    sink: Literal["stdout", "s3", "mongo"] = Field(default="stdout", description="Sink of the messages.")
    bodies: Literal["full", "none"] = Field(
        default="full", description="`none`: bodies are not kept, only their size and type."
    )
    log_level: Level = Field(default="INFO", description="Log lines of this level and above are written.")
    # Base64 makes a body a third longer, and MongoDB accepts 16 MB.
    max_body_bytes: int = Field(
        default=4 * _MIB,
        ge=1024,
        le=8 * _MIB,
        description="Maximum size of an event in bytes; larger ones get 413.",
    )
    print_bytes: int = Field(
        default=65_536, ge=0, le=8 * _MIB, description="Sink stdout: maximum number of printed bytes of a body."
    )
    queue_bytes: int = Field(
        default=64 * _MIB,
        ge=1024,
        le=4096 * _MIB,
        description="Maximum number of bytes of messages that wait to be written or are being received.",
    )
    timeout_s: Seconds = Field(
        default=10.0, description="Timeout of one attempt at S3 or MongoDB, in seconds. Attempts are repeated."
    )
    drain_s: Seconds = Field(
        default=20.0, description="Seconds that are left after SIGTERM to write waiting messages."
    )
    s3_bucket: str | None = Field(default=None, pattern=_BUCKET, description="Name of the bucket; it must exist.")
    s3_prefix: str = Field(
        default="",
        max_length=200,
        pattern=_KEY_PREFIX,
        description="Prefix of each key, without a slash at its end.",
    )
    s3_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+/?$",
        description="Address of a service other than AWS: http(s)://host:port.",
    )
    s3_region: str | None = Field(
        default=None, min_length=1, description="Region; by default the AWS SDK finds it."
    )
    s3_parallel: int = Field(default=16, ge=1, le=128, description="Number of objects that are written at once.")
    mongo_url: MongoURL | None = Field(default=None, description="URL of MongoDB: mongodb:// or mongodb+srv://")
    mongo_database: DatabaseName = Field(default="modelMessages", description="Name of the database.")
    mongo_collection: str = Field(
        default="messages", max_length=120, pattern=_COLLECTION, description="Name of the collection."
    )
    mongo_ttl_days: float = Field(
        default=30.0, ge=0, le=20_000, description="Days after which messages are deleted; 0 keeps them."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.queue_bytes < 2 * self.max_body_bytes:
            raise ValueError(f"{PREFIX}QUEUE_BYTES: must be at least twice {PREFIX}MAX_BODY_BYTES")
        if self.sink == "s3" and self.s3_bucket is None:
            raise ValueError(f"{PREFIX}S3_BUCKET: sink s3 needs it")
        if self.sink == "mongo" and self.mongo_url is None:
            raise ValueError(f"{PREFIX}MONGO_URL: sink mongo needs it")
        if self.mongo_url is not None and self.mongo_url.in_memory:
            raise ValueError(f"{PREFIX}MONGO_URL: memory:// can't hold messages; for trials use sink stdout")
        return self

    @property
    def mongo_secret_url(self) -> str:
        """Return the URL with its password."""
        return (self.mongo_url or StoreURL("")).get_secret_value()


def load(environment: Mapping[str, str], options: Mapping[str, str | None]) -> DumperSettings:
    """Read the settings. Options replace variables; None is an absent option. Raise `DumperSettingsError`."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX)
        if name.isupper() and name.lower() in DumperSettings.model_fields:
            if text:
                values[name.lower()] = text
        elif not is_service_link(variable, text, PREFIX):
            problems.append(f"{variable}: no such setting; see docs/message-dumper.md")
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        settings = DumperSettings.model_validate(values)
    except ValidationError as error:
        # Never with the value itself, which may be a secret.
        problems += [
            _named(str(detail["loc"][0]) if detail["loc"] else "", detail["msg"]) for detail in error.errors()
        ]
        raise DumperSettingsError("\n".join(problems)) from None
    if problems:
        raise DumperSettingsError("\n".join(problems))
    return settings


def _named(field: str, message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{PREFIX}{field.upper()}: {message}" if field else message
