"""Every cell of the matrix role x operation. The operations and their roles are those of the OpenAPI document."""

import itertools
import json

import pytest

from extproc.admin.access import Role
from extproc.admin.api.openapi import openapi
from extproc.admin.api.operations import OPERATIONS

from .api import MINE, OTHER, Running, entry

DOCUMENT = openapi(OPERATIONS)
ACCOUNT = "batch@zone-prod.example.com"
LIMIT = {"scope": "service_account", "window": "hour"}
# What each operation needs beside the tenant.
NEEDS = {
    "putTenant": {"json": {"sa_limit": 5}},
    "patchTenant": {"json": {"sa_limit": 5}},
    "suspendTenant": {"json": {"reason": "unpaid"}},
    "suspendServiceAccount": {"json": {"reason": "runaway"}},
    "addLimit": {"json": {**LIMIT, "amount": 7, "service_account": ACCOUNT}},
    "removeLimit": {"params": {**LIMIT, "service_account": ACCOUNT}},
    "addTopUp": {"json": {"amount": 5, "until": "2026-03-01T13:00:00Z"}},
    "explain": {"params": {"service_account": ACCOUNT}},
    "simulate": {"json": {"tenants": [{"tenant_id": MINE, "sa_limit": 1}]}},
}
CALLERS = {
    "anonymous": None,
    "viewer": (Role.VIEWER,),
    "viewer of a tenant": (Role.VIEWER, MINE),
    "team-lead": (Role.TEAM_LEAD, MINE),
    "admin": (Role.ADMIN,),
}
CELLS = [
    (path, method, operation, caller, tenant)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for caller, tenant in itertools.product(CALLERS, (MINE, OTHER))
]


async def filled(running):
    """Two tenants that have all that the operations show and take away."""
    for tenant in (MINE, OTHER):
        await running.ledger.append([entry(name=f"r-{tenant}", tenant=tenant)])
        document = {
            "sa_limit": 1000,
            "suspended": "unpaid",
            "service_accounts": [{"name": ACCOUNT, "suspended": "old", "limits": [{**LIMIT, "amount": 3}]}],
            "top_ups": [
                {
                    "id": "t1",
                    "scope": "service_account",
                    "window": "day",
                    "amount": 1,
                    "until": "2026-03-02T00:00:00Z",
                }
            ],
        }
        await running.tenants.update(tenant, document)


async def audit_entry(running, tenant):
    from extproc.ports.audit import AuditFilter

    from .api import ROOT

    await running.admin.limits.set(tenant, {"sa_limit": 999}, ROOT)
    (entry,) = await running.tenants.audit.entries(AuditFilter(tenant=tenant), 1)
    return entry.id


def expected(operation, role, tenant):
    """What the document says about the cell."""
    if role is None:
        return {401}
    least = Role(operation["x-role"])
    if not role[0].covers(least):
        return {403}
    scoped = len(role) > 1
    if scoped and operation["x-tenancy"] == "all":
        return {403}
    if scoped and tenant == OTHER and operation["x-tenancy"] in {"path", "query"}:
        return {404}
    if scoped and tenant == OTHER and operation["operationId"] in {"showChange", "showRequest"}:
        return {404}
    return {200}


@pytest.mark.parametrize(
    ("path", "method", "operation", "caller", "tenant"),
    CELLS,
    ids=[f"{o['operationId']}-{c}-{'own' if t == MINE else 'other'}" for _, _, o, c, t in CELLS],
)
async def test_a_caller_may_do_what_the_document_says_and_nothing_else(path, method, operation, caller, tenant):
    running = Running()
    await filled(running)
    role = CALLERS[caller]
    client = await running.client(*role) if role is not None else running.bearing(None)
    needs = dict(NEEDS.get(operation["operationId"], {}))
    params = dict(needs.get("params", {}))
    if any(each["name"] == "tenant" and each["in"] == "query" for each in operation["parameters"]):
        params["tenant"] = tenant
    texts = {"tenant": tenant, "service_account": ACCOUNT, "top_up": "t1", "entry": "none", "id": f"r-{tenant}"}
    if operation["operationId"] == "showChange":
        texts["entry"] = await audit_entry(running, tenant)
    before = await running.tenants.documents()
    headers = {"if-match": "*"} if any(e["name"] == "If-Match" for e in operation["parameters"]) else {}
    answer = await client.request(
        method.upper(), path.format(**texts), params=params, json=needs.get("json"), headers=headers
    )
    assert answer.status_code in expected(operation, role, tenant), answer.text
    if answer.status_code >= 400:
        assert await running.tenants.documents() == before
    if role is not None and len(role) > 1:
        assert f'"{OTHER}"' not in answer.text


def test_the_table_has_an_operation_of_each_role_and_tenancy_is_never_forgotten():
    operations = [each for methods in DOCUMENT["paths"].values() for each in methods.values()]
    assert {each["x-role"] for each in operations} == {role.value for role in Role}
    for path, methods in DOCUMENT["paths"].items():
        for each in methods.values():
            in_query = any(p["name"] == "tenant" and p["in"] == "query" for p in each["parameters"])
            wanted = "path" if "{tenant}" in path else "query" if in_query else each["x-tenancy"]
            assert each["x-tenancy"] == wanted
            assert wanted != "none" or each["operationId"] == "me"


async def test_a_list_without_a_tenant_has_the_rows_of_the_callers_tenants_alone():
    running = Running()
    await filled(running)
    lead = await running.client(Role.TEAM_LEAD, MINE, "unheard-of")
    rows = (await lead.get("/v1/tenants")).json()["rows"]
    assert [row["tenant"] for row in rows] == [MINE]
    both = await running.client(Role.VIEWER)
    assert [row["tenant"] for row in (await both.get("/v1/tenants")).json()["rows"]] == [MINE, OTHER]


@pytest.mark.parametrize("path", ["/v1/audit", "/v1/usage/report", "/v1/usage/top", "/v1/requests"])
async def test_who_may_see_one_tenant_need_not_name_it_and_who_may_see_several_must(path):
    running = Running()
    await filled(running)
    for tenant in (MINE, OTHER):
        await audit_entry(running, tenant)
    one = await (await running.client(Role.TEAM_LEAD, MINE)).get(path)
    assert one.status_code == 200
    assert OTHER not in one.text
    several = await (await running.client(Role.TEAM_LEAD, MINE, OTHER)).get(path)
    assert several.status_code == 400
    assert json.loads(several.text)["field"] == "tenant"


async def test_a_team_lead_sets_limits_of_accounts_and_never_those_of_the_tenant():
    running = Running()
    await filled(running)
    lead = await running.client(Role.TEAM_LEAD, MINE)
    before = await running.tenants.document(MINE)
    for answer in (
        await lead.post(f"/v1/tenants/{MINE}/limits", json={**LIMIT, "amount": 10**9}, headers={"if-match": "*"}),
        await lead.delete(f"/v1/tenants/{MINE}/limits", params=LIMIT, headers={"if-match": "*"}),
    ):
        assert answer.status_code == 403
    assert await running.tenants.document(MINE) == before


async def test_a_team_lead_makes_no_tenant():
    running = Running()
    lead = await running.client(Role.TEAM_LEAD, MINE)
    body = {**LIMIT, "amount": 7, "service_account": ACCOUNT}
    answer = await lead.post(f"/v1/tenants/{MINE}/limits", json=body, headers={"if-none-match": "*"})
    assert answer.status_code == 403
    assert await running.tenants.documents() == []
