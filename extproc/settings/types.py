"""Define the types of settings: the form of valid values, and the messages for invalid ones."""

import re
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, ClassVar, Final, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from extproc.core.quota.ledger import SHORTEST_RETENTION
from extproc.core.quota.limits import LONGEST_WINDOW, MAX_AMOUNT, Window
from extproc.core.request.bodies.steering import STEERING
from extproc.given.documents import GivenDocumentError, document
from extproc.settings.webhook_secret import MAX_CHARS, MIN_CHARS, WebhookSecret, webhook_secret
from extproc.settings.webhook_urls import ProxyURL, WebhookURL, proxy_url, webhook_url
from extproc.stores.urls import StoreURL, mongo_url, redis_url

_MAX_PORT: Final = 65_535
_MIN_RETENTION_DAYS: Final = SHORTEST_RETENTION.days
_MAX_RETENTION_DAYS: Final = 24_000  # MongoDB counts these seconds in 31 bits
_SPEC: Final = re.compile(r"tiktoken:[\w.-]+|hf:/.+")


def tokenizer_spec(value: str) -> str:
    """Check for `tiktoken:<encoding>` or `hf:<absolute path>`. Raise ValueError. Open nothing."""
    if _SPEC.fullmatch(value) is None:
        raise ValueError("must be tiktoken:<encoding>, such as tiktoken:o200k_base, or hf:/<path>/tokenizer.json")
    return value


def _zone_name(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # unknown, malformed, the name of a folder
        raise ValueError("no IANA time zone that this host knows; use one such as 'Europe/Berlin'") from None
    return value


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if not groups:
        raise ValueError("needs a group that captures the tenant, such as '@([^.]+)'")
    return value


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > _MAX_PORT:
        raise ValueError("must be host:port, such as 0.0.0.0:9464 (port 0: any free one)")
    return value


def _address(value: str) -> str:
    if re.fullmatch("unix:/.+", value):
        return value
    try:
        return _host_and_port(value)
    except ValueError:
        raise ValueError("must be host:port (port 0: any free one) or unix:/path") from None


def is_local(address: str) -> bool:
    """Return whether an `Address` can't be reached from another machine: loopback, or a Unix socket."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def _database_name(value: str) -> str:
    if bad := set('/\\. "$*<>:|?\0') & set(value):
        raise ValueError(f"MongoDB allows no {min(bad)!r} in the name of a database")
    return value


def _retention_days(value: int) -> int:
    if value < _MIN_RETENTION_DAYS:
        longest = LONGEST_WINDOW.days
        raise ValueError(
            f"must be at least {_MIN_RETENTION_DAYS}: the longest window that a limit can have (a month, at most "
            f"{longest} days) and {_MIN_RETENTION_DAYS - longest} days; or null: entries are never deleted"
        )
    if value > _MAX_RETENTION_DAYS:
        raise ValueError(f"must be at most {_MAX_RETENTION_DAYS}; or null: entries are never deleted")
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueError("must be a header's name")
    return value.lower()


RetentionDays = Annotated[
    int,
    AfterValidator(_retention_days),
    WithJsonSchema({"type": "integer", "minimum": _MIN_RETENTION_DAYS, "maximum": _MAX_RETENTION_DAYS}),
]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Tokens = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
Address = Annotated[str, AfterValidator(_address)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
Header = Annotated[str, AfterValidator(_header)]
Zone = Annotated[str, AfterValidator(_zone_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]
RedisURL = Annotated[StoreURL, AfterValidator(redis_url)]
MongoURL = Annotated[StoreURL, AfterValidator(mongo_url)]
DatabaseName = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_database_name)]
Tokenizer = Annotated[str, AfterValidator(tokenizer_spec)]
Weight = Annotated[float, Field(ge=0, le=100)]
Price = Annotated[float, Field(ge=0, le=100_000)]


def listed(value: object) -> object:
    """Parse the list of an environment variable, as YAML or JSON; return other values unchanged."""
    if not isinstance(value, str):
        return () if value is None else value
    try:
        return document(value) or ()
    except GivenDocumentError:
        raise ValueError("must be a list, as YAML or JSON") from None


def _steering(values: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(value.lower() for value in values)
    if unknown := next((name for name in names if name not in STEERING), None):
        raise ValueError(f"'{unknown}' is not refused: leave it out. Refused are: {', '.join(sorted(STEERING))}")
    return names


def _path_pattern(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "?" in value or "#" in value:
        raise ValueError("must be a path that begins with '/', in plain ASCII, without a query; '*' is any text")
    if "//" in value or (len(value) > 1 and value.endswith("/")):
        raise ValueError("must have no empty segment and no '/' at its end: paths are compared without them")
    return value


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names a threshold twice")
    return tuple(sorted(values))


Entries = Annotated[tuple[dict[str, Any], ...], BeforeValidator(listed)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], BeforeValidator(listed)]
PathPatterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_path_pattern)], ...],
    Field(max_length=100),
    BeforeValidator(listed),
]
SteeringNames = Annotated[Names, AfterValidator(_steering)]
Percent = Annotated[int, Field(strict=True, ge=1, le=1000)]  # over 100: soft mode can exceed a limit
Thresholds = Annotated[
    tuple[Percent, ...], Field(max_length=10), BeforeValidator(listed), AfterValidator(_ascending)
]
Windows = Annotated[tuple[Window, ...], BeforeValidator(listed)]
CheckedWebhookURL = Annotated[WebhookURL, AfterValidator(webhook_url)]
CheckedProxyURL = Annotated[ProxyURL, AfterValidator(proxy_url)]
CheckedWebhookSecret = Annotated[
    WebhookSecret,
    AfterValidator(webhook_secret),
    WithJsonSchema({"type": "string", "minLength": MIN_CHARS, "maxLength": MAX_CHARS}),
]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Section(BaseModel):
    """Group settings. Unknown fields are refused, and a section can't be changed."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: object) -> object:
        # In YAML, a section whose settings are all comments is null.
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Pydantic reads true as 1, and YAML reads yes and on as true.
        if isinstance(value, bool) and info.field_name:
            wanted = cls.model_fields[info.field_name].annotation
            if bool not in (wanted, *get_args(wanted)):
                raise ValueError(f"must not be {str(value).lower()}")
        return value
