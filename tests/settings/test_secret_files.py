"""Secrets in files: read with bounds, followed while the process runs, and never lost by a bad file."""

import logging
import os

import pytest

from extproc.settings.load import SettingsError, load
from extproc.settings.secret_files import MAX_BYTES, SecretFile, read_secret


def test_a_secret_is_the_text_without_the_lines_end(tmp_path):
    file = tmp_path / "secret"
    file.write_text("redis://:p@h\n")
    assert read_secret(file) == "redis://:p@h"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"x" * (MAX_BYTES + 1), "larger than 8 KiB"),
        (b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_by_its_reason(tmp_path, content, problem):
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_secret(file)


def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, problem in (
        (tmp_path / "pipe", "regular"),
        (tmp_path, "can't be read|regular"),
        (tmp_path / "no", "read"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_secret(path)


def followed(file, checked=lambda _text: None):
    return SecretFile("redis.url_file", file, checked)


def replaced(file, text):
    """As Kubernetes does it: another file takes the name."""
    other = file.with_name("other")
    other.write_text(text)
    other.replace(file)


def test_a_file_that_is_replaced_is_read_again_and_the_log_has_no_secret(tmp_path, caplog):
    file = tmp_path / "secret"
    file.write_text("first")
    secret = followed(file)
    assert secret.value() == "first"
    with caplog.at_level(logging.INFO):
        replaced(file, "second")
        assert [secret.value(), secret.value()] == ["second", "second"]
    assert len(caplog.records) == 1
    assert "second" not in str(vars(caplog.records[0]))


@pytest.mark.parametrize("spoil", ["", "wrong", None])
def test_the_last_good_value_stays_while_the_file_is_bad_which_is_logged_once(tmp_path, caplog, spoil):
    def checked(text):
        if text == "wrong":
            raise ValueError("is no URL")

    file = tmp_path / "secret"
    file.write_text("first")
    secret = followed(file, checked)
    if spoil is None:
        file.unlink()
    else:
        replaced(file, spoil)
    assert [secret.value() for _ in range(3)] == ["first"] * 3
    assert len(caplog.records) == 1
    replaced(file, "second")
    assert secret.value() == "second"


def test_a_setting_is_read_from_the_file_that_stands_for_it(tmp_path):
    for name, text in {"r": "redis://:secret@h/0", "m": "mongodb://h", "w": "0123456789abcdef"}.items():
        (tmp_path / name).write_text(text)
    settings = load(
        environment={
            "TOKENWEIR_REDIS__URL_FILE": str(tmp_path / "r"),
            "TOKENWEIR_MONGO__URL_FILE": str(tmp_path / "m"),
            "TOKENWEIR_ALERTS__WEBHOOK_URL": "https://hooks.example.com/x",
            "TOKENWEIR_ALERTS__WEBHOOK_SECRET_FILE": str(tmp_path / "w"),
        }
    )
    assert settings.redis.url.get_secret_value() == "redis://:secret@h/0"
    assert settings.mongo.url.get_secret_value() == "mongodb://h"
    assert settings.alerts.webhook_secret.key() == b"0123456789abcdef"


@pytest.mark.parametrize(
    ("more", "content", "problem"),
    [
        ({"TOKENWEIR_REDIS__URL": "redis://h"}, "redis://h", "redis.url_file: redis.url is set too; remove one"),
        ({}, None, "redis.url_file: .*can't be read: No such file"),
        ({}, "", "redis.url_file: .*is empty"),
        ({}, "http://h", "redis.url: must start with redis://"),
    ],
)
def test_a_file_that_can_not_be_used_stops_the_start_and_is_named(tmp_path, more, content, problem):
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=problem):
        load(environment={"TOKENWEIR_REDIS__URL_FILE": str(file)} | more)
