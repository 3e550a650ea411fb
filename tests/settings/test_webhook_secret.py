"""The secret of webhooks: the bytes that each form stands for, and what is never shown."""

import base64

import pytest

from extproc.settings.load import SettingsError, load
from extproc.settings.webhook_secret import WebhookSecret

KEY = bytes(range(24, 24 + 32))


def encoded(key):
    return "whsec_" + base64.b64encode(key).decode()


def set_to(text):
    environment = {
        "TOKENWEIR_ALERTS__WEBHOOK_URL": "https://hooks.example/",
        "TOKENWEIR_ALERTS__WEBHOOK_SECRET": text,
    }
    return load(environment=environment).alerts.webhook_secret


def test_a_secret_in_the_form_of_the_scheme_stands_for_the_decoded_bytes():
    assert set_to(encoded(KEY)).key() == KEY


def test_padding_may_be_left_out():
    assert set_to(encoded(KEY).rstrip("=")).key() == KEY


@pytest.mark.parametrize("text", ["sixteen letters.", "wh-sec_" + "A" * 32, "schlüssel-schlüssel"])
def test_any_other_secret_stands_for_its_own_bytes(text):
    assert set_to(text).key() == text.encode()


@pytest.mark.parametrize("length", [24, 64])
def test_a_key_of_24_to_64_bytes_is_taken(length):
    assert len(set_to(encoded(bytes(length))).key()) == length


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fifteen letters", "must have 16 to 512 characters"),
        ("x" * 513, "must have 16 to 512 characters"),
        (encoded(b"twenty-three bytes long"), "must stand for 24 to 64 bytes after whsec_"),
        (encoded(bytes(65)), "must stand for 24 to 64 bytes after whsec_"),
        ("whsec_" + "-_" * 20, "must be base64 after whsec_"),
        ("whsec_" + "A" * 33, "must be base64 after whsec_"),
        ("whsec_ pa55word pa55word", "must be base64 after whsec_"),
    ],
)
def test_a_secret_that_has_no_key_is_refused_and_not_quoted(text, problem):
    with pytest.raises(SettingsError) as refused:
        set_to(text)
    assert problem in str(refused.value)
    assert "alerts.webhook_secret" in str(refused.value)
    assert text not in str(refused.value)
    assert "pa55word" not in str(refused.value)


def test_a_secret_is_never_shown():
    secret = WebhookSecret("a secret of the receiver's own")
    assert "receiver" not in f"{secret!r} {secret}"
