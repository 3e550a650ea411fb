"""The settings of the admin API."""

import pytest

from extproc.settings.load import SettingsError, load

JWT = {
    "TOKENWEIR_ADMIN__JWT__ISSUER": "https://login.example.com",
    "TOKENWEIR_ADMIN__JWT__AUDIENCE": "tokenweir",
    "TOKENWEIR_ADMIN__JWT__JWKS_URL": "https://login.example.com/keys",
    "TOKENWEIR_ADMIN__JWT__ROLES": "{platform: admin, leads: team-lead}",
}


def test_an_issuer_is_set_by_its_four_settings():
    jwt = load(None, JWT).admin.jwt
    assert jwt.roles == {"platform": "admin", "leads": "team-lead"}
    assert jwt.algorithms == ("RS256", "ES256")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ISSUER": ""}, "admin.jwt: set issuer too"),
        ({"AUDIENCE": ""}, "admin.jwt: set audience too"),
        ({"JWKS_URL": ""}, "admin.jwt: set jwks_file or jwks_url too"),
        ({"JWKS_FILE": "/keys"}, "admin.jwt: set jwks_file or jwks_url, not both"),
        ({"ROLES": "{}"}, "admin.jwt: set roles too"),
        ({"ROLES": "{platform: boss}"}, "admin.jwt.roles.platform: "),
        ({"ROLES": "[platform]"}, "admin.jwt.roles: "),
        ({"ROLES": "{"}, "admin.jwt.roles: must be a mapping, as YAML or JSON"),
        ({"ALGORITHMS": "[]"}, "admin.jwt.algorithms: "),
        ({"ALGORITHMS": "[HS256]"}, "admin.jwt.algorithms.0: "),
        ({"ALGORITHMS": "[none]"}, "admin.jwt.algorithms.0: "),
        ({"JWKS_URL": "ftp://x"}, "admin.jwt.jwks_url: must start with https://"),
        ({"JWKS_URL": "https://u:p@x"}, "admin.jwt.jwks_url: must hold no user or password"),
        ({"LEEWAY_S": "301"}, "admin.jwt.leeway_s: "),
    ],
)
def test_an_issuer_that_is_not_whole_or_not_safe_is_refused(changes, said):
    variables = JWT | {f"TOKENWEIR_ADMIN__JWT__{name}": value for name, value in changes.items()}
    with pytest.raises(SettingsError) as refused:
        load(None, variables)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "open_"),
    [
        ({}, False),
        ({"ADDRESS": "[::1]:1"}, False),
        ({"ADDRESS": "0.0.0.0:1"}, True),
        ({"ADDRESS": "admin.example:1"}, True),
        ({"ADDRESS": "0.0.0.0:1", "ALLOW_PLAINTEXT": "true"}, False),
        ({"ADDRESS": "0.0.0.0:1", "TLS__CERTIFICATE_FILE": "/c", "TLS__KEY_FILE": "/k"}, False),
    ],
)
def test_an_address_that_others_reach_in_plaintext_is_named(variables, open_):
    admin = load(None, {f"TOKENWEIR_ADMIN__{name}": value for name, value in variables.items()}).admin
    assert (admin.exposed() is not None) is open_


def test_certificate_and_key_belong_together():
    with pytest.raises(SettingsError, match=r"admin\.tls: set certificate_file and key_file, or none of them"):
        load(None, {"TOKENWEIR_ADMIN__TLS__CERTIFICATE_FILE": "/c"})
