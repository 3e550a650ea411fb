"""Read `Settings` once, from a YAML file and the environment. An invalid value stops the start.

The environment wins over the file, the file over the defaults. `TOKENWEIR_REDIS__URL` is `redis.url`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from extproc.given.documents import GivenDocumentError, document
from extproc.given.files import GivenFileError, read
from extproc.settings.environment import is_service_link
from extproc.settings.model import Settings
from extproc.settings.secret_files import IN_FILES, read_secret

PREFIX: Final = "TOKENWEIR_"
_NESTING: Final = "__"
_MAX_BYTES: Final = 1 << 20
# Variables with our prefix that other parts of Tokenweir read.
_NOT_SETTINGS: Final = frozenset(
    {
        *("TOKENWEIR_CONFIG", "TOKENWEIR_SCHEMAS", "TOKENWEIR_FIXTURES", "TOKENWEIR_ENVOYS", "TOKENWEIR_HELM"),
        "TOKENWEIR_VLLM_URL",
    }
)


class SettingsError(Exception):
    """Report invalid settings. The message has one line per problem: the field, the problem, the fix."""


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Raise `SettingsError` with a line for each problem, which names its field."""
    values = _from_file(path) if path is not None else {}
    problems = _overlay(values, os.environ if environment is None else environment)
    problems += _from_secret_files(values)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_line(detail) for detail in error.errors()]
        raise SettingsError("\n".join(problems)) from None
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def load_to_serve(path: Path | None = None) -> Settings:
    """Read the settings of a process that serves.

    Raise `SettingsError`, also for plaintext on an address that other machines can reach.
    """
    settings = load(path)
    if (problem := settings.server.exposed()) is not None:
        raise SettingsError(problem)
    return settings


def variable_name(name: str) -> str:
    """Return the environment variable of a setting: TOKENWEIR_REDIS__URL for `redis.url`."""
    return PREFIX + name.replace(".", _NESTING).upper()


def field_names(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings."""
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
        values = document(read(path, _MAX_BYTES).decode())
    except (GivenFileError, GivenDocumentError) as error:
        raise SettingsError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not valid YAML: it must be printable UTF-8 text") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of sections, such as 'redis: {{url: ...}}'")
    return values


def _overlay(values: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Replace values of the file by those of the environment. Return a line for each unknown variable."""
    known = {variable_name(name): name for name in field_names()}
    problems: list[str] = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable in known:
            _put(values, known[variable].split("."), None if text in ("", "null") else text)
        elif not is_service_link(variable, text, PREFIX):
            problems.append(f"{variable}: no such setting; see docs/settings.md")
    return problems


def _from_secret_files(values: dict[str, Any]) -> list[str]:
    """Put the texts of secret files in the place of their settings. Return a line for each problem."""
    problems: list[str] = []
    for setting, file_setting in IN_FILES.items():
        section, _, name = setting.partition(".")
        inner = values.get(section)
        path = inner.get(file_setting.partition(".")[2]) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(path, str):
            continue
        if inner.get(name) is not None:
            problems.append(f"{file_setting}: {setting} is set too; remove one of them")
            continue
        try:
            inner[name] = read_secret(Path(path))
        except ValueError as error:
            problems.append(f"{file_setting}: {path} {error}")
    return problems


def _put(values: dict[str, Any], path: list[str], value: str | None) -> None:
    *sections, last = path
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):  # a mistake in the file: validation reports it
            return
        values = inner
    values[last] = value


def _line(detail: ErrorDetails) -> str:
    """Return one problem as a line, without the value, which may be a secret."""
    name = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            message = "no such setting; see docs/settings.md"
        case "model_type" | "model_attributes_type":
            message = "must be a section: a mapping of its settings"
    return f"{name}: {message}"
