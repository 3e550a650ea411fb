import json
import traceback

import pytest
from pydantic import ValidationError

from extproc.core.quota.models import ModelProfile
from extproc.settings.costs import CostSettings
from extproc.settings.load import SettingsError, field_names, load, variable_name
from extproc.settings.model import Settings


def problems(path=None, **environment):
    with pytest.raises(SettingsError) as raised:
        load(path, environment)
    return str(raised.value).splitlines()


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "tokenweir.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# Where values come from.


def test_without_a_file_and_environment_the_defaults_hold():
    assert load(None, {}) == Settings()


def test_the_file_wins_over_the_default_and_the_environment_over_the_file(file):
    path = file("cost: {media_tokens: 1, prompt_overhead_tokens: 2}")
    settings = load(path, {"TOKENWEIR_COST__MEDIA_TOKENS": "3"})
    assert settings.cost.media_tokens == 3
    assert settings.cost.prompt_overhead_tokens == 2
    assert settings.cost.typical_output_tokens == 256


@pytest.mark.parametrize(
    ("streams", "given", "cap"), [("20000", "null", 10_000), ("10", "", 5), ("1", "null", 1), ("10", "10", 10)]
)
def test_one_tenant_may_have_half_of_all_streams_or_what_is_set(streams, given, cap):
    variables = {"TOKENWEIR_SERVER__MAX_STREAMS": streams, "TOKENWEIR_SERVER__MAX_IN_FLIGHT_PER_TENANT": given}
    assert load(None, variables).server.tenant_cap == cap


def test_a_variable_of_a_nested_section_has_two_underscores_per_level():
    settings = load(None, {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "7"})
    assert settings.limits.default.sa_limit == 7


def test_every_setting_can_be_set_by_its_variable():
    given = {"limits.default.ip_limit": "5", "identity.tenant_pattern": "@(x)", "identity.tenant_header": "h"}
    given["identity.service_account_header"] = "h"
    given |= {"limits.default.limits": "[]", "models": "[{match: a}]", "alerts.windows": "[day]"}
    given |= {"cost.weights.cached_input": "0.5", "cost.weights.reasoning": "2", "alerts.thresholds": "[5]"}
    given |= {f"limits.default.ratelimit_{part}_per_minute": "5" for part in ("ip", "each_sa")}
    given |= {"alerts.webhook_url": "null", "alerts.webhook_proxy": "http://proxy:3128"}
    given |= {"alerts.webhook_secret": "0123456789abcdef"}
    given |= {f"server.tls.{name}_file": "null" for name in ("certificate", "key", "client_ca")}
    given["server.max_in_flight_per_tenant"] = "null"
    given |= dict.fromkeys(("redis.url_file", "mongo.url_file", "alerts.webhook_secret_file"), "null")
    given |= {"server.tls.allowed_sans": "[]", "mongo.ledger_retention_days": "90"}
    given["server.allowed_parameters"] = "[priority, X-Data-Parallel-Rank]"
    given["server.unmetered_paths"] = "[/v1/vector_stores*]"
    given["identity.gateway_principals"] = "[cluster.local/ns/istio-system/sa/gateway]"
    given |= {f"admin.tls.{name}_file": "null" for name in ("certificate", "key")}
    given |= {f"admin.jwt.{name}": "null" for name in ("issuer", "audience", "jwks_file", "jwks_url")}
    given |= {"admin.jwt.algorithms": "[ES256]", "admin.jwt.roles": "{platform: admin}"}
    given["admin.metrics_address"] = "127.0.0.1:9465"
    for name in field_names():
        value = Settings()
        for part in name.split("."):
            value = getattr(value, part)
        text = given.get(name) or (value.get_secret_value() if name.endswith(".url") else str(value))
        assert load(None, {variable_name(name): text})


@pytest.mark.parametrize("text", ["null", ""])
def test_null_or_empty_in_the_environment_unsets_what_may_be_unset(text, file):
    path = file("limits: {default: {sa_limit: 5, ip_limit: 6}}")
    settings = load(path, {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": text, "TOKENWEIR_IDENTITY__TENANT_CLAIM": text})
    assert (settings.limits.default.sa_limit, settings.limits.default.ip_limit) == (None, 6)
    assert settings.identity.tenant_claim is None


def test_null_for_a_setting_that_needs_a_value_is_named():
    assert problems(TOKENWEIR_LOG__LEVEL="null") == ["log.level: should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "redis:\n", "redis:\nlimits:\n  default:\n", "{}"])
def test_an_empty_file_or_section_leaves_the_defaults(file, text):
    assert load(file(text), {}) == Settings()


def test_the_environment_sets_a_field_of_a_section_that_is_empty_in_the_file(file):
    settings = load(file("limits:\n  default:\n"), {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "7"})
    assert settings.limits.default.sa_limit == 7


def test_settings_can_not_be_changed():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.log = None
    with pytest.raises(ValidationError, match="frozen"):
        settings.limits.default.sa_limit = 1


def test_the_environment_is_the_process_own_where_none_is_given(monkeypatch):
    monkeypatch.setenv("TOKENWEIR_COST__MEDIA_TOKENS", "3")
    assert load().cost.media_tokens == 3


# What is wrong is named.


def test_all_problems_are_reported_at_once_each_with_its_name(file):
    path = file("server: {max_streams: 0}\nlimits: {default: {timezone: Mars}}\nrediss: {}\nlog: {colour: red}")
    found = problems(path, TOKENWEIR_MONGO__TIMEOUT_S="soon", TOKENWEIR_REDIS_URL="x")
    assert [line.partition(":")[0] for line in sorted(found)] == [
        "TOKENWEIR_REDIS_URL",
        "limits.default.timezone",
        "log.colour",
        "mongo.timeout_s",
        "rediss",
        "server.max_streams",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("server.address", "50051", "must be host:port (port 0: any free one) or unix:/path"),
        ("server.address", ":50051", "must be host:port"),
        ("server.address", "0.0.0.0:65536", "must be host:port"),
        ("server.address", "0.0.0.0:²", "must be host:port"),
        ("server.address", "unix:", "must be host:port"),
        ("server.max_body_bytes", "1023", "should be greater than or equal to 1024"),
        ("server.max_streams", "1180591620717411303424", "should be less than or equal to 1000000"),
        ("server.max_streams", "many", "should be a valid integer"),
        ("server.drain_s", "0", "should be greater than 0"),
        ("server.drain_s", "nan", "should be "),
        ("server.drain_s", "inf", "should be less than or equal to 86400"),
        ("metrics.address", "unix:/run/metrics", "must be host:port, such as 0.0.0.0:9464"),
        ("log.level", "info", "should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("redis.url", "http://h", "must start with redis://"),
        ("redis.url", "redis://h:port", "is no URL that redis-py can use"),
        ("mongo.url", "http://h", "must start with mongodb://"),
        ("mongo.url", "mongodb://u:p@p@h", "is no URL that PyMongo can use: percent-encode user and password"),
        (
            "mongo.ledger_retention_days",
            "38",
            "must be at least 39: the longest window that a limit can have (a month",
        ),
        ("mongo.ledger_retention_days", "0", "and 7 days; or null: entries are never deleted"),
        ("mongo.ledger_retention_days", "24001", "must be at most 24000; or null: entries are never deleted"),
        ("mongo.ledger_retention_days", "a month", "should be a valid integer"),
        ("mongo.database", "a.b", "MongoDB allows no '.' in the name of a database"),
        ("mongo.database", "a" * 64, "at most 63 characters"),
        ("identity.service_account_claim", "", "should be a valid string"),
        ("identity.tenant_header", "x y", "must be a header's name"),
        ("identity.tenant_pattern", "(", "not a regular expression"),
        ("identity.tenant_pattern", "@.*", "needs a group that captures the tenant"),
        ("limits.default.sa_limit", "-1", "should be greater than or equal to 0"),
        ("limits.default.sa_limit", "1000000000001", "should be less than or equal to 1000000000000"),
        ("limits.default.sa_limit", "1.5", "should be a valid integer"),
        ("limits.default.timezone", "Mars/Olympus", "no IANA time zone that this host knows"),
        ("limits.default.timezone", "Europe", "no IANA time zone that this host knows"),
        ("limits.default.timezone", "../../etc/passwd", "no IANA time zone that this host knows"),
        ("limits.poll_s", "5", "should be less than or equal to 4"),
        ("cost.prompt_bytes_per_token", "0", "should be greater than or equal to 1"),
        ("denied.style", "rude", "should be 'openai' or 'talk'"),
        ("denied.record", "perhaps", "should be a valid boolean"),
        ("reservation.decision_timeout_s", "0.6", "should be less than or equal to 0.5"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(name, value, message):
    (line,) = problems(**{variable_name(name): value})
    assert line.startswith(f"{name}: ")
    assert message in line


def test_no_limit_at_all_for_unknown_tenants_is_refused():
    (line,) = problems(TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT="null")
    assert line == "limits.default: set sa_limit or ip_limit: an unknown tenant must have some limit on tokens"


def test_a_header_is_kept_in_lower_case():
    assert load(None, {"TOKENWEIR_IDENTITY__TENANT_HEADER": "X-Tenant"}).identity.tenant_header == "x-tenant"


@pytest.mark.parametrize("word", ["true", "yes", "off"])
def test_a_yaml_boolean_is_no_number(file, word):
    said = "false" if word == "off" else "true"
    assert problems(file(f"limits: {{default: {{sa_limit: {word}}}}}")) == [
        f"limits.default.sa_limit: must not be {said}"
    ]


@pytest.mark.parametrize("scalar", ["5", "text", "[a]"])
def test_a_section_that_is_no_mapping_is_named_even_where_the_environment_sets_a_field_in_it(file, scalar):
    path = file(f"limits: {scalar}")
    wanted = ["limits: must be a section: a mapping of its settings"]
    assert problems(path) == wanted
    assert problems(path, TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT="7") == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- redis\n", "must be a mapping of sections"),
        ("redis", "must be a mapping of sections"),
        ("redis: {url: x", "not valid YAML at line 2, column 1: "),
        ("a: b: c", "not valid YAML at line 1, column 5: "),
        (b"\xff\xfe\xfa", "not valid YAML: it must be printable UTF-8 text"),
        ("a: \x00", "not valid YAML: it must be printable UTF-8 text"),
        ("a: 2026-13-45", "not valid YAML: month must be in 1..12"),
        ("[" * 3000, "not valid YAML at line 1, column 101: nested more than 100 deep; write it flatter"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_settings_file_is_one_line_with_its_path(file, text, message):
    path = file(text)
    (line,) = problems(path)
    assert line.startswith(f"{path}: ")
    assert message in line


def test_a_file_that_can_not_be_read_is_one_line_with_the_reason(tmp_path):
    assert problems(tmp_path / "none") == [f"{tmp_path}/none: can't be read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]


def test_keys_that_are_no_text_and_a_file_that_contains_itself_are_named(file):
    assert problems(file("1: x")) == ["1: no such setting; see docs/settings.md"]
    (line,) = problems(file("limits: &a {default: *a}"))
    assert line.endswith("not valid YAML at line 1, column 9: an anchor refers to itself; write the value out")


@pytest.mark.parametrize(
    "name", ["TOKENWEIR_", "TOKENWEIR_REDIS__URI", "TOKENWEIR_REDIS_URL", "TOKENWEIR_SERVER_PORT"]
)
def test_a_variable_that_means_nothing_is_named(name):
    assert problems(**{name: "1"}) == [f"{name}: no such setting; see docs/settings.md"]


def test_variables_without_the_prefix_and_the_command_lines_own_are_left_alone():
    assert load(None, {"REDIS__URL": "x", "tokenweir_x": "x", "TOKENWEIR_CONFIG": "x"}) == Settings()


def test_what_kubernetes_sets_for_a_service_called_tokenweir_is_no_setting():
    links = {
        "TOKENWEIR_SERVICE_HOST": "10.0.0.1",
        "TOKENWEIR_SERVICE_PORT": "50051",
        "TOKENWEIR_SERVICE_PORT_GRPC_EXT_PROC": "50051",
        "TOKENWEIR_PORT": "tcp://10.0.0.1:50051",
        "TOKENWEIR_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "TOKENWEIR_PORT_50051_TCP_PROTO": "tcp",
        "TOKENWEIR_PORT_50051_TCP_PORT": "50051",
        "TOKENWEIR_PORT_50051_TCP_ADDR": "10.0.0.1",
        "TOKENWEIR_METRICS_SERVICE_HOST": "10.0.0.1",
        "TOKENWEIR_METRICS_PORT": "tcp://10.0.0.1:9464",
    }
    assert load(None, links) == Settings()


# Secrets.


SECRET = "hunter2"


def test_a_password_is_in_no_text_made_of_the_settings():
    url = f"redis://user:{SECRET}@h:6379/0"
    settings = load(None, {"TOKENWEIR_REDIS__URL": url, "TOKENWEIR_MONGO__URL": f"mongodb://u:{SECRET}@h"})
    texts = [repr(settings), str(settings), repr(settings.redis), str(settings.redis.url), f"{settings.mongo.url}"]
    texts += [settings.model_dump_json(), repr(settings.model_dump(mode="json")), repr(settings.model_dump())]
    assert not [text for text in texts if SECRET in text]
    assert settings.model_dump(mode="json")["redis"]["url"] == "redis://user:***@h:6379/0"
    assert settings.redis.url.get_secret_value() == url


@pytest.mark.parametrize(
    "text",
    [
        f"redis: {{url: 'http://u:{SECRET}@h'}}",
        f"redis: {{url: 'redis://u:{SECRET}/x@h'}}",
        f"redis: {{url: ['redis://u:{SECRET}@h']}}",
        f"redis: 'redis://u:{SECRET}@h'",
        f"redis: {{url: redis://u:{SECRET}@h",
        f"mongo: {{url: 'mongodb://u:{SECRET}@x@h'}}",
        f"mongo: {{url: 'mongodb://u:x@h:{SECRET}'}}",
        f"log: {{level: {SECRET}}}",
        f'redis: {{url: "{SECRET}\\q"}}',
    ],
)
def test_no_message_about_a_bad_value_quotes_it(file, text):
    with pytest.raises(SettingsError) as raised:
        load(file(text), {})
    assert SECRET not in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.value)).replace(text, "")


def test_usage_in_every_chunk_can_not_be_asked_for_where_usage_is_not():
    entry = "[{match: a, asks_for_usage: false, continuous_usage: true}]"
    assert "continuous_usage: needs asks_for_usage: true" in str(problems(TOKENWEIR_MODELS=entry))
    models = load(None, {"TOKENWEIR_MODELS": "[{match: a, asks_for_usage: false}, {match: b}]"}).models
    general = CostSettings().profile()
    assert [model.profile(general).asks_for_usage for model in models] == [False, True]


@pytest.mark.parametrize("told", [True, False, None])
def test_a_model_may_be_said_to_add_to_its_prompts(told):
    entry = json.dumps([{"match": "a", "adds_to_prompt": told}])
    (model,) = load(None, {"TOKENWEIR_MODELS": entry}).models
    assert model.profile(ModelProfile()).adds_to_prompt is told


@pytest.mark.parametrize("name", [" a", "a ", "x" * 257])
def test_the_model_of_requests_without_one_has_a_name_that_can_be_shown(name):
    assert "cost.unnamed_model" in str(problems(TOKENWEIR_COST__UNNAMED_MODEL=name))
    assert load(None, {"TOKENWEIR_COST__UNNAMED_MODEL": "llama 3"}).cost.unnamed_model == "llama 3"


def test_a_parameter_that_nobody_refuses_can_not_be_allowed():
    with pytest.raises(SettingsError, match=r"server.allowed_parameters: 'prio' is not refused: leave it out"):
        load(None, {"TOKENWEIR_SERVER__ALLOWED_PARAMETERS": "[prio]"})
    settings = load(None, {"TOKENWEIR_SERVER__ALLOWED_PARAMETERS": "[Priority]"})
    assert settings.server.allowed_parameters == ("priority",)


@pytest.mark.parametrize("path", ["v1/files", "", "/a?b", "/a#b", "/a//b", "/a/", "/ä", "/a b", "/" + "a" * 256])
def test_a_path_that_no_request_can_have_is_refused(path):
    with pytest.raises(SettingsError, match=r"server\.unmetered_paths"):
        load(None, {"TOKENWEIR_SERVER__UNMETERED_PATHS": f'["{path}"]'})


def test_unmetered_paths_are_taken_as_they_are_written():
    settings = load(None, {"TOKENWEIR_SERVER__UNMETERED_PATHS": "[/, /v1/Vector_Stores*]"})
    assert settings.server.unmetered_paths == ("/", "/v1/Vector_Stores*")
