"""The dumper's settings: one frozen object, from the command line and TOKENWEIR_DUMPER_ variables."""

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
# It becomes a part of each key: what all of S3's relatives take, and no empty or relative segment.
_KEY_PREFIX: Final = r"^([A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*)?$"


class DumperSettingsError(Exception):
    """The settings can't be used. One line per problem: the variable or option, and what is wrong."""


class DumperSettings(Section):
    """Each field is TOKENWEIR_DUMPER_ and its name; `listen`, `sink` and `bodies` are options too."""

    listen: HostAndPort = Field(
        default="127.0.0.1:8080", description="Where events, metrics and health are served."
    )
    sink: Literal["stdout", "s3", "mongo"] = Field(default="stdout", description="Where messages go.")
    bodies: Literal["full", "none"] = Field(
        default="full", description="`none` leaves bodies out, and keeps what is known about them."
    )
    log_level: Level = Field(default="INFO", description="Log lines of this level and above are written.")
    # Base64 makes it a third longer, and MongoDB takes 16 MB.
    max_body_bytes: int = Field(
        default=4 * _MIB, ge=1024, le=8 * _MIB, description="A larger event is refused with 413."
    )
    print_bytes: int = Field(
        default=65_536, ge=0, le=8 * _MIB, description="Sink stdout: a longer body is cut to that."
    )
    queue_bytes: int = Field(
        default=64 * _MIB,
        ge=1024,
        le=4096 * _MIB,
        description="Memory for what waits to be written, bodies that are being read included.",
    )
    timeout_s: Seconds = Field(default=10.0, description="Bound of one try at S3 or MongoDB; tries go on.")
    drain_s: Seconds = Field(default=20.0, description="How long SIGTERM waits until all of it is written.")
    s3_bucket: str | None = Field(default=None, pattern=_BUCKET, description="The bucket; it must exist.")
    s3_prefix: str = Field(
        default="", max_length=200, pattern=_KEY_PREFIX, description="In front of each key, without a slash."
    )
    s3_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+/?$",
        description="Another service than AWS: http(s)://host:port.",
    )
    s3_region: str | None = Field(default=None, min_length=1, description="Else as the AWS SDK finds it.")
    s3_parallel: int = Field(default=16, ge=1, le=128, description="Objects that are written at a time.")
    mongo_url: MongoURL | None = Field(default=None, description="mongodb:// or mongodb+srv://")
    mongo_database: DatabaseName = Field(default="modelMessages", description="The database's name.")
    mongo_collection: str = Field(
        default="messages", max_length=120, pattern=_COLLECTION, description="The collection's name."
    )
    mongo_ttl_days: float = Field(
        default=30.0, ge=0, le=20_000, description="Messages are deleted after that; 0 keeps them."
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
            raise ValueError(f"{PREFIX}MONGO_URL: memory:// is no place for messages; sink stdout is, for trials")
        return self

    @property
    def mongo_secret_url(self) -> str:
        """The URL as the driver needs it."""
        return (self.mongo_url or StoreURL("")).get_secret_value()


def load(environment: Mapping[str, str], options: Mapping[str, str | None]) -> DumperSettings:
    """Options win over variables; an option that is None was not given. Raises `DumperSettingsError`."""
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
