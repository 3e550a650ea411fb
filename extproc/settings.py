"""One frozen `Settings`, read once from a YAML file and the environment; a bad value stops start-up, named.

The environment wins over the file, the file over the defaults. `TOKENWEIR_REDIS__URL` is `redis.url`. Every
field is listed, with its bounds, in docs/settings.md (a test compares).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from extproc.core.limits import MAX_AMOUNT
from extproc.core.rejections import DeniedStyle
from extproc.store_urls import StoreURL, mongo_url, redis_url

PREFIX: Final = "TOKENWEIR_"
_NESTING: Final = "__"
# Variables with our prefix that other parts of Tokenweir read.
_NOT_SETTINGS: Final = frozenset(
    {"TOKENWEIR_CONFIG", "TOKENWEIR_SCHEMAS", "TOKENWEIR_FIXTURES", "TOKENWEIR_ENVOYS"}
)
# What Kubernetes puts into every pod beside a Service that is called tokenweir or tokenweir-something.
_SERVICE_LINK: Final = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)
_MAX_PORT: Final = 65_535


class SettingsError(Exception):
    """The settings can't be used. The message has one line per problem: the field, what is wrong, the fix."""


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


def _database_name(value: str) -> str:
    if bad := set('/\\. "$*<>:|?\0') & set(value):
        raise ValueError(f"MongoDB allows no {min(bad)!r} in the name of a database")
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueError("must be a header's name")
    return value.lower()


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Tokens = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
Address = Annotated[str, AfterValidator(_address)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Header = Annotated[str, AfterValidator(_header)]
Zone = Annotated[str, AfterValidator(_zone_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]
RedisURL = Annotated[StoreURL, AfterValidator(redis_url)]
MongoURL = Annotated[StoreURL, AfterValidator(mongo_url)]
DatabaseName = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_database_name)]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: object) -> object:
        # In YAML a section whose settings are all commented out is null.
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Pydantic would read true as 1, and YAML reads yes and on as true.
        if (
            isinstance(value, bool)
            and info.field_name
            and cls.model_fields[info.field_name].annotation is not bool
        ):
            raise ValueError(f"must not be {str(value).lower()}")
        return value


class ServerSettings(_Section):
    """The gRPC server."""

    address: Address = Field(default="127.0.0.1:50051", description="Where ext_proc and gRPC health are served.")
    max_body_bytes: int = Field(
        default=4 << 20,
        ge=1024,
        le=64 << 20,
        description="Largest request body, in bytes. Envoy's `buffer` filter needs the same.",
    )
    max_streams: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Most ext_proc streams at once on one connection."
    )
    drain_s: Seconds = Field(default=20.0, description="How long SIGTERM waits for streams in flight.")


class MetricsSettings(_Section):
    """The Prometheus endpoint."""

    address: HostAndPort = Field(default="127.0.0.1:9464", description="Where /metrics is served.")


class LogSettings(_Section):
    level: Level = Field(default="INFO", description="Log lines of this level and above are written.")


class RedisSettings(_Section):
    """Counters and reservations."""

    url: RedisURL = Field(
        default=StoreURL("redis://127.0.0.1:6379/0"),
        description="Where counters and reservations are; memory:// only for one replica, for trials.",
    )
    max_connections: int = Field(default=64, ge=1, le=10_000, description="Connections at most, per process.")


class MongoSettings(_Section):
    """Limits, ledger and daily usage."""

    url: MongoURL = Field(
        default=StoreURL("mongodb://127.0.0.1:27017"),
        description="Where limits, ledger and usage are; memory:// is gone with the process.",
    )
    database: DatabaseName = Field(default="modelToken", description="The database's name.")
    timeout_s: Seconds = Field(default=5.0, description="Bound of every call.")


class IdentitySettings(_Section):
    """Where tenant and service account come from. All sources must be verified ones."""

    jwt_namespace: str = Field(
        default="envoy.filters.http.jwt_authn", description="Dynamic metadata namespace of the verified JWT."
    )
    jwt_payload_key: str = Field(
        default="payload", description="Key in that namespace; `payload_in_metadata` of jwt_authn."
    )
    service_account_claim: str = Field(
        default="sub", min_length=1, description="Claim that names the service account."
    )
    tenant_claim: str | None = Field(default="tenant", description="Claim that names the tenant.")
    service_account_header: Header | None = Field(
        default=None,
        description="Header that the mesh owns (the talk's is oc_sa): set it only where clients' copies go.",
    )
    tenant_header: Header | None = Field(default=None, description="As service_account_header, for the tenant.")
    tenant_pattern: Pattern | None = Field(
        default=None,
        description="Regular expression that finds the tenant in the service account, where nothing names it.",
    )


class DefaultLimitSettings(_Section):
    """What binds a tenant that nobody configured."""

    sa_limit: Tokens | None = Field(default=100_000, description="Tokens a day per service account.")
    ip_limit: Tokens | None = Field(default=None, description="Tokens a day per service account + client IP.")
    timezone: Zone = Field(
        default="UTC", description="IANA time zone of windows, where a tenant has none of its own."
    )

    @model_validator(mode="after")
    def _binds(self) -> Self:
        if self.sa_limit is None and self.ip_limit is None:
            raise ValueError("set sa_limit or ip_limit: an unknown tenant must have some limit")
        return self


class LimitsSettings(_Section):
    """How limits are followed."""

    default: DefaultLimitSettings = DefaultLimitSettings()
    poll_s: Annotated[float, Field(ge=0.1, le=4.0)] = Field(
        default=2.0,
        description="Seconds between reads where there is no change stream. Below 5 s, the promised delay.",
    )
    refresh_s: Seconds = Field(default=30.0, description="Seconds between reads where there is one.")


class CostSettings(_Section):
    """What a request holds before its answer is known."""

    prompt_bytes_per_token: int = Field(
        default=3, ge=1, le=16, description="Bytes of prompt JSON counted as one token."
    )
    prompt_overhead_tokens: int = Field(default=8, ge=0, le=100_000, description="Added for the chat template.")
    media_tokens: int = Field(
        default=1024, ge=0, le=1_000_000, description="Held for each image, audio or file part."
    )
    typical_output_tokens: int = Field(
        default=256, ge=1, le=1_000_000, description="Held per choice where the client gave no output bound."
    )
    output_bytes_per_token: int = Field(
        default=4, ge=1, le=16, description="Bytes of answer counted as one token, when estimating."
    )


class DeniedSettings(_Section):
    style: DeniedStyle = Field(
        default=DeniedStyle.OPENAI,
        description="openai: 429 with an error object. talk: 400 with a line of text.",
    )
    record: bool = Field(default=True, description="Whether denied requests get a ledger entry too.")


class ReservationSettings(_Section):
    decision_timeout_s: Annotated[float, Field(ge=0.005, le=0.5)] = Field(
        default=0.1, description="Seconds that a decision may take; then 503."
    )
    ttl_s: Seconds = Field(
        default=900.0, description="Seconds after which a reservation that nobody ended is charged as held."
    )
    expiry_interval_s: Seconds = Field(default=5.0, description="Seconds between looks for such reservations.")


class Settings(_Section):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    redis: RedisSettings = RedisSettings()
    mongo: MongoSettings = MongoSettings()
    identity: IdentitySettings = IdentitySettings()
    limits: LimitsSettings = LimitsSettings()
    cost: CostSettings = CostSettings()
    denied: DeniedSettings = DeniedSettings()
    reservation: ReservationSettings = ReservationSettings()


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the settings once. Raises `SettingsError` with every problem, each naming its field."""
    values = _from_file(path) if path is not None else {}
    problems = _overlay(values, os.environ if environment is None else environment)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_line(detail) for detail in error.errors()]
        raise SettingsError("\n".join(problems)) from None
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def variable_name(name: str) -> str:
    """The environment variable of a setting: `redis.url` is TOKENWEIR_REDIS__URL."""
    return PREFIX + name.replace(".", _NESTING).upper()


def field_names(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Every setting's dotted name."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += field_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        # Only where and what: the parser would quote the line, and with it a password.
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{path}: not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"{path}: not valid YAML: it must be printable UTF-8 text") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of sections, such as 'redis: {{url: ...}}'")
    return values


def _overlay(values: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Puts the environment's values over the file's. Returns a line for each variable that means nothing."""
    known = {variable_name(name): name for name in field_names()}
    problems: list[str] = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable in known:
            _put(values, known[variable].split("."), None if text in ("", "null") else text)
        elif _SERVICE_LINK.fullmatch(f"{variable}={text}") is None:
            problems.append(f"{variable}: no such setting; see docs/settings.md")
    return problems


def _put(values: dict[str, Any], path: list[str], value: str | None) -> None:
    *sections, last = path
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):  # the file's mistake: validation reports it
            return
        values = inner
    values[last] = value


def _line(detail: ErrorDetails) -> str:
    """One problem. Never with the value itself, which may be a secret."""
    name = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            message = "no such setting; see docs/settings.md"
        case "model_type" | "model_attributes_type":
            message = "must be a section: a mapping of its settings"
    return f"{name}: {message}"
