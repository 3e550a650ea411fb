"""Write the tables of settings.md from the settings themselves: `python docs/settings_table.py`."""  # noqa: INP001

from pathlib import Path
from typing import Any

from extproc.settings.load import field_names, variable_name
from extproc.settings.model import Settings

PAGE = Path(__file__).with_name("settings.md")
BEGIN = "<!-- tables: written by docs/settings_table.py -->\n"
END = "<!-- end of tables -->\n"

# Forms that a schema can't express.
_FORMS = {
    "server.address": "`host:port` or `unix:/path`; port 0: any free one",
    "server.tls.certificate_file": "path, or null",
    "server.tls.key_file": "path, or null",
    "server.tls.client_ca_file": "path, or null",
    "server.tls.allowed_sans": "list of names, such as `spiffe://cluster.local/ns/istio-system/sa/gateway`",
    "server.allowed_parameters": "list of names, such as `priority`",
    "server.unmetered_paths": "list of up to 100 paths, such as `/v1/vector_stores*`",
    "metrics.address": "`host:port`; port 0: any free one",
    "redis.url": "URL: `redis://`, `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://`, `memory://`",
    "mongo.url": "URL: `mongodb://`, `mongodb+srv://`, `memory://`",
    "identity.service_account_header": "header name, or null",
    "identity.tenant_header": "header name, or null",
    "identity.tenant_pattern": "regular expression with a group, or null",
    "identity.gateway_principals": "list of principals, such as `cluster.local/ns/istio-system/sa/gateway`",
    "limits.default.timezone": "IANA time zone",
    "limits.default.limits": "list of limits, as YAML or JSON",
    "models": "list of entries, as YAML or JSON",
    "alerts.thresholds": "list of up to 10 integers, 1 to 1000",
    "alerts.windows": "list of windows",
    "alerts.webhook_url": "URL: `https://`, `http://`, or null",
    "alerts.webhook_proxy": "URL: `http://`, `https://`, or null",
    "admin.address": "`host:port`; port 0: any free one",
    "admin.tls.certificate_file": "path, or null",
    "admin.tls.key_file": "path, or null",
    "admin.jwt.jwks_file": "path, or null",
    "admin.jwt.jwks_url": "URL: `https://`, `http://`, or null",
    "admin.jwt.algorithms": "list of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA",
    "admin.jwt.roles": "mapping of texts to viewer, team-lead or admin, such as `{platform: admin}`",
    "alerts.webhook_secret": "`whsec_<base64>` of 24 to 64 bytes, or text; 16 to 512 characters, or null",
}
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false"}


def tables() -> str:
    """Return one table per section, in the order of the model."""
    schema = Settings.model_json_schema()
    rows: dict[str, list[str]] = {}
    for name in field_names():
        section, _, _ = name.rpartition(".")
        rows.setdefault(section, []).append(_row(name, _field(schema, name)))
    return "\n".join(_table(schema, section, lines) for section, lines in rows.items())


def page(text: str) -> str:
    """Return the page with current tables."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def _table(schema: dict[str, Any], section: str, lines: list[str]) -> str:
    about = [] if not section else _resolved(schema, _field(schema, section)).get("description", "").splitlines()
    head = "| setting | variable | value | default | meaning |\n|---|---|---|---|---|\n"
    return f"## {section or 'models'}\n\n" + (f"{about[0]}\n\n" if about else "") + head + "".join(lines)


def _row(name: str, field: dict[str, Any]) -> str:
    default = field.get("default")
    shown = _shown(default)
    value = _FORMS.get(name) or _value(field)
    return f"| `{name}` | `{variable_name(name)}` | {value} | `{shown}` | {field['description']} |\n"


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return f"[{', '.join(map(str, default))}]" if isinstance(default, (list, tuple)) else str(default)


def _value(field: dict[str, Any]) -> str:
    kinds = field.get("anyOf", [field])
    kind = kinds[0]
    text = ", ".join(kind["enum"]) if "enum" in kind else _TYPES[kind["type"]] + _bounds(kind)
    return text + (", or null" if kinds[-1].get("type") == "null" else "")


def _bounds(kind: dict[str, Any]) -> str:
    if "exclusiveMinimum" in kind:
        return f", above {kind['exclusiveMinimum']:g}, up to {kind['maximum']:.15g}"
    if "minimum" in kind:
        return f", {kind['minimum']} to {kind['maximum']}"
    if "maxLength" in kind:
        return f", {kind['minLength']} to {kind['maxLength']} characters"
    return ", not empty" if kind.get("minLength") else ""


def _field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found = schema
    for part in name.split("."):
        found = _resolved(schema, found)["properties"][part]
    return {**_resolved(schema, found), **found}


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
