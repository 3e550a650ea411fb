"""The API does what its OpenAPI document says, for callers of each role: checked by schemathesis."""

import asyncio
import re
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from extproc.admin.access import Role
from extproc.admin.api.operations import OPERATIONS
from tests.sizes import is_thorough, sized

from .api import MINE, OTHER, Running
from .test_roles import filled

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CALLERS = {"admin": (Role.ADMIN,), "viewer": (Role.VIEWER,), "team-lead": (Role.TEAM_LEAD, MINE)}

running = Running()
schema = schemathesis.openapi.from_asgi("/openapi.json", running.api)
schema.config.generation.update(with_security_parameters=False)
# Every boundary of every field: some hundred requests for each operation, which every worker makes when it collects.
schema.config.phases.coverage.enabled = is_thorough()


# What each role may do at all is in test_roles.py, for each operation.
SOME = schema if is_thorough() else schema.include(operation_id=[each.id for each in OPERATIONS[::4]])
GENERATION = settings(
    max_examples=sized(6, 20),
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def tokens():
    return asyncio.run(_tokens())


async def _tokens():
    return {name: await running.token(*role) for name, role in CALLERS.items()}


def test_the_document_is_openapi_3_1():
    schema.validate()


@schema.parametrize()
@GENERATION
def test_the_api_does_what_its_document_says(case, tokens):
    check(case, tokens["admin"])


@pytest.mark.parametrize("caller", ["viewer", "team-lead"])
@SOME.parametrize()
@GENERATION
def test_it_does_so_for_callers_with_less_of_a_role(case, caller, tokens):
    check(case, tokens[caller])


def check(case, token):
    # The tenants are there again for each example, and valid examples meet one of them.
    asyncio.run(filled(running))
    if case.meta.generation.mode.is_positive and "tenant" in case.path_parameters:
        case.path_parameters["tenant"] = (MINE, OTHER)[len(case.path_parameters["tenant"]) % 2]
    case.call_and_validate(headers={"authorization": f"Bearer {token}"}, checks=CHECKS)


def test_the_table_of_the_documentation_has_all_operations():
    page = (Path(__file__).parents[2] / "docs/admin-api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+) (/v1[^`]*)` \| ([\w-]+) \|$", page, re.MULTILINE)
    assert rows == [(each.id, each.method, each.path, each.least) for each in OPERATIONS]
