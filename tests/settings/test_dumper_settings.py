"""The settings, and the page that lists them."""

import re
from pathlib import Path

import pytest

from extproc.dumper.holding import Holding
from extproc.dumper.metrics import DumperMetrics
from extproc.settings.dumper import PREFIX, DumperSettings, DumperSettingsError, load

PAGE = (Path(__file__).parents[2] / "docs/message-dumper.md").read_text(encoding="utf-8")


def rows(title):
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.+\|$", section, re.MULTILINE)
    ]


def problems(environment, **options):
    with pytest.raises(DumperSettingsError) as error:
        load(environment, options)
    return str(error.value).splitlines()


def test_options_win_over_variables_and_variables_over_defaults():
    environment = {
        "TOKENWEIR_DUMPER_SINK": "mongo",
        "TOKENWEIR_DUMPER_LISTEN": "0.0.0.0:80",
        "TOKENWEIR_OTHER": "1",
    }
    settings = load(environment, {"sink": "stdout", "listen": None})
    assert (settings.sink, settings.listen, settings.bodies) == ("stdout", "0.0.0.0:80", "full")


def test_an_empty_variable_is_one_that_is_not_set():
    assert load({"TOKENWEIR_DUMPER_S3_REGION": ""}, {}).s3_region is None


def test_every_problem_is_named_and_no_value_is_shown():
    environment = {"TOKENWEIR_DUMPER_DRAIN_S": "hush", "TOKENWEIR_DUMPER_TTL": "1"}
    lines = problems(environment, sink="hush")
    assert [line.partition(":")[0] for line in lines] == [f"{PREFIX}TTL", f"{PREFIX}SINK", f"{PREFIX}DRAIN_S"]
    assert "hush" not in "".join(lines)


@pytest.mark.parametrize(
    ("environment", "sink", "said"),
    [
        ({}, "s3", f"{PREFIX}S3_BUCKET: sink s3 needs it"),
        ({}, "mongo", f"{PREFIX}MONGO_URL: sink mongo needs it"),
        ({f"{PREFIX}MONGO_URL": "memory://"}, "mongo", "memory:// can't hold messages"),
        ({f"{PREFIX}MONGO_URL": "mongodb://u:p@ss@h"}, "mongo", "is no URL that PyMongo can use"),
        ({f"{PREFIX}S3_PREFIX": "a/../b"}, "stdout", f"{PREFIX}S3_PREFIX: "),
        ({f"{PREFIX}S3_PREFIX": "a/"}, "stdout", f"{PREFIX}S3_PREFIX: "),
        ({f"{PREFIX}S3_ENDPOINT": "https://key:secret@host"}, "stdout", f"{PREFIX}S3_ENDPOINT: "),
        ({f"{PREFIX}QUEUE_BYTES": "8000000"}, "stdout", "must be at least twice"),
    ],
)
def test_what_can_not_work_stops_the_start(environment, sink, said):
    (line,) = problems(environment, sink=sink)
    assert said in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "link",
    [
        "SERVICE_HOST=10.0.0.1",
        "SERVICE_PORT=80",
        "SERVICE_PORT_HTTP=80",
        "PORT=tcp://10.0.0.1:80",
        "PORT_80_TCP=tcp://10.0.0.1:80",
        "PORT_80_TCP_ADDR=10.0.0.1",
        "S3_SERVICE_HOST=10.0.0.1",
        "S3_PORT_80_TCP_PROTO=tcp",
    ],
)
def test_the_variables_of_a_service_that_is_called_tokenweir_dumper_do_no_harm(link):
    name, _, value = link.partition("=")
    assert load({PREFIX + name: value}, {}) == DumperSettings()


def test_a_password_is_never_shown():
    settings = load({f"{PREFIX}MONGO_URL": "mongodb://u:hush@h/"}, {"sink": "mongo"})
    assert "hush" not in repr(settings)
    assert settings.mongo_secret_url == "mongodb://u:hush@h/"


def test_the_table_of_settings_is_what_the_settings_are():
    listed = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows("Settings")[2:]}
    fields = DumperSettings.model_fields
    assert listed == {
        PREFIX + name.upper(): ("" if field.default in {None, ""} else str(field.default), field.description)
        for name, field in fields.items()
    }


def test_the_table_of_metrics_is_what_is_exported():
    registry = DumperMetrics(Holding(1)).registry
    exported = {family.name + "_total" * (family.type == "counter"): family for family in registry.collect()}
    listed = {row[0].strip("`"): row for row in rows("Metrics")[2:]}
    assert {name: row[1] for name, row in listed.items()} == {n: family.type for n, family in exported.items()}
    outcomes = {s.labels["outcome"] for s in exported["tokenweir_dumper_messages_total"].samples if s.labels}
    assert set(re.findall(r"`(\w+)`", listed["tokenweir_dumper_messages_total"][2])) == outcomes | {"outcome"}
